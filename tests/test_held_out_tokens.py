"""`tok train-proposal --val`: held-out tokens measured while a proposal network trains, by the measures of `tok eval`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_captions import TEXT
from test_faults import draw, made, refusal

from tokcli import measure
from tokcli.artifact import open_artifact
from tokcli.data.subset import evenly


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tokens of sixteen photos of three classes, and of seven held-out ones of which a class is unknown and one missing."""
    root = tmp_path_factory.mktemp("held-out")
    for number in range(23):
        split, classes = ("train", ("ape", "cat", "dog")) if number < 16 else ("val", ("cat", "dog", "emu"))
        draw(root / "photos" / split / classes[number % 3] / f"{number}.png", shade=10 * number)
    for split in ("train", "val"):
        files = sorted((root / "photos" / split).glob("*/*.png"))
        lines = [
            {"key": f"{file.parent.name}/{file.name}", "captions": [f"a {file.parent.name}", f"number {file.stem}"]}
            for file in files[1:]  # the first has none
        ]
        (root / "photos" / split / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = {"root": root, "val": root / "photos" / "val"}
    for name, seed in (("tokenizer", 0), ("other", 1)):
        found[name] = made("train-tokenizer", "--recipe", "toy/tokenizer-vqgan", "--data", root / "photos" / "train",
                           "--seed", seed, "--set", "train.steps=1", "--out", root / name)  # fmt: skip
    tokenize = ["tokenize", "--recipe", "toy/tokens", "--set", "tokens.flip=false"]
    found["tokens"] = made(*tokenize, "--tokenizer", found["tokenizer"], "--out", root / "k")
    found["held-out"] = made(
        *tokenize, "--tokenizer", found["tokenizer"], "--data", found["val"], "--out", root / "val"
    )
    found["others"] = made(*tokenize, "--tokenizer", found["other"], "--data", found["val"], "--out", root / "others")
    return found


def training(family: dict[str, Path], mode: str, condition: str) -> list[Any]:
    return [
        "train-proposal",
        "--mode",
        mode,
        "--recipe",
        f"toy/proposal-{mode}",
        "--tokens",
        family["tokens"],
        "--set",
        condition,
    ]


@pytest.mark.parametrize("condition", ["condition.name=class", "condition.name=none", TEXT])
@pytest.mark.parametrize("mode", ["ar", "nar"])
def test_it_is_what_tok_eval_measures_of_the_finished_network(
    family: dict[str, Path], tmp_path: Path, mode: str, condition: str
) -> None:
    proposal = made(*training(family, mode, condition), "--val", family["held-out"], "--out", tmp_path / "p")
    report = made("eval", proposal, "--recipe", "toy/eval", "--set", "eval.extractors=[]", "--set", "eval.probe_images=0",
                  "--data", family["val"], "--out", tmp_path / "report")  # fmt: skip
    names = ("proposal_ppl", "token_accuracy") if mode == "ar" else ("masked_ce_0.50", "masked_accuracy_0.50")
    found = open_artifact(proposal).manifest["metrics"]
    (said,) = [a["metrics"] for a in json.loads((report / "metrics.json").read_text())["artifacts"]]
    for name in names:
        assert found[name] == pytest.approx(said[name], rel=1e-5)


def test_the_log_tells_it_every_so_many_steps_and_training_is_the_same(family: dict[str, Path], tmp_path: Path) -> None:
    command = training(family, "ar", "condition.name=class")
    plain = made(*command, "--out", tmp_path / "plain")
    measured = made(
        *command, "--val", family["held-out"], "--set", "train.eval_every=1", "--out", tmp_path / "measured"
    )
    lines = [json.loads(line) for line in (measured / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val/proposal_ppl" in line] == [1, 2, 3]
    assert (plain / "model.safetensors").read_bytes() == (measured / "model.safetensors").read_bytes()


def test_what_cannot_be_measured_is_one_line(family: dict[str, Path], tmp_path: Path) -> None:
    command = [*training(family, "ar", "condition.name=class"), "--workspace", tmp_path]
    assert "give --val" in refusal(*command, "--set", "train.eval_every=2")
    assert "another tokenizer's" in refusal(*command, "--val", family["others"])
    assert "wanted: tokens" in refusal(*command, "--val", family["tokenizer"])
    assert not list(tmp_path.iterdir())


def test_measuring_leaves_dropout_as_it_was() -> None:
    class Network(torch.nn.Module):
        def nll(self) -> None: ...

        def judged(self, indices: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            assert not self.training
            return torch.ones(indices.shape), torch.ones(indices.shape)

    network, rows = Network().train(), torch.zeros(2, 3, dtype=torch.int64)
    batches = [measure.HeldOut(torch.arange(2), rows, rows[:, 0])]
    assert measure.proposal(network, batches, torch.device("cpu"), mask_ratio=0.5)["tokens"] == 6  # type: ignore[arg-type]
    assert network.training


def test_classes_are_known_by_name_and_chosen_rows_are_spread() -> None:
    assert measure.class_numbers(["ape", "cat"], ["cat", "emu"]).tolist() == [1, -1, -1]
    assert list(evenly(5, 9)) == [0, 1, 2, 3, 4] and list(evenly(9, 3)) == [0, 4, 8] and list(evenly(9, 1)) == [0]
