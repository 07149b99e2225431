"""Encoders: images to features `z_e` of code_dim, one per patch."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from tokcli.errors import TokError
from tokcli.models.transformer import Grid, Trunk, start_weights, task_layers


@runtime_checkable
class Encoder(Protocol):
    """What stages need of an encoder; its constructor is `(code_dim, *, image_size, ...)`."""

    code_dim: int
    image_size: int  # of training, in pixels

    def grid(self, size: int | Grid) -> Grid:
        """Rows and columns of features for an image of `size` pixels (a side, or height and width)."""
        ...

    def __call__(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b n d"]:
        """Features in row-major order of the grid, for images in [0, 1]."""
        ...


class ViTEncoder(nn.Module):
    """Vision transformer with task layers, VQ-KD's student (Peng et al. 2022, section 2.1).

    ViT-B/16 at 224 px with code_dim 32 has 86,404,640 parameters.

    Args:
        code_dim: width of `z_e`.
        image_size: training size in pixels; fixes the position table, other sizes get it resized.
        patch_size: side of a patch in pixels; divides every image side.
        width: of a token.
        depth: number of blocks.
        heads: per block; must divide the width.
        mlp_ratio: hidden width of the MLP over the width.
        dropout: in [0, 1), where blocks add to the residual stream.
        class_token: add a token that sees all patches and is dropped at the end.
    """

    def __init__(
        self,
        code_dim: int,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        class_token: bool = True,
    ) -> None:
        super().__init__()
        self.code_dim, self.image_size, self.patch_size = code_dim, image_size, patch_size
        self.patches = nn.Conv2d(3, width, patch_size, patch_size)
        start_weights(self.patches)
        self.trunk = Trunk(self.grid(image_size), width, depth, heads, mlp_ratio, dropout, class_token)
        self.head = task_layers(width, code_dim)

    def grid(self, size: int | Grid) -> Grid:
        """Rows and columns of features for an image of `size` pixels (a side, or height and width).

        Raises:
            TokError: a side is no positive multiple of the patch size.
        """
        height, width = (size, size) if isinstance(size, int) else size
        if height % self.patch_size or width % self.patch_size or min(height, width) < 1:
            raise TokError(
                "encoder.patch_size",
                "must divide the image size",
                got=f"patches of {self.patch_size} px in images of {height}x{width} px",
            )
        return height // self.patch_size, width // self.patch_size

    def forward(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b n d"]:
        """Features in row-major order of the grid, for images in [0, 1]."""
        grid = self.grid((images.shape[2], images.shape[3]))
        x = self.patches(2 * images - 1)  # (b, width, h, w)
        return self.head(self.trunk(x.flatten(2).transpose(1, 2), grid))


ENCODERS: dict[str, type[ViTEncoder]] = {"vit": ViTEncoder}
