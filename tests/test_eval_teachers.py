"""Feature losses of `tok eval`: against the weights that a tokenizer was trained with, and no others."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from tokcli.cli import cli

NAME = "timm:test_vit"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def weights(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from PIL import Image

    folder = tmp_path_factory.mktemp("teachers")
    for number in range(8):
        file = folder / "photos" / ("train", "val")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((64, 64), 60).convert("RGB").save(file)
    one, two = weights(folder / "1.safetensors", 1), weights(folder / "2.safetensors", 2)
    ran = run("train-tokenizer", "--recipe", "toy/tokenizer-vqkd", "--data", folder / "photos" / "train", "--workspace", folder,
              "--teacher", NAME, "--teacher-weights", one)  # fmt: skip
    assert ran.exit_code == 0, ran.output
    return {"tokenizer": ran.stdout.strip(), "one": one, "two": two, "folder": folder}


def feature_losses(trained: dict[str, Any], *flags: object) -> tuple[set[str], str]:
    ran = run("eval", trained["tokenizer"], "--recipe", "toy/eval", "--workspace", trained["folder"], *flags)
    assert ran.exit_code == 0, ran.output
    (found,) = json.loads((Path(ran.stdout.strip()) / "metrics.json").read_text())["artifacts"]
    return {m["metric"] for m in found["measurements"] if m["metric"].startswith("feature_loss")}, ran.stderr


@pytest.mark.parametrize("given", ["{}", f"{NAME}={{}}"])
def test_the_weights_of_the_training_give_a_feature_loss(given: str, trained: dict[str, Any]) -> None:
    assert feature_losses(trained, "--teacher-weights", given.format(trained["one"]))[0] == {"feature_loss"}


def test_other_weights_give_none_and_say_so(trained: dict[str, Any]) -> None:
    found, said = feature_losses(trained, "--teacher-weights", trained["two"])
    assert not found and "its teacher had the weights with sha256" in said


def test_each_teacher_has_its_file(trained: dict[str, Any]) -> None:
    flags = ("--teacher-weights", trained["two"], "--teacher-weights", f"{NAME}={trained['one']}")
    assert feature_losses(trained, *flags)[0] == {"feature_loss"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["clip=FILE"], "--teacher-weights clip=FILE: nothing here reads it"),
        (["gone"], "File 'gone' does not exist"),
        (["clip=FILE", "clip=FILE"], "clip is given twice"),
    ],
)
def test_a_file_that_is_of_no_teacher_here_is_refused(given: list[str], said: str, trained: dict[str, Any]) -> None:
    flags = [part for text in given for part in ("--teacher-weights", text.replace("FILE", str(trained["one"])))]
    ran = run("eval", trained["tokenizer"], "--recipe", "toy/eval", "--workspace", trained["folder"], *flags)
    assert ran.exit_code in (1, 2) and said.replace("FILE", str(trained["one"])) in f"{ran.stderr} {ran.exception}"


def test_a_damaged_file_that_was_named_stops_the_evaluation(trained: dict[str, Any]) -> None:
    bad = trained["folder"] / "bad.safetensors"
    bad.write_bytes(b"no weights")
    ran = run(
        "eval", trained["tokenizer"], "--recipe", "toy/eval", "--workspace", trained["folder"], "--teacher-weights", bad
    )
    assert ran.exit_code == 1 and "bad.safetensors" in str(ran.exception)
