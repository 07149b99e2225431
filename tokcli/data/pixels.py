"""Pixels as numbers: uint8 to float on a device, and which patches are blank."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

FLAT = 2  # grey levels: a patch whose channels all vary by less than this is blank


def unit(images: UInt8[Tensor, "b 3 h w"], device: torch.device) -> Float[Tensor, "b 3 h w"]:
    """uint8 images as float in [0, 1] on the device."""
    return images.to(device, non_blocking=True).float() / 255


def filled(patches: UInt8[Tensor, "b 3 s s"], grid: tuple[int, int]) -> Tensor:
    """Which cells of the grid hold more than one flat colour, bool (b, n)."""
    cells = patches.unflatten(2, (grid[0], -1)).unflatten(4, (grid[1], -1)).permute(0, 2, 4, 1, 3, 5).flatten(4).int()
    return ((cells.amax(-1) - cells.amin(-1)).amax(-1) >= FLAT).flatten(1)
