"""Position embeddings at another image size than they were learned at."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def resampled(
    positions: Float[Tensor, "b n d"], learned: tuple[int, int], grid: tuple[int, int]
) -> Float[Tensor, "b m d"]:
    """A class position, then those of a `learned` grid, interpolated (bicubic, antialiased) to `grid`."""
    if learned == grid:
        return positions
    first, patches = positions[:, :1], positions[:, 1:].transpose(1, 2).unflatten(2, learned)
    patches = F.interpolate(patches.float(), grid, mode="bicubic", antialias=True).to(positions.dtype)
    return torch.cat([first, patches.flatten(2).transpose(1, 2)], 1)
