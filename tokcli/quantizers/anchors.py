"""CVQ-VAE's anchors (Zheng and Vedaldi, arXiv 2307.15139, section 3.2): the less a code is used, the nearer it moves to a feature.

With p the running frequency of a code, it becomes (1 - a) times itself plus a times the feature of the batch nearest to it,
a = exp(-10 p K / (1 - 0.99) - 0.001). Differs from the authors' code: frequencies and the nearest feature are those of all
ranks' batches, codes move after the optimizer's update instead of before it, and under "cosine" features and codes have
unit length, where theirs compares directions and keeps lengths.
"""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tokcli import distributed
from tokcli.quantizers.search import nearest

DECAY = 0.99  # of the running frequencies
PULL = 10 / (1 - DECAY)
NEGLIGIBLE = 1e-7  # an anchor's share of a code below this is none


class Anchors(NamedTuple):
    """For some codes the nearest feature so far, and its squared distance."""

    codes: Int64[Tensor, " u"]
    distances: Float[Tensor, " u"]
    rows: Float[Tensor, "u d"]


def pull(frequency: Float[Tensor, " u"], codebook_size: int) -> Float[Tensor, " u"]:
    """a: the share of a code that its anchor takes, in (0, 1)."""
    return torch.exp(-frequency * codebook_size * PULL - 1e-3)


def movable(frequency: Float[Tensor, " k"]) -> Int64[Tensor, " u"]:
    """Codes that an anchor can move, whatever else a step uses: frequencies fall to DECAY of themselves at most."""
    return (pull(DECAY * frequency, len(frequency)) > NEGLIGIBLE).nonzero().flatten()


def nearest_features(
    table: Float[Tensor, "k d"],
    codes: Int64[Tensor, " u"],
    z: Float[Tensor, "m d"],
    metric: Literal["cosine", "euclidean"],
) -> Anchors:
    """The nearest of z for each of those codes of the table; no rows where either is empty."""
    if len(codes) == 0 or len(z) == 0:
        return Anchors(codes[:0], table[:0, 0], table[:0])
    chosen = table[codes]
    rows = z[nearest(chosen, z, metric)]
    return Anchors(codes, (chosen - rows).square().sum(1), rows)


def nearer(a: Anchors | None, b: Anchors) -> Anchors:
    """Of two features per code the nearer one; the earlier of equals. Either may be empty."""
    if a is None or len(a.codes) == 0:
        return b
    if len(b.codes) == 0:
        return a
    later = b.distances < a.distances
    return Anchors(a.codes, torch.where(later, b.distances, a.distances), torch.where(later[:, None], b.rows, a.rows))


def over_ranks(own: Anchors | None, codes: Int64[Tensor, " u"], table: Float[Tensor, "k d"]) -> Float[Tensor, "u d"]:
    """For each code the nearest feature that any rank saw; all ranks call it with the same codes."""
    if own is None or len(own.codes) == 0:
        own = Anchors(codes, torch.full_like(table[codes, 0], math.inf), table[codes])
    both = distributed.all_gather_rows(torch.cat([own.distances[:, None], own.rows], 1))
    ranks = both.view(-1, len(codes), table.shape[1] + 1)
    best = ranks[:, :, 0].argmin(0)
    return ranks[best, torch.arange(len(codes), device=best.device), 1:]
