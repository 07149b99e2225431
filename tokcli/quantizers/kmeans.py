"""k-means (Lloyd) for a codebook's start, Euclidean or spherical (Dhillon and Modha 2001), chunked; and where unused codes go.

They go onto the farthest row of the clusters with the greatest error, as scikit-learn's k-means moves empty clusters. A random row would do
as well, but which row is "the third of the batch" depends on how the batch was split over ranks. Cluster sums and maxima do not, and one
row per cluster keeps the revived codes apart.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from tokcli import distributed
from tokcli.progress import passing
from tokcli.quantizers.search import Metric, nearest


class Farthest(NamedTuple):
    """For each code that was used: its index, its greatest squared error, and the row that has it."""

    codes: Int64[Tensor, " u"]
    errors: Float[Tensor, " u"]
    rows: Float[Tensor, "u d"]


def join(a: Farthest, b: Farthest) -> Farthest:
    """Both lists, one after the other."""
    return Farthest(*(torch.cat(pair) for pair in zip(a, b, strict=True)))


def gather(candidates: Farthest) -> Farthest:
    """The candidates of all ranks."""
    codes, errors, rows = candidates
    values = distributed.all_gather_rows(torch.cat([errors[:, None], rows], 1))
    return Farthest(distributed.all_gather_rows(codes[:, None]).flatten(), values[:, 0], values[:, 1:])


def farthest(
    codes: Int64[Tensor, " m"], errors: Float[Tensor, " m"], rows: Float[Tensor, "m d"], codebook_size: int
) -> Farthest:
    """Per code the row of greatest error, the same for any order of the rows.

    Results for parts of a batch, joined and passed in again, give the result for the whole batch.
    """
    greatest = errors.new_full((codebook_size,), -1).scatter_reduce(0, codes, errors, "amax")
    at_top = (errors == greatest[codes]).nonzero().flatten()
    codes, errors, rows = codes[at_top], errors[at_top], rows[at_top]
    if len(codes) > (greatest >= 0).sum():  # equal errors: the row that is last by value
        order = torch.arange(len(rows), device=rows.device)
        for column in rows.T.flip(0):
            order = order[torch.argsort(column[order], stable=True)]
        codes, errors, rows = codes[order], errors[order], rows[order]
    codes, order = torch.sort(codes, stable=True)
    last = torch.ones_like(codes, dtype=torch.bool)
    last[:-1] = codes[1:] != codes[:-1]
    return Farthest(codes[last], errors[order][last], rows[order][last])


def relocate(
    idle: Int64[Tensor, " e"], distortion: Float[Tensor, " k"], candidates: Farthest
) -> tuple[Int64[Tensor, " r"], Float[Tensor, "r d"]]:
    """Which idle codes move, and where to: the i-th idle code to the far row of the i-th worst cluster.

    Args:
        idle: codes to move, ascending.
        distortion: summed squared error of each code's rows.
        candidates: from `farthest`. Clusters without error have nothing to split and give no row, so that
            fewer codes may move than are idle; the next step moves more.
    """
    useful = candidates.errors > 1e-6 * candidates.rows.square().sum(1).clamp_min(1e-12)
    codes, rows = candidates.codes[useful], candidates.rows[useful]
    order = torch.argsort(distortion[codes], descending=True, stable=True)
    moved = min(len(idle), len(order))
    return idle[:moved], rows[order[:moved]]


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
