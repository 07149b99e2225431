"""Pixel decoders: codes of a frozen tokenizer to images."""

from typing import Protocol, runtime_checkable

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from tokcli.errors import TokError
from tokcli.models.blocks import Grid, Trunk, start_weights, task_layers
from tokcli.models.conv import PositionAttention, ResidualBlock, Upsample, check_doubling, group_norm, training_layout
from tokcli.models.maskgit import MaskGITDecoder
from tokcli.recipe.sections import Blocks, Share, SomeBlocks, Widths


@runtime_checkable
class PixelDecoder(Protocol):
    """What stages need of a pixel decoder; its constructor is `(code_dim, grid, image_size, *, ...)`."""

    grid: Grid

    def __call__(self, z_q: Float[Tensor, "b n d"], grid: Grid | None = None) -> Float[Tensor, "b 3 height width"]:
        """Images in about [0, 1], not clamped; codes in row-major order of `grid` (default: training's)."""
        ...


def to_unit_range(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """From the networks' [-1, 1], which start mid-grey, to images' [0, 1]; not clamped, for the gradient."""
    return 0.5 + 0.5 * x


class ConvDecoder(nn.Module):
    """VQGAN's convolutional decoder (Esser et al. 2021) behind a 1x1 convolution from code_dim.

    The published f16 decoder has widths [512, 256, 256, 128, 128] at grid 16x16 and 256 px, 42,449,795
    parameters after that 1x1 convolution; f8 has widths [512, 256, 128, 128] at grid 32x32. Activations
    are channels_last, except in training on a CPU.

    Args:
        code_dim: width of a code.
        grid: rows and columns of codes.
        image_size: pixels of a side of the image, or (height, width): the grid doubled len(widths) - 1 times.
        widths: channels of each stage, from the grid's resolution up to the image's; each stage is twice as
            large as the one before it.
        blocks: residual blocks per stage.
        channels: channels after the first 1x1 convolution, which maps codes to features.
        attention: self-attention at the grid's resolution, after each of its blocks and in the middle block.

    Raises:
        TokError: the widths do not lead from the grid to the image size.
    """

    def __init__(
        self,
        code_dim: int,
        grid: Grid,
        image_size: int | Grid,
        *,
        widths: Widths,
        blocks: Blocks = 3,
        channels: PositiveInt = 256,
        attention: bool = True,
    ) -> None:
        super().__init__()
        self.grid = grid
        check_doubling(grid, image_size, widths)
        self.embed = nn.Conv2d(code_dim, channels, 1)
        low = widths[0]
        layers: list[nn.Module] = [nn.Conv2d(channels, low, 3, padding=1), ResidualBlock(low, low)]
        layers += [PositionAttention(low)] if attention else []
        layers += [ResidualBlock(low, low)]
        before = low
        for stage, width in enumerate(widths):
            if stage > 0:
                layers.append(Upsample(before))
            for _ in range(blocks):
                layers.append(ResidualBlock(before, width))
                before = width
                if attention and stage == 0:
                    layers.append(PositionAttention(width))
        layers += [group_norm(before), nn.SiLU(), nn.Conv2d(before, 3, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z_q: Float[Tensor, "b n d"], grid: Grid | None = None) -> Float[Tensor, "b 3 height width"]:
        """Images in about [0, 1], not clamped; codes in row-major order of `grid` (default: training's)."""
        x = z_q.unflatten(1, grid or self.grid).permute(0, 3, 1, 2)  # (b, d, h, w), channels_last as it lies
        return to_unit_range(self.layers(self.embed(training_layout(x))))

    @property
    def last_layer(self) -> Tensor:
        """The weight that adaptive adversarial losses take gradients at."""
        last = self.layers[-1]
        assert isinstance(last, nn.Conv2d)
        return last.weight


class ViTDecoder(nn.Module):
    """Vision transformer from codes to pixel patches.

    At code_dim 32, grid 14x14, 224 px, width 768, 12 blocks of 12 heads it has 86,405,376 parameters.

    Args:
        code_dim: width of a code.
        grid: rows and columns of codes; other grids get the position table resized.
        image_size: pixels of a side of the image, or (height, width); a multiple of the grid, the same in
            both directions.
        width: channels of a token.
        depth: number of blocks.
        heads: attention heads per block; must divide the width.
        mlp_ratio: hidden width of the MLP, as a multiple of the width.
        dropout: share of values dropped, in [0, 1), where blocks add to the residual stream.

    Raises:
        TokError: the image is no whole number of square patches.
    """

    def __init__(
        self,
        code_dim: int,
        grid: Grid,
        image_size: int | Grid,
        *,
        width: PositiveInt,
        depth: SomeBlocks,
        heads: PositiveInt,
        mlp_ratio: PositiveFloat = 4.0,
        dropout: Share = 0.0,
    ) -> None:
        super().__init__()
        height, breadth = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.grid, self.patch_size = grid, height // grid[0]
        if (self.patch_size * grid[0], self.patch_size * grid[1]) != (height, breadth):
            raise TokError(
                "decoder",
                f"a {grid[0]}x{grid[1]} grid does not cut the image into square patches",
                got=f"{height}x{breadth} px",
                next="Set data.size to a multiple of the grid",
            )
        self.embed = nn.Linear(code_dim, width)
        start_weights(self.embed)
        self.trunk = Trunk(grid, width, depth, heads, mlp_ratio, dropout, class_token=True)
        self.head = task_layers(width, 3 * self.patch_size**2)

    def forward(self, z_q: Float[Tensor, "b n d"], grid: Grid | None = None) -> Float[Tensor, "b 3 height width"]:
        """Images in about [0, 1], not clamped; codes in row-major order of `grid` (default: training's)."""
        grid = grid or self.grid
        x = self.head(self.trunk(self.embed(z_q), grid))  # (b, n, 3 p p)
        return to_unit_range(F.pixel_shuffle(x.transpose(1, 2).unflatten(2, grid), self.patch_size))

    @property
    def last_layer(self) -> Tensor:
        """The weight that adaptive adversarial losses take gradients at."""
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        return last.weight


DECODERS: dict[str, type[ConvDecoder] | type[MaskGITDecoder] | type[ViTDecoder]] = {
    "conv": ConvDecoder,
    "maskgit": MaskGITDecoder,
    "vit": ViTDecoder,
}
