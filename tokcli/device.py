"""Where and how exactly numbers are computed: float32 proper and tensor cores, torch.compile, the meta device, cores and memory of the CPU.

A command begins in float32 proper (`command.session`); a training step, and what reads or draws many images, takes `tensor_cores`.
"""

import contextlib
import ctypes
import functools
import logging
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tokcli.errors import TokError

log = logging.getLogger("tok")


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Run float32 products and convolutions in float32 proper on this kind of device: without TF32, bfloat16 or autocast, whatever the
    process has switched on; settings are restored at the end.

    In reduced precision the search for the nearest code errs for 1 to 6 % of features.
    """
    with float32_proper(), torch.autocast(device.type, enabled=False):
        yield


def float32_proper() -> contextlib.AbstractContextManager[None]:
    """Compute float32 products and convolutions in float32 proper on all devices; settings are restored at the end."""
    return _switched([*_gpu(), *_cpu()], "ieee")


@contextlib.contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Autocast to bfloat16, or nothing at float32. All of this package's bfloat16 begins here (a test says so).

    torch keeps the rounded copy of each weight until the outermost autocast region ends, one that is switched off included. A training
    step inside such a region would go on with the weights of the first step, so the copies are dropped here at both ends.

    Args:
        device: whose products and convolutions.
        precision: "float32" or "bfloat16".
    """
    if precision == "float32":
        yield
        return
    torch.clear_autocast_cache()
    try:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            yield
    finally:
        torch.clear_autocast_cache()


@contextlib.contextmanager
def tensor_cores() -> Iterator[None]:
    """Let GPUs round the factors of float32 products and convolutions to TF32 (10 bits), several times as fast; settings are restored
    at the end. CPUs compute as before.
    """
    with _switched(_gpu(), "tf32"):
        yield


def emulated_bfloat16(device: torch.device) -> str:
    """Why bfloat16 is slower than float32 on this device, which has no instructions for it; empty where it has.

    torch.cuda.is_bf16_supported counts emulation as support.
    """
    if device.type == "cuda" and torch.cuda.is_available():
        old = not torch.version.hip and torch.cuda.get_device_capability(device)[0] < 8
        return "this GPU has no instructions for bfloat16 (Ampere and later have)" if old else ""
    if device.type == "cpu" and platform.machine() in ("x86_64", "AMD64"):
        new = "AVX512" in torch.backends.cpu.get_cpu_capability()
        return "" if new else "this CPU has no instructions for bfloat16 (AVX-512)"
    return ""


def usual_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@functools.cache
def tell_if_emulated(key: str, device: torch.device) -> None:
    """Say once that a recipe's bfloat16 is emulated here; changing it would change what is computed, so that is the user's choice.

    Args:
        key: of the recipe, such as `train.precision`.
    """
    if why := emulated_bfloat16(device):
        log.warning("%s: %s and is slow in it. --set %s=float32 is faster, and makes another artifact", key, why, key)


def float32_settings() -> dict[str, str]:
    """What GPUs compute float32 products and convolutions in just now, by torch's names: "ieee" is float32 proper."""
    products, convolutions = (setting.fp32_precision for setting in _gpu()[:2])
    return {"cuda.matmul": products, "cudnn.conv": convolutions}


def _gpu() -> list[Any]:
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return [cuda.matmul, cudnn.conv, cudnn.rnn]  # type: ignore[attr-defined]


def _cpu() -> list[Any]:
    mkldnn = torch.backends.mkldnn
    return [mkldnn.matmul, mkldnn.conv, mkldnn.rnn]  # type: ignore[attr-defined]


@contextlib.contextmanager
def _switched(switches: Sequence[Any], wanted: str) -> Iterator[None]:
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = wanted
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


META = torch.device("meta")
FILLS = tuple("normal_ uniform_ trunc_normal_ kaiming_normal_ kaiming_uniform_ xavier_normal_ xavier_uniform_".split())


class _Unfilled(TorchFunctionMode):
    """Random starts are left out: on the meta device they would change nothing, but import torch._dynamo, two seconds of CPU."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in FILLS:
            filled = args[0] if args else (kwargs or {})["tensor"]
            if filled.is_meta:  # any other is filled: some of torch's loops go on until the numbers are good
                return filled
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def on_meta() -> Iterator[torch.device]:
    """Within it, tensors are made on the meta device: shapes, but no numbers."""
    with META, _Unfilled():
        yield META


GROUPS = Path("/sys/fs/cgroup")  # where Linux shows control groups
OWN_GROUP = Path("/proc/self/cgroup")  # where it names this process's


def cores() -> int:
    """The cores that this process is bound to, or fewer where its control group has a quota; at least 1."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(bound, int(_quota(GROUPS, OWN_GROUP))))


def _quota(groups: Path, own: Path) -> float:
    """Cores of the narrowest quota on the way from this process's group to the root; as many as there are where none has one."""
    name = "/"
    with contextlib.suppress(OSError):
        name = next((line[3:].strip() for line in own.read_text().splitlines() if line.startswith("0::")), "/")
    inner = groups / name.strip("/")
    folders = [inner, *(folder for folder in inner.parents if folder.is_relative_to(groups))]
    found = [float(os.cpu_count() or 1)]
    for folder in folders:
        with contextlib.suppress(OSError, ValueError):  # version 2: "max 100000" or "150000 100000"
            quota, period = (folder / "cpu.max").read_text().split()
            found.append(float(quota) / float(period))
    with contextlib.suppress(OSError, ValueError):  # version 1: -1 for none
        quota, period = ((groups / "cpu" / f"cpu.cfs_{part}_us").read_text() for part in ("quota", "period"))
        found += [float(quota) / float(period)] if float(quota) > 0 else []
    return min(found)


@functools.cache
def _trim_of_libc() -> Callable[[int], Any]:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc
        return lambda padding: None


def freed(made: Tensor, large: int) -> Tensor:
    """The same tensor; where it has more than `large` numbers, what making it has freed goes back to the system: glibc would keep it for
    this thread, and the next one that makes such a tensor has its own.
    """
    if made.numel() > large:
        _trim_of_libc()(0)
    return made


def compile_module(module: nn.Module) -> Callable[..., Any]:
    """torch.compile, with the parts that are marked `eager` left as they are."""
    keep_eager_parts(module)
    compiled: Callable[..., Any] = torch.compile(module)  # type: ignore[assignment]
    return compiled


def keep_eager_parts(module: nn.Module) -> None:
    """Leave the parts that are marked `eager` out of what is compiled from now on."""
    for part in module.modules():
        if getattr(part, "eager", False):
            part.forward = torch.compiler.disable(part.forward)  # type: ignore[method-assign]


def check_compiler(where: str, device: torch.device) -> None:
    """Compile a small thing, before anything is loaded: only that says whether compilers are there and work.

    Args:
        where: the flag that asks for it.

    Raises:
        TokError: they do not.
    """
    small: Callable[[Tensor], Tensor] = torch.compile(lambda x: x + 1)
    try:
        small(torch.zeros(1, device=device))
    except RuntimeError as error:  # torch's own kinds are private ones
        said = [line for line in str(error).splitlines() if line.strip() and not line.startswith("backend=")]
        needed = "a C++ compiler (Debian: g++)" if device.type == "cpu" else "a C compiler (Debian: gcc) and Triton"
        raise TokError(
            where,
            "PyTorch cannot compile here",
            why=said[0] if said else type(error).__name__,
            next=f"Install {needed}, or leave it out",
        ) from None
