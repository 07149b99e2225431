"""How exactly float32 is computed: judges in float32 proper, training by tensor cores where a GPU has them.

A command begins in float32 proper (`workspace.session`); a training step, and what reads or draws many images, takes `tensor_cores`.
"""

import contextlib
import functools
import logging
import platform
from collections.abc import Iterator, Sequence
from typing import Any

import torch

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


def emulated_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is slower than float32, for want of instructions of its own: on x86 CPUs without AVX-512."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    return device.type == "cpu" and x86 and "AVX512" not in torch.backends.cpu.get_cpu_capability()


@functools.cache
def tell_if_emulated(key: str, device: torch.device, instead: str = "float32") -> None:
    """Say once that a recipe's bfloat16 is emulated here; changing it would change what is computed, so that is the user's choice.

    Args:
        key: of the recipe, such as `train.precision`.
        instead: a value of that key without bfloat16.
    """
    if emulated_bfloat16(device):
        log.warning(
            "%s: this CPU has no instructions for bfloat16 (AVX-512) and is slow in it. --set %s=%s is faster, "
            "and makes another artifact",
            key,
            key,
            instead,
        )


def settings() -> dict[str, str]:
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
