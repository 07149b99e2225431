"""The watch over losses and gradients: an update that is not finite is never applied, and no GPU is waited for to know it.

On a CPU a step is looked at before anything changes. On a GPU its verdict stays there: from the first step that is not finite on,
nothing changes any more, and whoever logs or saves looks.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


class NonFinite(Exception):
    """The loss or the gradient of a step is NaN or infinite on some rank; neither it nor any step after it was applied.

    Args:
        step: the number of updates before it.
        norms: of each parameter's gradient, by name, where they are at hand.
    """

    def __init__(self, step: int, norms: dict[str, float] | None = None) -> None:
        super().__init__(step)
        self.step, self.norms = step, norms


class Watch:
    """Remembers the first step that was not finite.

    Args:
        device: where losses are.
        later: look only when asked to.
    """

    def __init__(self, device: torch.device, later: bool) -> None:
        self.later = later
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=device)

    def note(self, step: int, total: Tensor, norms: Callable[[], dict[str, Tensor]]) -> None:
        """Take in a step's sum of what must be finite, the same on every rank.

        Args:
            norms: of each parameter's gradient; all ranks call it.

        Raises:
            NonFinite: unless whoever watches looks later.
        """
        if self.later:
            found = torch.where(torch.isfinite(total), -1, step)
            self.first_bad = torch.where(self.first_bad < 0, found, self.first_bad)
        elif not torch.isfinite(total):
            raise NonFinite(step, {name: float(norm) for name, norm in norms().items()})

    def again(self) -> None:
        """Forget what was noted, and look at each step at once from here on."""
        self.later = False
        self.first_bad.fill_(-1)

    def look(self) -> None:
        """Wait for the device and look.

        Raises:
            NonFinite: a step was not.
        """
        if self.later and (step := int(self.first_bad)) >= 0:
            raise NonFinite(step)

    @property
    def stopped(self) -> Tensor | None:
        """1.0 from the first step on that was not finite, else 0.0; on the device. None where each step is looked at at once."""
        return (self.first_bad >= 0).float() if self.later else None

    @contextlib.contextmanager
    def guarding(self, tensors: Iterable[Tensor]) -> Iterator[None]:
        """Undo what changes inside, from the first step on that was not finite."""
        if not self.later:
            yield
            return
        kept = [(t, t.detach().clone()) for t in tensors]
        yield
        with torch.no_grad():
            for t, before in kept:
                t.copy_(torch.where(self.first_bad < 0, t, before))

    def step(self, optimizer: torch.optim.Optimizer, own: Callable[[Any], Any]) -> None:
        """An optimizer's update; what is fused leaves it out by itself.

        Args:
            own: what this rank keeps of a tensor.
        """
        if not self.later or optimizer.defaults.get("fused"):
            optimizer.found_inf = self.stopped  # type: ignore[attr-defined]
            optimizer.step()
            return
        before = [own(t) for t in _state(optimizer)]
        with self.guarding([own(t) for group in optimizer.param_groups for t in group["params"]] + before):
            optimizer.step()
            if not before:  # made in this step, from zeros
                for t in map(own, _state(optimizer)):
                    t.copy_(torch.where(self.first_bad < 0, t, torch.zeros_like(t)))


def _state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [t for each in optimizer.state.values() for t in each.values() if isinstance(t, Tensor)]
