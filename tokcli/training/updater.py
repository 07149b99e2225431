"""Gradient updates: optimizers, learning-rate schedule, clipping, accumulation, averaged weights, mixed precision, DDP."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tokcli import distributed
from tokcli.device.precision import autocast, tell_if_emulated
from tokcli.errors import TokError
from tokcli.recipe.sections import Optim, Train
from tokcli.training.average import Average
from tokcli.training.compiling import compile_module
from tokcli.training.optimizers import build_optimizers


class NonFinite(Exception):
    """The loss or the gradient of a step is NaN or infinite on some rank; nothing was updated."""


def learning_rate(step: int, optim: Optim, steps: int) -> float:
    """The rate of update `step` (from 0): linear warm-up to lr, then constant, or a half cosine down to min_lr at `steps`."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    progress = (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps)
    return optim.min_lr + (optim.lr - optim.min_lr) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


class Updater:
    """Updates one module's trainable parameters; a training step calls `update` once.

    Args:
        module: its forward returns a dict of terms, of which "loss" is minimised. Scalar terms are means over the
            micro-batch, so that micro-batches and ranks of equal size add up to the whole batch.
        optim, train: the recipe's sections.
        device: where the module is.
        where: the name of section `optim`, for messages.

    Raises:
        TokError: the batch cannot be divided by ranks and micro-batches, or the network has nothing for the optimizer.
    """

    def __init__(
        self, module: nn.Module, optim: Optim, train: Train, device: torch.device, where: str = "optim"
    ) -> None:
        pieces = distributed.world_size() * train.accumulate
        if train.batch_size % pieces:
            raise TokError(
                "train.batch_size",
                f"cannot be divided by {distributed.world_size()} ranks x {train.accumulate} micro-batches",
                got=str(train.batch_size),
            )
        if train.precision == "bfloat16":
            tell_if_emulated("train.precision", device)
        self.module, self.optim, self.train, self.device = module, optim, train, device
        self.optimizers = build_optimizers(module, optim, device, where)
        self.average = Average(module, train.ema) if train.ema else None
        compiled: Callable[..., Any] = compile_module(module) if train.compile else module
        self.forward = compiled
        if distributed.active():
            # broadcast_buffers would overwrite every rank's codebook by rank 0's and hide a missing all-reduce
            self.forward = DistributedDataParallel(compiled, broadcast_buffers=False)  # type: ignore[arg-type]

    def update(self, step: int, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """One optimizer update on this rank's part of a batch: `gradients`, then `apply`."""
        terms = self.gradients(step, batch)
        self.apply(step)
        return terms

    def gradients(self, step: int, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """The gradients of one update, clipped and checked; nothing is changed yet.

        Args:
            step: the number of updates before this one.
            batch: tensors with the same leading size, the module's arguments.

        Returns:
            The module's scalar terms as means over the micro-batches of this rank, its per-sample ones (those with a
            batch axis) joined, all detached, and "gradient_norm".

        Raises:
            NonFinite: on every rank at once.
        """
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        found: dict[str, list[Tensor]] = {}
        size = len(batch[0]) // self.train.accumulate
        for number in range(self.train.accumulate):
            micro = [t[number * size : (number + 1) * size] for t in batch]
            last = number == self.train.accumulate - 1
            hold = contextlib.nullcontext() if last or not distributed.active() else self.forward.no_sync()  # type: ignore[attr-defined]
            with hold:
                with autocast(self.device, self.train.precision):
                    terms = self.forward(*micro)
                (terms["loss"] / self.train.accumulate).backward()
            for name, value in terms.items():
                found.setdefault(name, []).append(value.detach())
        totals = {name: torch.cat(v) if v[0].ndim else torch.stack(v).mean() for name, v in found.items()}
        # gradients are already equal on all ranks here; a loss is a rank's own, but its sum is the same on all: they agree
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.optim.clip or math.inf)
        if not torch.isfinite(norm + distributed.all_reduce_sum(totals["loss"].float().clone())):
            raise NonFinite
        return totals | {"gradient_norm": norm.detach()}

    def apply(self, step: int) -> None:
        """Change the parameters by the gradients at hand, at the learning rate of update `step`; Muon's is as much larger all along."""
        rate = learning_rate(step, self.optim, self.train.steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * (optimizer.defaults["lr"] / self.optim.lr) * group.get("lr_scale", 1.0)
            optimizer.step()
        if self.average:
            self.average.update(step)

    def weights(self) -> contextlib.AbstractContextManager[None]:
        """A context in which the module holds the weights meant for use: the averages, if the recipe asks for them."""
        return self.average.applied() if self.average else contextlib.nullcontext()

    def _named(self) -> Iterator[tuple[str, torch.optim.Optimizer]]:
        return zip(("optimizer", "muon"), self.optimizers, strict=False)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        return {
            "module": self.module.state_dict(),
            **{name: optimizer.state_dict() for name, optimizer in self._named()},
            "average": self.average.shadow if self.average else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.module.load_state_dict(state["module"])
        for name, optimizer in self._named():
            optimizer.load_state_dict(state[name])
        if self.average:
            for name, value in state["average"].items():
                self.average.shadow[name].copy_(value)
