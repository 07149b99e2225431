"""float32 proper inside `full_precision`, by torch's newer and older switches, and the process's own settings after it."""

from collections.abc import Iterator

import pytest
import torch

from tokcli import precision

BOTH = [False, *([True] if precision.PER_OPERATION else [])]


@pytest.fixture(autouse=True, params=BOTH, ids=lambda new: "per operation" if new else "per library")
def reduced(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """A process that has TF32 and bfloat16 products switched on, as `--device cuda` has TF32."""
    monkeypatch.setattr(precision, "PER_OPERATION", request.param)
    cudnn = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = cudnn


def settings() -> list[str]:
    if precision.PER_OPERATION:
        return [torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision]
    products = {"highest": "ieee"}.get(torch.get_float32_matmul_precision(), "tf32")
    return [products, "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"]


def test_products_and_convolutions_are_float32_inside_and_as_before_after_it() -> None:
    assert settings() == ["tf32", "tf32"]
    with precision.full_precision(torch.device("cpu")):
        assert settings() == ["ieee", "ieee"]
    assert settings() == ["tf32", "tf32"]
    assert torch.get_float32_matmul_precision() == "medium" and torch.backends.cudnn.allow_tf32


def test_autocast_is_off_inside_and_an_error_restores_the_settings() -> None:
    x = torch.randn(4, 4)
    with pytest.raises(ValueError), torch.autocast("cpu", torch.bfloat16), precision.full_precision(x.device):
        assert settings() == ["ieee", "ieee"] and (x @ x).dtype == torch.float32
        raise ValueError
    assert settings() == ["tf32", "tf32"]
