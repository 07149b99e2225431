"""Where unused codes go: onto the farthest row of the clusters with the greatest error.

A random row would do as well, but which row is "the third of the batch" depends on how the batch was split
over ranks. Cluster sums and maxima do not, and one row per cluster keeps the revived codes apart.
scikit-learn's k-means moves empty clusters to far rows too.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tokcli import distributed


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
