"""Averaged weights: an exponential moving average, in whose place a network can be measured."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average of a module's trainable parameters, with a warm-up of the decay: min(decay, (1+t)/(10+t))."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.shadow = {name: p.detach().clone() for name, p in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the live parameters."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.shadow.values()), list(self.live.values()), weight)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The module holds the averages inside this context, its live parameters outside."""
        backup = {name: p.detach().clone() for name, p in self.live.items()}
        self._copy(self.shadow)
        try:
            yield
        finally:
            self._copy(backup)

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor]) -> None:
        for name, p in self.live.items():
            p.copy_(values[name])
