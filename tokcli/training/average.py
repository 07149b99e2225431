"""Averaged weights: an exponential moving average."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Average:
    """Exponential moving average of parameters by name, with a warm-up of the decay: min(decay, (1+t)/(10+t))."""

    def __init__(self, live: Mapping[str, Tensor], decay: float) -> None:
        self.decay, self.live = decay, dict(live)
        self.shadow = {name: p.detach().clone() for name, p in self.live.items()}

    @torch.no_grad()
    def update(self, step: int, stopped: Tensor | None = None) -> None:
        """Move the averages towards the live parameters, unless `stopped` holds a 1.0."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        shadow, live = list(self.shadow.values()), list(self.live.values())
        if stopped is None:
            torch._foreach_lerp_(shadow, live, weight)
        else:
            torch._foreach_lerp_(shadow, live, [weight * (1 - stopped)] * len(live))
