"""MaskGIT's VQGAN (Chang et al. 2022, arXiv 2202.04200, section 3), as its published weights were trained.

Unlike VQGAN's networks in `encoders` and `decoders` it has no attention, no biases in residual blocks, average pooling on
the way down, as many blocks on the way up as down, no 1x1 convolutions between codes and networks but the encoder's last,
and images that enter and leave in [0, 1]. With the published 128, 128, 256, 256 and 512 channels and codes of width 256
the encoder has 23,775,104 parameters and the decoder 30,478,339.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tokcli.models.blocks import Grid
from tokcli.models.conv import ResidualBlock, Upsample, check_doubling, group_norm, halved, training_layout
from tokcli.recipe.sections import Side, SomeBlocks, Widths


class MaskGITBlock(ResidualBlock):
    """A residual block without biases.

    Where widths differ, its 1x1 convolution sees what the two 3x3 ones made, not the block's input: so were the published
    weights trained, and nothing of the input goes around such a block.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, bias=False)
        if channels != out:
            self.shortcut = nn.Conv2d(out, out, 1, bias=False)
        self.widens = channels != out

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h w"]:
        """Features of `out` channels at the same size."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.shortcut(y) if self.widens else x)


class MaskGITEncoder(nn.Module):
    """MaskGIT's convolutional encoder; any multiple of `stride` is a size.

    Args:
        code_dim: width of `z_e`.
        image_size: training size in pixels, a multiple of 2^(len(widths) - 1).
        widths: channels of each stage, from the image's resolution down to the grid's; each stage is half as large as the
            one before it.
        blocks: residual blocks per stage, and behind the last.
    """

    def __init__(self, code_dim: int, *, image_size: Side, widths: Widths, blocks: SomeBlocks = 2) -> None:
        super().__init__()
        self.code_dim, self.image_size, self.stride = code_dim, image_size, 2 ** (len(widths) - 1)
        self.grid(image_size)
        before = widths[0]
        layers: list[nn.Module] = [nn.Conv2d(3, before, 3, padding=1, bias=False)]
        for stage, width in enumerate(widths, 1):
            for _ in range(blocks):
                layers.append(MaskGITBlock(before, width))
                before = width
            if stage < len(widths):
                layers.append(nn.AvgPool2d(2))
        layers += [MaskGITBlock(before, before) for _ in range(blocks)]
        layers += [group_norm(before), nn.SiLU(), nn.Conv2d(before, code_dim, 1)]
        self.layers = nn.Sequential(*layers)

    def grid(self, size: int | Grid) -> Grid:
        """Rows and columns of features for an image of `size` pixels (a side, or height and width).

        Raises:
            TokError: a side is no positive multiple of the stride.
        """
        return halved(size, self.stride)

    def forward(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b n d"]:
        """Features in row-major order of the grid, for images in [0, 1]."""
        self.grid((images.shape[2], images.shape[3]))
        return self.layers(training_layout(images)).flatten(2).transpose(1, 2)


class MaskGITDecoder(nn.Module):
    """MaskGIT's convolutional decoder.

    Args:
        code_dim: width of a code.
        grid: rows and columns of codes.
        image_size: pixels of a side of the image, or (height, width): the grid doubled len(widths) - 1 times.
        widths: channels of each stage, from the grid's resolution up to the image's; each stage is twice as
            large as the one before it.
        blocks: residual blocks per stage, and before the first.

    Raises:
        TokError: the widths do not lead from the grid to the image size.
    """

    def __init__(
        self, code_dim: int, grid: Grid, image_size: int | Grid, *, widths: Widths, blocks: SomeBlocks = 2
    ) -> None:
        super().__init__()
        self.grid = grid
        check_doubling(grid, image_size, widths)
        before = widths[0]
        layers: list[nn.Module] = [nn.Conv2d(code_dim, before, 3, padding=1)]
        layers += [MaskGITBlock(before, before) for _ in range(blocks)]
        for stage, width in enumerate(widths):
            if stage > 0:
                layers.append(Upsample(before))
            for _ in range(blocks):
                layers.append(MaskGITBlock(before, width))
                before = width
        last = nn.Conv2d(before, 3, 3, padding=1)
        last.bias = nn.Parameter(torch.full((3,), 0.5))  # starts mid-grey
        self.layers = nn.Sequential(*layers, group_norm(before), nn.SiLU(), last)

    def forward(self, z_q: Float[Tensor, "b n d"], grid: Grid | None = None) -> Float[Tensor, "b 3 height width"]:
        """Images in about [0, 1], not clamped; codes in row-major order of `grid` (default: training's)."""
        x = z_q.unflatten(1, grid or self.grid).permute(0, 3, 1, 2)  # (b, d, h, w), channels_last as it lies
        return self.layers(training_layout(x))

    @property
    def last_layer(self) -> Tensor:
        """The weight that adaptive adversarial losses take gradients at."""
        last = self.layers[-1]
        assert isinstance(last, nn.Conv2d)
        return last.weight
