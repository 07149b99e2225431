"""A tokenizer: an encoder and a quantizer, and the decoder it was trained with, to pixels or to features.

The feature decoder is the small head that predicts a teacher's features from codes (VQ-KD, Peng et al. 2022, section 2.1).
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int, Int64
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from tokcli.artifact.weights import load_strict
from tokcli.errors import TokError
from tokcli.models.blocks import Grid, Trunk, start_weights, task_layers
from tokcli.models.decoders import ConvDecoder, ViTDecoder
from tokcli.models.encoders import Encoder, PretrainedEncoder
from tokcli.models.maskgit import MaskGITDecoder
from tokcli.quantizers import Quantized, Quantizer
from tokcli.quantizers.perturbing import Perturber
from tokcli.recipe.sections import Share, SomeBlocks


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
        depth: SomeBlocks = 1,
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


class Tokenizer(nn.Module):
    """Images to indices, and indices to codes.

    Args:
        encoder: images in [0, 1] to `z_e`.
        quantizer: `z_e` to indices and `z_q`, of the same code_dim.
        feature_decoder: `z_q` to a teacher's features; None for methods without a teacher.
        pixel_decoder: `z_q` to images; None for methods that do not learn one.
    """

    encoder: Encoder
    quantizer: Quantizer
    perturb: Perturber | None = None  # of a training that has one
    feature_decoder: FeatureDecoder | LinearFeatures | CodesAsFeatures | None
    pixel_decoder: ConvDecoder | MaskGITDecoder | ViTDecoder | None

    def __init__(
        self,
        encoder: Encoder,
        quantizer: Quantizer,
        feature_decoder: FeatureDecoder | LinearFeatures | CodesAsFeatures | None = None,
        pixel_decoder: ConvDecoder | MaskGITDecoder | ViTDecoder | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.quantizer = encoder, quantizer
        self.feature_decoder, self.pixel_decoder = feature_decoder, pixel_decoder

    def grid(self, size: int | Grid) -> Grid:
        """Rows and columns of tokens for an image of `size` pixels.

        Raises:
            TokError: the encoder cannot cut such an image into patches.
        """
        return self.encoder.grid(size)

    def forward(
        self,
        images: Float[Tensor, "b 3 height width"],
        counted: Bool[Tensor, "b n"] | None = None,
        features: Float[Tensor, "b n f"] | None = None,
    ) -> Quantized:
        """Quantized features of images in [0, 1], with gradients.

        Args:
            images: what is encoded.
            counted: see `Quantizer.forward`.
            features: of these images, by the network of a pretrained encoder, which is then not run.
        """
        if features is None:
            z_e = self.encoder(images)
        else:
            assert isinstance(self.encoder, PretrainedEncoder)
            z_e = self.encoder.project(features)
        quantized: Quantized = self.quantizer(z_e, counted)
        return self.perturb(quantized, self.quantizer) if self.perturb and self.training else quantized

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 height width"]) -> Int64[Tensor, "b n"]:
        """Indices in row-major order of the grid, for images in [0, 1].

        Raises:
            RuntimeError: in train mode, where dropout and the codebook's bookkeeping would be active.
            TokError: the quantizer is the yardstick without codes.
        """
        if self.training:
            raise RuntimeError("Tokenizer.encode needs eval mode: call tokenizer.eval() first")
        if not self.quantizer.discrete:
            raise TokError(
                "tokenizer", "was trained without a quantizer and has no indices", next="Train one with codes"
            )
        return self(images).indices

    @torch.no_grad()
    def codes(self, indices: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape d"]:
        """The codes of indices in [0, codebook_size)."""
        return self.quantizer.codes(indices)

    def export_state(self) -> dict[str, Tensor]:
        """The state an artifact keeps: all weights and the codebook, without what only training needs."""
        kept = {f"quantizer.{name}" for name in self.quantizer.inference_names()}
        return {k: v for k, v in self.state_dict().items() if not k.startswith("quantizer.") or k in kept}

    def load_exported(self, state: Mapping[str, Tensor], where: str) -> None:
        """Load what `export_state` gave, strictly; the quantizer's training-only records start afresh.

        Args:
            state: by name, neither more nor fewer tensors than `export_state` gives.
            where: the file, for messages.

        Raises:
            TokError: missing, unexpected or differently shaped tensors.
        """
        exported = self.export_state()
        fresh = {name: t for name, t in self.state_dict().items() if name not in exported}
        surplus = {name for name in state if name in fresh}
        if surplus:
            raise TokError(
                where,
                "holds training state, not an exported tokenizer",
                got=", ".join(sorted(surplus)),
                next="Give the folder of a finished tokenizer",
            )
        load_strict(self, {**fresh, **state}, where)
        self.quantizer.restart_training_state()
