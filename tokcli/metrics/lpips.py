"""LPIPS of image pairs (R. Zhang et al. 2018, arXiv 1801.03924), from the feature maps of both.

The paper's number, version 0.1: VGG16's five maps and the channel weights learned for them.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

TINY = 1e-10  # beside the norm, as the package lpips has it


def _unit(maps: Float[Tensor, "b c h w"]) -> Float64[Tensor, "b c h w"]:
    maps = maps.to(torch.float64)
    return maps / (maps.square().sum(1, keepdim=True).sqrt() + TINY)


def lpips(
    images: Sequence[Float[Tensor, "b _ _ _"]],
    targets: Sequence[Float[Tensor, "b _ _ _"]],
    heads: Sequence[Float[Tensor, "1 _ 1 1"]],
) -> Float64[Tensor, " b"]:
    """Distance of each image to its target, at least 0, 0 for equal ones.

    Args:
        images, targets: feature maps (b, c, h, w) by layer.
        heads: non-negative channel weights (1, c, 1, 1) by layer.

    Raises:
        ValueError: as many maps as heads are wanted, of equal shapes.
    """
    if not len(images) == len(targets) == len(heads) or any(
        a.shape != b.shape or h.shape[1] != a.shape[1] for a, b, h in zip(images, targets, heads, strict=False)
    ):
        raise ValueError(f"lpips: maps and heads do not fit together: {len(images)} maps, {len(heads)} heads")
    total = torch.zeros(len(images[0]), dtype=torch.float64)
    for a, b, head in zip(images, targets, heads, strict=True):
        squares = (_unit(a) - _unit(b)).square() * head.to(torch.float64)
        total += squares.sum(1).mean(dim=(1, 2)).cpu()
    return total
