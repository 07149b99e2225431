"""The watch over losses and gradients: an update that is not finite is never applied, and no GPU is waited for to know it.

On a CPU a step is checked before anything changes. On a GPU the result of the check stays there: from the first step that is not finite on,
nothing changes any more, and whoever logs or saves looks at it. A file beside the last good state holds what repeats the step; `tok show` prints it.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokcli import distributed
from tokcli.data.randomness import seed_of
from tokcli.files import write_text
from tokcli.limits import read_json
from tokcli.terminal import printable


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

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        own: Callable[[Any], Any],
        update: Callable[[torch.optim.Optimizer], None],
    ) -> None:
        """An optimizer's update; what is fused leaves it out by itself.

        Args:
            own: what this rank keeps of a tensor.
            update: makes it.
        """
        if not self.later or optimizer.defaults.get("fused"):
            optimizer.found_inf = self.stopped  # type: ignore[attr-defined]
            update(optimizer)
            return
        before = [own(t) for t in _state(optimizer)]
        with self.guarding([own(t) for group in optimizer.param_groups for t in group["params"]] + before):
            update(optimizer)
            if not before:  # made in this step, from zeros
                for t in map(own, _state(optimizer)):
                    t.copy_(torch.where(self.first_bad < 0, t, torch.zeros_like(t)))


def _state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [t for each in optimizer.state.values() for t in each.values() if isinstance(t, Tensor)]


EVIDENCE = "nonfinite.json"
SHOWN = 8  # gradients that `tok show` prints


def dropout_seed(seed: int, rank: int, step: int) -> int:
    """Of torch's global generator in a step of a rank."""
    return seed_of(seed, "dropout", rank, step)


def write_evidence(folder: Path, found: NonFinite, seed: int, numbers: Tensor) -> None:
    """Write what repeats the step; all ranks call it.

    Args:
        seed: of the recipe.
        numbers: of this rank's samples in the data.
    """
    samples = distributed.all_gather_rows(numbers.cpu().flatten()[:, None])
    if not distributed.is_main():
        return
    world = distributed.world_size()
    facts = {
        "step": found.step + 1,
        "seed": seed,
        "dropout_seeds": [dropout_seed(seed, rank, found.step) for rank in range(world)],
        "samples": [part.tolist() for part in samples[:, 0].view(world, -1)],
        "gradient_norms": {
            name: norm if math.isfinite(norm) else str(norm) for name, norm in (found.norms or {}).items()
        },
    }
    write_text(folder / EVIDENCE, json.dumps(facts, indent=2) + "\n")


def show_evidence(folder: Path) -> list[str]:
    """The file of a folder as lines of text; none where there is none, or none that can be read."""
    if not (folder / EVIDENCE).is_file():  # a pipe would be waited for
        return []
    try:
        facts = read_json(folder / EVIDENCE)
        norms: Mapping[str, Any] = facts["gradient_norms"]
        worst = sorted(norms, key=lambda name: -abs(norms[name]) if isinstance(norms[name], float) else -math.inf)
        bad = sum(isinstance(norm, str) for norm in norms.values())
        lines = [f"not finite: the loss or a gradient of step {facts['step']}"]
        for rank, (seed, samples) in enumerate(zip(facts["dropout_seeds"], facts["samples"], strict=True)):
            lines.append(f"  rank {rank}: dropout seed {seed}, samples {', '.join(map(str, samples))}")
        lines.append(f"  norms of gradients ({bad} of {len(norms)} not finite):")
        lines += [
            f"    {name:<40}{norms[name] if isinstance(norms[name], str) else f'{norms[name]:.4g}'}"
            for name in worst[:SHOWN]
        ]
        return [*map(printable, lines), ""]  # nothing vouches for this file
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
