"""Linear layers on CPUs, their weights laid out once for all steps of all decoding loops.

PyTorch hands float32 products to MKL, which lays the weights out anew each time: most of the work where the rows are few.
oneDNN's kernels read a layout made beforehand. Its operators are private ones of PyTorch; where they are missing, nothing changes.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

FEWEST = 2  # rows: with one, reading the weights is all there is to do


@contextlib.contextmanager
def packed(network: nn.Module, rows: int) -> Iterator[None]:
    """Within it, the network's linear layers without bias multiply by packed copies of their weights.

    Args:
        network: run without gradients, in float32 or under autocast to bfloat16.
        rows: of the products that are to be fast.
    """
    layers: list[nn.Linear] = []
    rounded = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    dtype = torch.bfloat16 if rounded else torch.float32
    if rows >= FEWEST and _available(dtype):
        layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
        layers = [layer for layer in layers if layer.bias is None and layer.weight.device.type == "cpu"]
    for layer in layers:
        layer.forward = _packed(layer, dtype, rows)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


_KEPT: "WeakKeyDictionary[nn.Linear, tuple[Any, Callable[[Tensor], Tensor]]]" = WeakKeyDictionary()


def _packed(layer: nn.Linear, dtype: torch.dtype, rows: int) -> Callable[[Tensor], Tensor]:
    """The layer's product, packed anew only where its weight, the type or the rows are others than the last time."""
    weight = layer.weight.detach()
    key = weight.data_ptr(), layer.weight._version, dtype, rows
    if layer not in _KEPT or _KEPT[layer][0] != key:
        _KEPT[layer] = key, _product(weight.to(dtype), rows)
    return _KEPT[layer][1]


def _product(weight: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
    kept, dtype = torch.ops.mkldnn._reorder_linear_weight(weight, rows), weight.dtype

    def product(x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(dtype), kept, None, "none", [], "")
        return out

    return product


@functools.cache
def _available(dtype: torch.dtype) -> bool:
    """Whether the operators are there for this type and do what they are taken for; bfloat16's are on some CPUs only."""
    x, weight = torch.ones(2, 1, 8, dtype=dtype), torch.arange(24).view(3, 8).to(dtype)
    try:
        return torch.equal(_product(weight, 2)(x), x @ weight.T)
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
