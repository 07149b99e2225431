"""Gradient updates: optimizers, learning-rate schedule, clipping, accumulation, averaged weights, mixed precision, DDP."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokcli import distributed
from tokcli.device import autocast, tell_if_emulated
from tokcli.errors import TokError
from tokcli.recipe.sections import Optim, Train
from tokcli.training.finite import Watch
from tokcli.training.optimizers import build_optimizers
from tokcli.training.parallel import Whole, network_of, own


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
        device: where the module is trained. It is on the device that `parallel.built_on` says.
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
                next="Choose a multiple of their product: --set train.batch_size=N",
            )
        if train.precision == "bfloat16":
            tell_if_emulated("train.precision", device)
        self.module, self.optim, self.train, self.device = module, optim, train, device
        self.watch = Watch(device, later=device.type == "cuda")
        self.parallel = network_of(module, train, device)
        self.optimizers = build_optimizers(self.parallel.module, optim, device, where)
        self.parallel.arrange(self.optimizers)
        live = {name: own(p) for name, p in self.parallel.module.named_parameters() if p.requires_grad}
        self.average = Average(live, train.ema) if train.ema else None

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
            NonFinite: on every rank at once; on a GPU, `look` does.
        """
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        found: dict[str, list[Tensor]] = {}
        size = len(batch[0]) // self.train.accumulate
        for number in range(self.train.accumulate):
            micro = [t[number * size : (number + 1) * size] for t in batch]
            last = number == self.train.accumulate - 1
            with self.parallel.micro_batch(last):
                with autocast(self.device, self.train.precision):
                    terms = self.parallel.forward(*micro)
                (terms["loss"] / self.train.accumulate).backward()
            for name, value in terms.items():
                found.setdefault(name, []).append(value.detach())
        joined = {name: v[0] if len(v) == 1 else torch.cat(v) for name, v in found.items() if v[0].ndim}
        totals = {n: joined[n] if n in joined else torch.stack(v).mean() for n, v in found.items()}
        # gradients are those of all ranks here; a loss is a rank's own, but its sum is the same on all: they agree
        norm = self.parallel.clip(self.optim.clip)
        total = norm + distributed.all_reduce_sum(totals["loss"].float().clone())
        self.watch.note(step, total, self.parallel.gradient_norms)
        return totals | {"gradient_norm": norm.detach()}

    def apply(self, step: int) -> None:
        """Change the parameters by the gradients at hand, at the learning rate of update `step`; Muon's is as much larger all along."""
        rate = learning_rate(step, self.optim, self.train.steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * (optimizer.defaults["lr"] / self.optim.lr) * group.get("lr_scale", 1.0)
            self.watch.step(optimizer, own, self.parallel.step)
        if self.average:
            self.average.update(step, self.watch.stopped)

    def look(self) -> None:
        """Wait for the device and look whether all updates were finite; all ranks call it.

        Raises:
            NonFinite: one was not; nothing has changed since the update before it.
        """
        self.watch.look()

    def guarding(self, module: nn.Module) -> contextlib.AbstractContextManager[None]:
        """A context in which what a module learns besides gradients is undone where the update was not finite."""
        return self.watch.guarding([*module.parameters(), *module.buffers()])

    def weights(self) -> Whole:
        """A context in which the module holds the weights meant for use: the averages, if the recipe asks for them; all ranks enter it."""
        return self.parallel.whole(self.average.shadow if self.average else None)

    def whole(self) -> Whole:
        """A context in which the module holds the weights as they are, also where ranks keep parts of them; all ranks enter it."""
        return self.parallel.whole()

    def memory(self) -> dict[str, int]:
        """Bytes that this rank keeps between two steps: of parameters, of the optimizers' state, of averages."""
        state = [t for optimizer in self.optimizers for each in optimizer.state.values() for t in each.values()]
        kept = {
            "parameters": [own(p) for p in self.parallel.module.parameters()],
            "optimizer": [own(t) for t in state if isinstance(t, Tensor)],
            "averages": list(self.average.shadow.values()) if self.average else [],
        }
        return {name: sum(t.numel() * t.element_size() for t in tensors) for name, tensors in kept.items()}

    def saved_bytes(self) -> int:
        """Of the saved state, over all ranks, once the optimizers have state: two numbers of a parameter, Muon's one."""
        weights = sum(t.nbytes for t in self.module.state_dict().values())
        moments = [(1 + (kind == "optimizer")) * p.nbytes for kind, o in self._named() for p in _trained(o)]
        averages = [p.nbytes for o in self.optimizers for p in _trained(o)] if self.average else []
        return weights + sum(moments) + sum(averages)

    def _named(self) -> Iterator[tuple[str, torch.optim.Optimizer]]:
        return zip(("optimizer", "muon"), self.optimizers, strict=False)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, of a network that each rank has a copy of."""
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

    @property
    def in_parts(self) -> bool:
        """Whether the state is saved as `tensors`, of which each rank writes its part: as the recipe says, also on one process."""
        return self.train.parallel == "fsdp"

    def tensors(self) -> dict[str, Tensor]:
        """The same as tensors by name, each as far as this rank keeps it."""
        named = dict(self.parallel.module.named_parameters())
        found = {f"module/{name}": t for name, t in self.parallel.module.state_dict().items()}
        for kind, optimizer in self._named():
            for name, p in named.items():
                found |= {f"{kind}/{name}/{key}": t for key, t in optimizer.state.get(p, {}).items()}
        averages = self.average.shadow if self.average else {}
        return found | {f"average/{name}": self.parallel.like(named[name], part) for name, part in averages.items()}

    def load_tensors(self, folder: Path, prefix: str) -> None:
        """Continue from a saved state of any number of ranks."""
        from tokcli.training import shards  # takes as long to import as the rest of torch

        named = dict(self.parallel.module.named_parameters())
        saved = {
            name.removeprefix(prefix): entry for name, entry in shards.contents(folder).state_dict_metadata.items()
        }
        for kind, optimizer in self._named():
            optimizer.state.clear()
            for name, entry in saved.items():
                if name.startswith(f"{kind}/"):
                    parameter, _, key = name.removeprefix(f"{kind}/").rpartition("/")
                    optimizer.state[named[parameter]][key] = _empty(named[parameter], entry)
        shards.read(folder, {f"{prefix}{name}": t for name, t in self.tensors().items()})


def _trained(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _empty(p: Tensor, entry: Any) -> Tensor:
    """Room for a tensor of an optimizer's state: sharded as the parameter where it has its shape, else whole."""
    if entry.size == p.shape:
        return torch.zeros_like(p, dtype=entry.properties.dtype, requires_grad=False)
    return torch.zeros(entry.size, dtype=entry.properties.dtype, device=p.device)


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
