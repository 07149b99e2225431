"""k-means (Lloyd) for a codebook's start, Euclidean or spherical (Dhillon and Modha 2001), chunked."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from tokcli.progress import passing
from tokcli.quantizers.revival import farthest, relocate
from tokcli.quantizers.search import Metric, nearest


@torch.no_grad()
def kmeans(
    rows: Float[Tensor, "m d"], k: int, *, metric: Metric, iterations: int, generator: torch.Generator
) -> Float[Tensor, "k d"]:
    """Cluster rows into k codes.

    Seeds are random distinct rows. A cluster that runs empty moves to the farthest row of the cluster with
    the greatest error. With fewer distinct rows than k, the missing codes are copies of rows plus 1 % noise,
    so that no two codes are equal.

    Args:
        rows: at least one; under "cosine" only their direction counts.
        k: number of codes.
        metric: "euclidean", or "cosine" for unit-length rows and codes.
        iterations: rounds of assignment and averaging; 0 returns the seeds.
        generator: on the CPU; picks the seeds.

    Raises:
        ValueError: no rows.
    """
    if len(rows) == 0:
        raise ValueError("k-means needs at least one row")
    rows = rows.float()
    if metric == "cosine":
        rows = F.normalize(rows, dim=1)
    codes = _seeds(rows, k, generator)
    for _ in passing(range(iterations), iterations, unit="round", desc="k-means"):
        if metric == "cosine":
            codes = F.normalize(codes, dim=1)
        indices = nearest(rows, codes, metric)
        counts = torch.bincount(indices, minlength=k)
        sums = torch.zeros_like(codes).index_add_(0, indices, rows)
        errors = (rows - codes[indices]).square().sum(1)
        codes = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), codes)
        empty = (counts == 0).nonzero().flatten()
        if len(empty):
            distortion = errors.new_zeros(k).index_add_(0, indices, errors)
            moved, targets = relocate(empty, distortion, farthest(indices, errors, rows, k))
            codes[moved] = targets
    return F.normalize(codes, dim=1) if metric == "cosine" else codes


def _seeds(rows: Float[Tensor, "m d"], k: int, generator: torch.Generator) -> Float[Tensor, "k d"]:
    shuffled = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
    distinct = shuffled[_first_occurrences(shuffled)][:k]
    missing = k - len(distinct)
    if missing == 0:
        return distinct
    spread = (rows - rows.mean(0)).square().mean().sqrt()
    scale = 0.01 * torch.maximum(spread, rows.square().mean().sqrt().clamp_min(1e-3))
    noise = torch.randn(missing, rows.shape[1], generator=generator).to(rows.device)
    copies = distinct[torch.arange(missing, device=rows.device) % len(distinct)]
    return torch.cat([distinct, copies + scale * noise])


def _first_occurrences(rows: Float[Tensor, "m d"]) -> Int64[Tensor, " u"]:
    """Positions of the first of each group of equal rows, ascending."""
    unique, inverse = torch.unique(rows, dim=0, return_inverse=True)
    positions = torch.arange(len(rows), device=rows.device)
    return positions.new_full((len(unique),), len(rows)).scatter_reduce(0, inverse, positions, "amin").sort().values
