"""Networks without numbers: shapes and counts of parameters, in seconds and without memory."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

META = torch.device("meta")
FILLS = (
    "normal_",
    "uniform_",
    "trunc_normal_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "xavier_normal_",
    "xavier_uniform_",
)


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
