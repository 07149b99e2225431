"""From logits to codes: a sampler's settings, filters and the draw; in float32 or wider."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from tokcli.errors import TokError
from tokcli.proposals.guidance import scales
from tokcli.recipe.sample_options import SamplerOptions, declared

CHUNK = 1 << 16  # logits drawn from at once on a CPU: they and their sums in float64 stay in a core's cache
GPU_CHUNK = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Sampling(SamplerOptions):
    """How codes are drawn from a proposal network, with the values that are left out at their defaults.

    Raises:
        TokError: a value outside its range.
    """

    def __post_init__(self) -> None:
        for key, one in declared(type(self)).items():
            fault = one.fault(getattr(self, key))
            if fault:
                raise TokError(f"sample.{key}", f"must be {fault}", got=str(getattr(self, key)))

    @property
    def guided(self) -> bool:
        """Whether the network is run with and without its condition, at some step at least."""
        return self.cfg_scale != 1.0

    def scales(self, steps: int) -> list[float]:
        """The guidance scale of each of so many steps; 1 where none acts."""
        return scales(steps, self.cfg_scale, self.cfg_schedule, self.cfg_power, self.cfg_interval, self.cfg_done)


class Drawing(NamedTuple):
    """What it takes to draw an image's tokens.

    Args:
        flop: floating-point operations.
        passes: of the network over a batch.
        cached: bytes that an image's earlier tokens left and later ones read back.
        weights: that each pass reads.
    """

    flop: float
    passes: int
    cached: float
    weights: int


def keep_likely(logits: Float[Tensor, "*m k"], top_k: int, top_p: float) -> Float[Tensor, "*m k"]:
    """Set the logits of unlikely codes to -inf: top-k, then top-p of what is left (arXiv 1904.09751).

    Top-p keeps the code that crosses p, hence at least one. Codes equal to the last one kept are kept too, so
    that the result does not depend on how a sort orders ties.
    """
    k = logits.shape[-1]
    limit = min(top_k, k) if top_k else k
    if limit == k and top_p >= 1:
        return logits
    likely = logits.topk(limit, dim=-1, sorted=top_p < 1).values  # the sort takes most of topk's time
    if top_p < 1:
        p = likely.softmax(-1)
        before = p.cumsum(-1, dtype=torch.float64) - p
        last = (before < top_p).sum(-1, keepdim=True).clamp(min=1) - 1
        least = likely.gather(-1, last)
    else:
        least = likely.amin(-1, keepdim=True)
    return logits.masked_fill(logits < least, -math.inf)


def draw(logits: Float[Tensor, "*m k"], noise: Float64[Tensor, "*m"], sampling: Sampling) -> Int64[Tensor, "*m"]:
    """One code per row by inversion: the first whose cumulated probability exceeds the uniform number.

    Inversion takes one number a row where the Gumbel trick takes one a code; the sum runs in float64, so
    that of 2^18 codes none is out of reach. A code of probability 0 is never drawn. NaN logits draw
    the last code: samplers refuse them by the sum of all their logits, without a device sync per step.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    at_once = max(1, (CHUNK if logits.device.type == "cpu" else GPU_CHUNK) // logits.shape[-1])
    parts = zip(logits.flatten(0, -2).split(at_once), noise.flatten().split(at_once), strict=True)
    return torch.cat([_invert(rows, u, sampling) for rows, u in parts]).view(noise.shape)


def _invert(logits: Float[Tensor, "m k"], noise: Float64[Tensor, " m"], sampling: Sampling) -> Int64[Tensor, " m"]:
    p = keep_likely(logits / sampling.temperature, sampling.top_k, sampling.top_p).softmax(-1)
    cumulated = p.cumsum(-1, dtype=torch.float64)
    target = noise[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, target, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
