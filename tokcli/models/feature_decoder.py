"""The small head that predicts a teacher's features from codes (VQ-KD, Peng et al. 2022, section 2.1)."""

from jaxtyping import Float
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from tokcli.models.blocks import Grid, Trunk, start_weights, task_layers
from tokcli.recipe.ranges import Share


class FeatureDecoder(nn.Module):
    """Transformer blocks and task layers from codes to the teacher's features, on the tokenizer's grid.

    With code_dim 32, feature_dim 512, a 14x14 grid, width 768 and 12 heads it has 8,250,368 parameters.
    Deeper ones lower the codebook's usage (the same paper: one block 100 %, three 97 %).

    Args:
        code_dim: width of a code.
        feature_dim: width of the teacher's features.
        grid: rows and columns of codes; other grids get the position table resized.
        width: channels of a token.
        depth: number of blocks.
        heads: attention heads per block; must divide the width.
        mlp_ratio: hidden width of the MLP, as a multiple of the width.
        dropout: share of values dropped, in [0, 1), where blocks add to the residual stream.
    """

    def __init__(
        self,
        code_dim: int,
        feature_dim: int,
        grid: Grid,
        *,
        width: PositiveInt,
        depth: NonNegativeInt = 1,
        heads: PositiveInt,
        mlp_ratio: PositiveFloat = 4.0,
        dropout: Share = 0.0,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(code_dim, width)
        start_weights(self.embed)
        self.trunk = Trunk(grid, width, depth, heads, mlp_ratio, dropout, class_token=True)
        self.head = task_layers(width, feature_dim)

    def forward(self, z_q: Float[Tensor, "b n d"], grid: Grid | None = None) -> Float[Tensor, "b n f"]:
        """Predicted features, one per code, in the codes' order."""
        return self.head(self.trunk(self.embed(z_q), grid))


class LinearFeatures(nn.Module):
    """One linear map from codes to the teacher's features, as alignment losses use (VA-VAE, arXiv 2501.01423).

    Args:
        code_dim: width of a code.
        feature_dim: width of the teacher's features.
        grid: not read; every code is mapped by itself.
    """

    def __init__(self, code_dim: int, feature_dim: int, grid: Grid) -> None:
        super().__init__()
        self.map = nn.Linear(code_dim, feature_dim)

    def forward(self, z_q: Float[Tensor, "b n d"], grid: Grid | None = None) -> Float[Tensor, "b n f"]:
        """Predicted features, one per code, in the codes' order."""
        return self.map(z_q)


class CodesAsFeatures(nn.Module):
    """The feature decoder of a codebook over the teacher's own features: codes are what they predict."""

    def forward(self, z_q: Float[Tensor, "b n d"], grid: Grid | None = None) -> Float[Tensor, "b n d"]:
        """The codes as they are."""
        return z_q
