"""float32 in full: products and convolutions without TF32, bfloat16 or autocast, whatever the process has switched on.

torch 2.9 and later have a switch per backend and operation; before that there was one for products and one for cuDNN.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

PER_OPERATION = hasattr(torch.backends.cuda.matmul, "fp32_precision")


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Run float32 products and convolutions in float32 proper on this kind of device; settings are restored at the end.

    In reduced precision the search for the nearest code errs for 1 to 6 % of features.
    """
    with _per_operation() if PER_OPERATION else _per_library(), torch.autocast(device.type, enabled=False):
        yield


@contextlib.contextmanager
def _per_operation() -> Iterator[None]:
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    settings: list[Any] = [cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


@contextlib.contextmanager
def _per_library() -> Iterator[None]:
    products, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = cudnn
