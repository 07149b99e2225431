"""From logits to codes: a sampler's settings, classifier-free guidance, filters and the draw; in float32 or wider.

Guidance (arXiv 2207.12598) may differ from step to step: early tokens fix the layout and late ones the detail, so that one scale for all
trades away more variety for fidelity than it must. `power-cosine` is RAR's schedule over positions (arXiv 2411.00776, official code), MDT's over
diffusion time (arXiv 2303.14389, section 3.4). `linear` is Muse's (arXiv 2301.00704, section 2.7), which says that it starts low and rises
linearly, but not from where to where: here as in 1d-tokenizer's public code. Both are functions of the share of steps done before: the
first step has no guidance and the last not quite the whole scale. An interval switches guidance off outside of it (arXiv 2404.07724).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from tokcli.errors import TokError
from tokcli.recipe.sample_options import SamplerOptions, declared

SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda done, power: 1.0,
    "linear": lambda done, power: done,
    "power-cosine": lambda done, power: (1 - math.cos(math.pi * done**power)) / 2,
}
"""Name -> share of the guidance, of the share of steps done before this one, in [0, 1), and the power."""


def scales(
    steps: int,
    scale: float,
    schedule: str = "constant",
    power: float = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
    done: Literal["before", "after"] = "before",
) -> list[float]:
    """The guidance scale of each step: 1 + share * (scale - 1), and 1 (off) where a step's middle is outside the interval.

    Args:
        steps: of decoding; the number of tokens for autoregressive networks.
        scale: at full strength; 1 is off.
        schedule: one of SCHEDULES.
        power: of power-cosine; a higher one starts later.
        interval: shares of the way from where and until where guidance acts.
        done: which steps a moving schedule counts as done: those before this one, as published, or this one too.
    """
    ahead = int(done == "after")
    share, (start, stop) = SCHEDULES[schedule], interval
    return [
        1 + share((step + ahead) / steps, power) * (scale - 1) if start <= (step + 0.5) / steps < stop else 1.0
        for step in range(steps)
    ]


def guide(logits: Float[Tensor, "bb *m k"], scale: float | Float[Tensor, "b *m 1"]) -> Float[Tensor, "b *m k"]:
    """u + scale (c - u), for a doubled batch of the rows c with their condition, then the rows u without."""
    conditional, unconditional = logits.chunk(2)
    if isinstance(scale, float | int) and scale == 1:
        return conditional
    return unconditional + scale * (conditional - unconditional)


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
                raise TokError(
                    f"sample.{key}",
                    f"must be {fault}",
                    got=str(getattr(self, key)),
                    next=f"Choose a value in its range: --set sample.{key}=VALUE",
                )

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
