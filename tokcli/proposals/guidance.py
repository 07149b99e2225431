"""Classifier-free guidance (arXiv 2207.12598) on logits, and how strong it is at each step of decoding.

Early tokens fix the layout and late ones the detail, so that one scale for all trades variety for fidelity more than it must.
`power-cosine` is RAR's schedule over positions (arXiv 2411.00776, official code), MDT's over diffusion time (arXiv 2303.14389, section
3.4); `linear` is Muse's (arXiv 2301.00704, section 2.7), which says that it starts low and rises linearly and not from where to
where: here as in 1d-tokenizer's public code. Both are functions of the share of steps done before: the first step has
no guidance and the last not quite the whole scale. An interval switches guidance off outside of it (arXiv 2404.07724).
"""

import math
from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from torch import Tensor

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
    return (
        conditional
        if isinstance(scale, float | int) and scale == 1
        else unconditional + scale * (conditional - unconditional)
    )
