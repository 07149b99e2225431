"""Parts of VQGAN's convolutional networks (Esser et al. 2021): residual blocks, attention, changes of size."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tokcli.errors import TokError


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of 32 groups, or of the most that divide both 32 and the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


def halved(size: int | tuple[int, int], stride: int) -> tuple[int, int]:
    """Rows and columns of features for an image of `size` pixels that stages halve to 1/stride.

    Raises:
        TokError: a side is no positive multiple of the stride.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height % stride or width % stride or min(height, width) < 1:
        raise TokError(
            "encoder.widths",
            f"stages halve the image to 1/{stride}, which must divide its size",
            got=f"{height}x{width} px",
            next="Set data.size to a multiple, or leave out some of encoder.widths",
        )
    return height // stride, width // stride


def check_doubling(grid: tuple[int, int], image_size: int | tuple[int, int], widths: list[int]) -> None:
    """Refuse a decoder whose stages, each after the first twice as large, do not lead from the grid to the image.

    Raises:
        TokError: they make another size.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    factor = 2 ** (len(widths) - 1)
    if (grid[0] * factor, grid[1] * factor) != size:
        made = f"{grid[0] * factor}x{grid[1] * factor} px"
        raise TokError(
            "decoder.widths",
            f"{len(widths)} stages turn a {grid[0]}x{grid[1]} grid into {made}, which is not the size of the image",
            got=f"{size[0]}x{size[1]} px",
            next="Give one width for each doubling, and one more"
            if grid[0] == grid[1] and (size[0] // grid[0]).bit_count() == 1
            else "No number of doublings does: --set 'decoder={name: vit, width: 384, depth: 8, heads: 6}'",
        )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions behind GroupNorm and SiLU; a 1x1 one on the shortcut where widths differ."""

    def __init__(self, channels: int, out: int, *, bias: bool = True) -> None:
        super().__init__()
        self.norm1, self.conv1 = group_norm(channels), nn.Conv2d(channels, out, 3, padding=1, bias=bias)
        self.norm2, self.conv2 = group_norm(out), nn.Conv2d(out, out, 3, padding=1, bias=bias)
        self.shortcut = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h w"]:
        """Features of `out` channels at the same size."""
        y = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class PositionAttention(nn.Module):
    """Single-head self-attention over all positions, with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Features in which every position has seen all others."""
        tokens = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1)  # (b, 1, h*w, 3c)
        q, k, v = tokens.chunk(3, -1)
        y = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return x + self.out(y.transpose(1, 2).unflatten(2, x.shape[2:]))


class Upsample(nn.Module):
    """Twice the size by nearest neighbour, then a 3x3 convolution (a transposed one leaves patterns)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Features at twice the height and width."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Downsample(nn.Module):
    """Half the size by a 3x3 convolution of stride 2, padded on the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Features at half the height and width, which are even."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


def training_layout(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """The memory layout in which a CPU trains fastest; elsewhere, and without gradients, as it lies.

    GroupNorm's backward pass on a CPU takes 4 to 10 times as long in channels_last, more than convolutions win.
    """
    return x.contiguous() if x.device.type == "cpu" and torch.is_grad_enabled() else x
