"""From logits to codes: a sampler's settings, filters and the draw; in float32 or wider."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from tokcli.errors import TokError
from tokcli.proposals.guidance import SCHEDULES, scales
from tokcli.registry import lookup

CHUNK = 1 << 16  # logits drawn from at once on a CPU: they and their sums in float64 stay in a core's cache
GPU_CHUNK = 1 << 24

COMMON_KEYS = frozenset(
    {"temperature", "top_k", "top_p", "cfg_scale", "cfg_schedule", "cfg_power", "cfg_done", "cfg_interval", "compile"}
)
"""The fields of `Sampling` that every network reads."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How codes are drawn from a proposal network.

    Args:
        temperature: logits are divided by it, at least 1e-6; 0 takes the likeliest code, of equals the first.
        top_k: keep the k most likely codes; 0, or at least the codebook's size, is off.
        top_p: then keep the fewest codes whose probability reaches p, in (0, 1]; 1 is off.
        cfg_scale: s in u + s (c - u) on logits, u without the condition (arXiv 2207.12598); 1 is off.
        cfg_schedule: how the scale moves over the steps, or over an autoregressive network's positions: one of SCHEDULES.
        cfg_power: of schedule power-cosine, over 0; a higher one starts later.
        cfg_done: which steps a moving schedule counts as done: those `before`, as published, or `after` this one.
        cfg_interval: shares of the way between which guidance acts, 0 <= from < to <= 1.
        steps: decoding steps of masked networks, 1 to the number of tokens.
        order: masked networks: which tokens come first, one of ORDERS.
        choice_temperature: order confidence: weight of noise in choosing positions, falling linearly to 0.
        compile: run the network by torch.compile, an autoregressive one's steps on a GPU as CUDA graphs; logits differ by rounding.

    Raises:
        TokError: a value outside its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    cfg_scale: float = 1.0
    cfg_schedule: str = "constant"
    cfg_power: float = 1.0
    cfg_done: Literal["before", "after"] = "before"
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    steps: int = 8
    order: str = "confidence"
    choice_temperature: float = 4.5
    compile: bool = False

    def __post_init__(self) -> None:
        for key in ("temperature", "cfg_scale", "choice_temperature"):
            value = getattr(self, key)
            if not (math.isfinite(value) and value >= 0):
                raise TokError(f"sample.{key}", "must be a finite number of at least 0", got=f"Got {value}")
        if 0 < self.temperature < 1e-6:  # float32 would divide by zero
            got = f"Got {self.temperature}"
            raise TokError("sample.temperature", "must be 0 (the likeliest code) or at least 1e-6", got=got)
        if not 0 < self.top_p <= 1:
            raise TokError("sample.top_p", "must be over 0 and at most 1 (1 = off)", got=f"Got {self.top_p}")
        if self.top_k < 0:
            raise TokError("sample.top_k", "must be at least 0 (0 = off)", got=f"Got {self.top_k}")
        if self.steps < 1:
            raise TokError("sample.steps", "must be at least 1", got=f"Got {self.steps}")
        lookup("cfg_schedule", SCHEDULES, self.cfg_schedule)
        if not 0 < self.cfg_power < math.inf:
            raise TokError("sample.cfg_power", "must be a finite number over 0", got=f"Got {self.cfg_power}")
        if not 0 <= self.cfg_interval[0] < self.cfg_interval[1] <= 1:
            got = f"Got {list(self.cfg_interval)}"
            raise TokError("sample.cfg_interval", "must be [from, to] with 0 <= from < to <= 1", got=got)

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
