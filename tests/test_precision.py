"""float32 proper inside `full_precision`, the process's own settings after it, and which
parts of a command compute how.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_faults import made

from tokcli import device
from tokcli.measure.extractors import features
from tokcli.models import ConvEncoder


@pytest.fixture(autouse=True)
def reduced() -> Iterator[None]:
    """A process that has TF32 and bfloat16 products switched on, as `--device cuda` has TF32."""
    cudnn = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = cudnn


def settings() -> list[str]:
    return [torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision]


def test_what_is_said_of_the_settings_is_so() -> None:
    assert list(device.float32_settings().values()) == settings() == ["tf32", "tf32"]
    with device.full_precision(torch.device("cpu")):
        assert list(device.float32_settings().values()) == settings() == ["ieee", "ieee"]


def test_tensor_cores_are_used_inside_and_not_after() -> None:
    with device.full_precision(torch.device("cpu")):
        with device.tensor_cores():
            assert settings() == ["tf32", "tf32"]
        assert settings() == ["ieee", "ieee"]


def test_products_and_convolutions_are_float32_inside_and_as_before_after_it() -> None:
    assert settings() == ["tf32", "tf32"]
    with device.full_precision(torch.device("cpu")):
        assert settings() == ["ieee", "ieee"]
    assert settings() == ["tf32", "tf32"]
    assert torch.get_float32_matmul_precision() == "medium" and torch.backends.cudnn.allow_tf32


def test_autocast_is_off_inside_and_an_error_restores_the_settings() -> None:
    x = torch.randn(4, 4)
    with pytest.raises(ValueError), torch.autocast("cpu", torch.bfloat16), device.full_precision(x.device):
        assert settings() == ["ieee", "ieee"] and (x @ x).dtype == torch.float32
        raise ValueError
    assert settings() == ["tf32", "tf32"]


def test_a_training_step_and_bulk_work_use_tensor_cores_and_judges_float32_proper(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[bool, ...]] = set()
    forward = ConvEncoder.forward
    listening = lambda self, x: seen.add((self.training, *settings())) or forward(self, x)  # noqa: E731
    monkeypatch.setattr(ConvEncoder, "forward", listening)
    small = ["--set", "gan=null", "--set", "train.steps=1", "--set", "data.size=16", "--set", "encoder.image_size=16"]
    told = ["--recipe", "toy/tokenizer-vqgan", "--set", "train.batch_size=2", "--data", photos / "train"]
    t = made("train-tokenizer", *told, *small, "--out", tmp_path / "t")
    assert seen == {(True, "tf32", "tf32"), (False, "ieee", "ieee")}  # a step, and its measuring on held-out images
    seen.clear()
    made("tokenize", "--recipe", "toy/tokens", "--tokenizer", t, "--out", tmp_path / "k")
    assert seen == {(False, "tf32", "tf32")}
    seen.clear()
    recipe = ["--recipe", "toy/eval", "--set", "eval.extractors=[]", "--data", photos / "val"]
    report = made("eval", t, *recipe, "--out", tmp_path / "r")
    assert seen == {(False, "ieee", "ieee")} and settings() == ["tf32", "tf32"]
    assert json.loads((report / "metrics.json").read_text())["protocol"]["precision"] == {"judges": "float32"}
    assert "precision: judges float32" in (report / "report.md").read_text()


def test_an_extractor_sees_images_in_float32_proper() -> None:
    seen = []
    extractor = lambda images: seen.append(settings()) or images.mean((2, 3))  # noqa: E731
    list(features([torch.zeros(2, 3, 4, 4, dtype=torch.uint8)], extractor))
    assert seen == [["ieee", "ieee"]]


def test_a_command_leaves_no_autocast_region_open(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within one, torch would keep rounded copies of weights from step to step."""
    nested: list[int] = []
    forward = ConvEncoder.forward

    def listening(self: ConvEncoder, x: torch.Tensor) -> torch.Tensor:
        nested.append(torch.autocast_increment_nesting() - 1)
        torch.autocast_decrement_nesting()
        return forward(self, x)

    monkeypatch.setattr(ConvEncoder, "forward", listening)
    small = ["--set", "gan=null", "--set", "train.steps=1", "--set", "data.size=16", "--set", "encoder.image_size=16"]
    told = ["--recipe", "toy/tokenizer-vqgan", "--set", "train.batch_size=2", "--data", photos / "train"]
    made("train-tokenizer", *told, *small, "--out", tmp_path / "t")
    assert set(nested) == {0}


@pytest.mark.parametrize(("machine", "capability", "slow"), [
    ("x86_64", "AVX2", True), ("AMD64", "DEFAULT", True), ("x86_64", "AVX512", False), ("aarch64", "DEFAULT", False),
])  # fmt: skip
def test_bfloat16_on_a_cpu_without_instructions_for_it_is_told_once(
    machine: str, capability: str, slow: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(device.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    device.tell_if_emulated.cache_clear()
    for _ in range(2):
        device.tell_if_emulated("train.precision", torch.device("cpu"))
    assert caplog.text.count("--set train.precision=float32") == slow
    assert not device.emulated_bfloat16(torch.device("meta"))
    device.tell_if_emulated.cache_clear()


@pytest.mark.parametrize(("capability", "hip", "slow"), [
    ((7, 5), None, True), ((6, 1), None, True), ((8, 0), None, False), ((12, 0), None, False), ((7, 5), "7.1", False),
])  # fmt: skip
def test_gpus_before_ampere_emulate_bfloat16(
    capability: tuple[int, int], hip: str | None, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.emulated_bfloat16(cuda) == "" and device.usual_device().type == "cpu"  # a dry run elsewhere
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert device.usual_device().type == "cuda"
    assert device.emulated_bfloat16(cuda) == (
        "this GPU has no instructions for bfloat16 (Ampere and later have)" if slow else ""
    )
