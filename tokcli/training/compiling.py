"""torch.compile: what runs a step faster, checked before it is relied on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokcli.errors import TokError


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
