"""A network of which each rank keeps a part: FSDP2 (`torch.distributed.fsdp.fully_shard`)."""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from tokcli import distributed
from tokcli.device import keep_eager_parts
from tokcli.recipe.sections import Train
from tokcli.training.optimizers import is_muon, muon_step
from tokcli.training.parallel import own, swapped

INTERNAL = frozenset(vars(nn.Module()))


class Sharded:
    """A network of which each rank keeps a part of every parameter, its gradient and its optimizer state (FSDP2).

    What is trained is a second structure of modules with sharded parameters; the module that was given is left without numbers
    but in `whole`. Both have the same buffers. A quantizer, which changes its codes outside of the forward pass, belongs to both,
    with its parameters on every rank.

    Blocks move to the device one at a time, where each leaves this rank's part behind: no device holds the whole network.

    In bfloat16 each layer's weights are gathered rounded, and their gradients are added in float32; what is updated stays float32.

    Args: see `parallel.Replicated`.
    """

    def __init__(self, module: nn.Module, train: Train, device: torch.device) -> None:
        self.given = module
        shared: dict[int, Any] = {id(t): t for t in [*module.parameters(), *module.buffers()]}
        common = {name: part for name, part in module.named_modules() if getattr(part, "replicated", False)}
        shared |= {id(part): part for part in common.values()}
        # what else a module refers to, such as losses and an adversary, is no part of the structure: both have the same
        shared |= {id(v): v for part in module.modules() for name, v in vars(part).items() if name not in INTERNAL}
        self.module = copy.deepcopy(module, shared)
        self.forward: Callable[..., Any] = self.module
        replicated = {id(p) for part in common.values() for p in part.parameters()}
        self.replicated = [p for p in module.parameters() if id(p) in replicated]
        self._whole = {name: p for name, p in module.named_parameters() if id(p) not in replicated}
        self._bytes = {name: p.untyped_storage().nbytes() for name, p in self._whole.items()}
        for part in common.values():
            part.to(device)
        if self._whole:
            self._shard(train, list(common), device)

    def _shard(self, train: Train, common: list[str], device: torch.device) -> None:
        bf16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
        policy = bf16 if train.precision == "bfloat16" else MixedPrecisionPolicy(cast_forward_inputs=False)
        keys: dict[str, Any] = {"mesh": init_device_mesh(device.type, (dist.get_world_size(),)), "mp_policy": policy}
        hidden = {name: self.module.get_submodule(name) for name in common}
        for name in common:  # out of sight: what all ranks keep is not to be sharded
            parent, _, last = name.rpartition(".")
            self.module.get_submodule(parent)._modules[last] = nn.Identity()
        if train.compile:
            keep_eager_parts(self.module)
        for unit in reversed(units(self.module)):
            if train.compile:
                unit.compile()
            _into_parts(unit, keys)
        _into_parts(self.module, keys)
        for name, part in hidden.items():
            parent, _, last = name.rpartition(".")
            self.module.get_submodule(parent)._modules[last] = part

    def arrange(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Part groups of parameters into sharded ones and others, which no operation takes together."""
        for optimizer in optimizers:
            optimizer.param_groups[:] = [
                {**group, "params": part}
                for group in optimizer.param_groups
                for kind in (True, False)
                if (part := [p for p in group["params"] if isinstance(p, DTensor) is kind])
            ]

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer's update. Muon's products are of whole matrices, so that they round as one process's do."""
        if is_muon(optimizer):  # a rank keeps its part of the momentum, and gathers one matrix at a time
            muon_step(optimizer, own, _gathered, _part)
        else:
            optimizer.step()

    def like(self, p: Tensor, part: Tensor) -> Tensor:
        """See `parallel.Replicated`."""
        return like(p, part)

    @contextlib.contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """See `parallel.Replicated`."""
        if isinstance(self.module, FSDPModule):
            self.module.set_requires_gradient_sync(last)
        yield
        if last:
            for p in self.replicated:
                if p.grad is not None:
                    distributed.all_reduce_sum(p.grad).div_(dist.get_world_size())

    def clip(self, largest: float | None) -> Tensor:
        """See `parallel.Replicated`."""
        parts = [(p.grad, own(p.grad)) for p in self.module.parameters() if p.grad is not None]
        norm = self._norm(parts)
        if largest is not None:
            torch._foreach_mul_([part for _, part in parts], (largest / (norm + 1e-6)).clamp(max=1.0))  # as torch's own
        return norm

    def gradient_norms(self) -> dict[str, Tensor]:
        """See `parallel.Replicated`."""
        named = {name: p.grad for name, p in self.module.named_parameters() if p.grad is not None}
        return {name: self._norm([(grad, own(grad))]) for name, grad in named.items()}

    @staticmethod
    def _norm(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
        device = parts[0][1].device
        shards = [part for whole, part in parts if isinstance(whole, DTensor)]
        copies = [part for whole, part in parts if not isinstance(whole, DTensor)]
        squares = [torch.zeros((), device=device)] * 2
        for number, tensors in enumerate((shards, copies)):
            if tensors:
                squares[number] = torch.stack(torch._foreach_norm(tensors)).square().sum()
        return (distributed.all_reduce_sum(squares[0].clone()) + squares[1]).sqrt()

    @contextlib.contextmanager
    def whole(self, values: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """See `parallel.Replicated`."""
        live, values = dict(self.module.named_parameters()), values or {}
        for name, p in self._whole.items():
            p.untyped_storage().resize_(self._bytes[name])
            with torch.no_grad():
                p.copy_(_gathered(live[name], values.get(name)))
        try:
            with swapped(live, {name: v for name, v in values.items() if name not in self._whole}):
                yield
        finally:
            self._empty()

    def _empty(self) -> None:
        _free(self._whole.values())


def units(module: nn.Module) -> list[nn.Module]:
    """The parts that are gathered one at a time, outer ones first: members of lists and sequences that consist of layers themselves."""
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList | nn.Sequential)]
    members = [member for part in lists for member in part.children()]
    return [m for m in members if next(m.parameters(), None) is not None and next(m.children(), None) is not None]


def _into_parts(unit: nn.Module, keys: Mapping[str, Any]) -> None:
    """Leave a part of every parameter of a module that is whole yet, and no memory behind those that it had."""
    whole = [p for p in unit.parameters() if not isinstance(p, DTensor)]
    for p in whole:
        p.data = p.data.contiguous()  # FSDP takes no other order, such as channels last
    fully_shard(unit, **keys)
    _free(whole)


def _free(tensors: Iterable[Tensor]) -> None:
    for t in tensors:
        t.untyped_storage().resize_(0)


def _gathered(p: Tensor, part: Tensor | None) -> Tensor:
    """A whole parameter from the ranks' parts: its own, or those given."""
    if not isinstance(p, DTensor):
        return p if part is None else part
    whole: Tensor = (p if part is None else like(p, part)).full_tensor()  # type: ignore[attr-defined]
    return whole


def _part(p: Tensor, whole: Tensor) -> Tensor:
    """What this rank keeps of a whole parameter's update."""
    if not isinstance(p, DTensor):
        return whole
    return own(DTensor.from_local(whole, p.device_mesh, run_check=False).redistribute(placements=p.placements))


def like(p: Tensor, part: Tensor) -> Tensor:
    """This rank's part as a tensor over all ranks, sharded as the parameter; on the same memory."""
    if not isinstance(p, DTensor):
        return part
    return DTensor.from_local(part, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())
