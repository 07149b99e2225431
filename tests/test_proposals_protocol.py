"""A proposal network is whatever keeps the protocol: a recurrent one, known to these tests alone, goes through every command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_docs_extending import shown
from test_faults import draw, logged, made, refusal
from torch import Tensor

from tokcli.artifact.opening import open_artifact
from tokcli.errors import TokError
from tokcli.proposals import PROPOSALS, Sampling, TextCondition

Recurrent: Any = shown("## A proposal network", "PROPOSALS")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROPOSALS, "gru", Recurrent)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer with its decoder, tokens of eight photos of two classes, and a recurrent network that learned them."""
    root = tmp_path_factory.mktemp("recurrent")
    for number in range(8):
        draw(root / "photos" / ("cat", "dog")[number % 2] / f"{number}.png", shade=30 * number)
    brief = ["--set", "train.steps=1", "--set", "loss={l1: 1.0}", "--out", root / "t"]
    t = made("train-tokenizer", "--recipe", "toy/tokenizer-vqgan", "--data", root / "photos", *brief)
    k = made("tokenize", "--recipe", "toy/tokens", "--tokenizer", t, "--out", root / "k")
    train = ["train-proposal", "--recipe", "toy/proposal-ar", "--tokens", k, "--val", k, "--set", "train.steps=30"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(PROPOSALS, "gru", Recurrent)
        p = made(*train, "--set", "proposal={name: gru, width: 16}", "--set", "optim.lr=3e-2", "--out", root / "p")
    return {"root": root, "tokenizer": t, "tokens": k, "proposal": p}


def sample(family: dict[str, Path], *more: Any) -> list[Any]:
    networks = ["--proposal", family["proposal"], "--decoder", family["tokenizer"], "--workspace", family["root"]]
    return ["sample", "--recipe", "toy/sample-ar", *networks, "-n", 4, *more]


def test_it_trains(family: dict[str, Path]) -> None:
    lines = logged(family["proposal"])
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert open_artifact(family["proposal"]).facts["mode"] == "ar"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_samples_and_a_picture_is_of_its_seed_and_number_alone(family: dict[str, Path], precision: str) -> None:
    precise = ["--set", f"sample.precision={precision}"]
    whole, pieces = (
        np.load(made(*sample(family, *precise, "--batch-size", size)) / "indices-00000.npy") for size in (4, 3)
    )
    assert whole.shape == (4, 64) and np.array_equal(whole, pieces) and len(np.unique(whole, axis=0)) == 4


def test_it_is_judged_as_it_judged_itself(family: dict[str, Path], tmp_path: Path) -> None:
    report = made("eval", family["proposal"], "--recipe", "toy/eval", "--set", "eval.extractors=[]", "--set", "eval.probe_images=0",
                  "--data", family["root"] / "photos", "--out", tmp_path / "report")  # fmt: skip
    (found,) = json.loads((report / "metrics.json").read_text())["artifacts"]
    measured = open_artifact(family["proposal"]).manifest["metrics"]
    assert found["metrics"]["proposal_ppl"] == pytest.approx(measured["proposal_ppl"], rel=1e-5)


def test_it_completes_a_picture(family: dict[str, Path]) -> None:
    photo = family["root"] / "photos" / "cat" / "0.png"
    a = open_artifact(made(*sample(family, "--edit", photo, "--keep-top", 4)))
    drawn = np.array(a.facts["edit"]["windows"][0]["drawn"], dtype=bool)
    found = np.load(a.path / "indices-00000.npy")
    assert (found[:, ~drawn] == found[0, ~drawn]).all() and len(np.unique(found[:, drawn], axis=0)) == 4


def test_what_it_does_not_read_is_refused(family: dict[str, Path]) -> None:
    assert "sample.compile" in refusal(*sample(family, "--compile"))
    assert "sample.steps" in refusal(*sample(family, "--steps", 4))


def test_a_dry_run_counts_it(family: dict[str, Path]) -> None:
    made(*sample(family, "--dry-run"))
    made(
        "train-proposal",
        "--recipe",
        "toy/proposal-ar",
        "--tokens",
        family["tokens"],
        "--set",
        "proposal={name: gru, width: 16}",
        "--dry-run",
    )


def test_captions_are_refused_by_a_network_that_reads_none() -> None:
    with pytest.raises(TokError, match="does not read captions"):
        Recurrent(8, (2, 2), 2, TextCondition(length=4), width=4)


class Watched(Recurrent):
    """It keeps whether it was run under autocast."""

    def draw_tokens(self, *given: Any) -> Tensor:
        self.rounded = torch.is_autocast_enabled("cpu")
        return super().draw_tokens(*given)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_tokens_are_drawn_in_the_precision_that_is_asked_for(precision: Any) -> None:
    network = Watched(8, (2, 2), 2, width=4)
    network.to_precision(precision)
    network.generate(torch.tensor([0, 1]), torch.arange(2))
    assert network.rounded == (precision == "bfloat16") and not torch.is_autocast_enabled("cpu")


def test_what_it_takes_is_two_operations_a_weight_and_token_twice_with_guidance() -> None:
    network = Recurrent(8, (2, 2), 2, width=4)
    weights = sum(p.numel() for p in network.parameters())
    assert network.drawing(Sampling(), 3) == (2 * weights * 3, 3, 0.0, weights)
    assert network.drawing(Sampling(cfg_scale=2.0), 3).flop == 2 * weights * 6
    assert network.judging_flops() == 2 * weights * 4 and network.flops() == 6 * weights * 4
