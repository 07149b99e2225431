"""How ranks share one network in training: each has a copy (DDP), or keeps a part of it (FSDP2, see `tokcli.training.sharded`).

Everything but a training step (measuring, previews, saving weights) works with the whole network, and finds it as it built it.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tokcli import distributed
from tokcli.device import compile_module
from tokcli.recipe.sections import Train
from tokcli.training.optimizers import update

Whole = contextlib.AbstractContextManager[None]


class Replicated:
    """A network that each rank has a copy of: the module itself, under DDP where there are several ranks.

    Args:
        module: what is trained; its forward is a training step's.
        train: the recipe's section.
        device: where it is trained.
    """

    def __init__(self, module: nn.Module, train: Train, device: torch.device) -> None:
        self.module = module
        """Whose parameters are updated."""
        self.forward: Callable[..., Any] = compile_module(module) if train.compile else module
        if distributed.active():
            # broadcast_buffers would overwrite every rank's codebook by rank 0's and hide a missing all-reduce
            self.forward = DistributedDataParallel(self.forward, broadcast_buffers=False)  # type: ignore[arg-type]

    def arrange(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Make optimizers fit for parameters of this kind."""

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer's update."""
        update(optimizer)

    def like(self, p: Tensor, part: Tensor) -> Tensor:
        """What this rank keeps of a tensor over all ranks, as that tensor, for a parameter; on the same memory."""
        return part

    @contextlib.contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Around the forward and backward pass of a micro-batch; gradients are averaged over ranks in the last one of an update."""
        with contextlib.nullcontext() if last or not distributed.active() else self.forward.no_sync():  # type: ignore[attr-defined]
            yield

    def clip(self, largest: float | None) -> Tensor:
        """The norm of the whole gradient, which is scaled down to `largest` where it is above."""
        return torch.nn.utils.clip_grad_norm_(self.module.parameters(), largest or math.inf)

    def gradient_norms(self) -> dict[str, Tensor]:
        """The norm of each parameter's gradient, over all ranks."""
        return {name: p.grad.norm() for name, p in self.module.named_parameters() if p.grad is not None}

    def whole(self, values: Mapping[str, Tensor] | None = None) -> Whole:
        """A context in which the module that was given to the constructor holds all parameters: those given, by name, of which each
        rank has what it keeps (see `own`), or else the present ones. All ranks enter it.
        """
        return swapped(dict(self.module.named_parameters()), values or {})


def sharded(train: Train) -> bool:
    """Whether ranks keep parts of a network: as the recipe says, where there are ranks."""
    return train.parallel == "fsdp" and dist.is_available() and dist.is_initialized()


def built_on(train: Train, device: torch.device) -> torch.device:
    """Where a network is built that `network_of` gets: in the host's memory where ranks keep parts, so that no device holds it whole."""
    return torch.device("cpu") if sharded(train) else device


def network_of(module: nn.Module, train: Train, device: torch.device) -> Any:
    """The module, on the device that `built_on` said, as ranks share it: `Replicated`, or `Sharded`, which has the same methods."""
    if not sharded(train):
        return Replicated(module, train, device)
    from tokcli.training.sharded import Sharded  # takes as long to import as the rest of torch

    return Sharded(module, train, device)


def own(t: Tensor) -> Tensor:
    """What this rank keeps of a tensor; a view of it."""
    local = getattr(t.detach(), "to_local", None)  # not by class, which takes long to import
    return local() if local else t


@contextlib.contextmanager
def swapped(live: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Parameters hold other values inside, their own outside."""
    backup = {name: live[name].detach().clone() for name in values}
    _copy_into(live, values)
    try:
        yield
    finally:
        _copy_into(live, backup)


@torch.no_grad()
def _copy_into(live: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        live[name].copy_(value)
