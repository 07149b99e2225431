"""`tok train-proposal --val`: held-out tokens measured while a proposal network trains, by the measures of `tok eval`."""

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_captions import TEXT
from test_faults import draw, logged, made, refusal

from tokcli import loading
from tokcli.artifact.opening import open_artifact
from tokcli.artifact.weights import load_tensors, save_tensors
from tokcli.data.sources import open_source
from tokcli.data.sources.subset import evenly
from tokcli.measure.predicting import HeldOut, class_numbers, held_out_tokens, measure_proposal
from tokcli.proposals import PROPOSALS
from tokcli.stages import train_proposal


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


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the command warns of."""
    said: list[str] = []
    monkeypatch.setattr(train_proposal.log, "warning", lambda text, *values: said.append(text % values))
    return said


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
    lines = logged(measured)
    assert [line["step"] for line in lines if "val/proposal_ppl" in line] == [1, 2, 3]
    assert (plain / "model.safetensors").read_bytes() == (measured / "model.safetensors").read_bytes()


def test_what_cannot_be_measured_is_one_line(family: dict[str, Path], tmp_path: Path) -> None:
    command = [*training(family, "ar", "condition.name=class"), "--workspace", tmp_path]
    assert "Give --val" in refusal(*command, "--set", "train.eval_every=2")
    assert "another tokenizer's" in refusal(*command, "--val", family["others"])
    assert "is not of kind tokens. Got tokenizer" in refusal(*command, "--val", family["tokenizer"])
    assert not list(tmp_path.iterdir())


def test_tokens_of_which_a_bit_flipped_are_refused(family: dict[str, Path], tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(family["tokens"], tmp_path / "k"))
    file = damaged / "indices-00000.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    command = ["train-proposal", "--recipe", "toy/proposal-ar", "--workspace", tmp_path / "ws"]
    assert "indices-00000.npy" in refusal(*command, "--tokens", damaged)


def test_measuring_leaves_dropout_as_it_was() -> None:
    network = PROPOSALS["ar"](8, (1, 3), 2, width=8, depth=1, heads=1, mlp_width=8, dropout=0.5, head="tied")
    rows = torch.zeros(2, 3, dtype=torch.int64)
    batches = [HeldOut(torch.arange(2), rows, rows[:, 0])]
    found = [measure_proposal(network.train(), batches, torch.device("cpu"), mask_ratio=0.5) for _ in range(2)]
    assert found[0] == found[1] and found[0]["tokens"] == 6
    assert network.training


def test_classes_are_known_by_name_and_chosen_rows_are_spread() -> None:
    assert class_numbers(["ape", "cat"], ["cat", "emu"]).tolist() == [1, -1, -1]
    assert list(evenly(5, 9)) == [0, 1, 2, 3, 4] and list(evenly(9, 3)) == [0, 4, 8] and list(evenly(9, 1)) == [0]


def test_a_finished_network_says_what_it_was_measured_on(
    family: dict[str, Path], tmp_path: Path, warned: list[str]
) -> None:
    command = [*training(family, "ar", "condition.name=class"), "--out", tmp_path / "p"]
    measured = open_artifact(made(*command, "--val", family["held-out"]))
    assert measured.manifest["provenance"]["val"]["id"] == open_artifact(family["held-out"]).id
    made(*command, "--val", family["held-out"])
    assert not any("was measured on" in line for line in warned)
    made(*command, "--val", family["tokens"])
    assert f"it was measured on {open_artifact(family['held-out']).id}; tok eval measures it" in warned[-1]


def test_images_without_caption_are_given_zeros_not_the_towers_empty_text(family: dict[str, Path]) -> None:
    source = open_source(str(family["val"]), size=64)
    without = [not source.captions(i) for i in range(len(source))]
    assert any(without) and not all(without)
    tokenizer = loading.load_tokenizer(open_artifact(family["tokenizer"]), torch.device("cpu"))
    (batch,) = held_out_tokens(
        tokenizer, source, torch.device("cpu"), size=64, captions=lambda texts: torch.ones(len(texts), 2, 3)
    )
    assert [not rows.any() for rows in batch.condition] == without


def test_weights_of_another_tokenizers_network_are_no_start(
    family: dict[str, Path], tmp_path: Path, warned: list[str]
) -> None:
    start = made(*training(family, "ar", "condition.name=class"), "--out", tmp_path / "start")
    command = ["train-proposal", "--recipe", "toy/proposal-ar", "--init", start, "--workspace", tmp_path / "ws"]
    assert "Use two that share a tokenizer" in refusal(*command, "--tokens", family["others"])
    made(*command, "--tokens", family["held-out"])  # cat, dog, emu for ape, cat, dog
    assert "its classes are others" in warned[0]
    gpt2 = "proposal={name: gpt2, width: 16, depth: 1, heads: 2, mlp_width: 32, language: gpt2-medium}"
    weights = ["--language-weights", start / "model.safetensors", "--set", gpt2]
    given = refusal(*command, "--tokens", family["tokens"], *weights, code=2)
    assert "--init says where the weights come from" in given


def test_a_plan_refuses_what_the_training_would(family: dict[str, Path]) -> None:
    command = [*training(family, "ar", "expects.codebook_size=4096"), "--dry-run"]
    assert "expects.codebook_size: 4096, not" in refusal(*command)


def test_the_mode_is_the_recipes_and_contradicts_neither_way(family: dict[str, Path], tmp_path: Path) -> None:
    command = ["train-proposal", "--recipe", "toy/proposal-nar", "--tokens", family["tokens"]]
    assert "--mode ar: the recipe is of a network of another mode" in refusal(*command, "--mode", "ar")
    assert open_artifact(made(*command, "--out", tmp_path / "p")).facts["mode"] == "nar"


def test_language_weights_are_read_when_the_first_try_had_failed(family: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {"wte.weight": torch.randn(9, 16), "wpe.weight": torch.randn(300, 16)}
    for part, shape in {
        "attn.c_attn": (16, 48),
        "attn.c_proj": (16, 16),
        "mlp.c_fc": (16, 32),
        "mlp.c_proj": (32, 16),
    }.items():
        state |= {f"h.0.{part}.weight": torch.randn(shape), f"h.0.{part}.bias": torch.randn(shape[1])}
    for norm in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
        state |= {f"{norm}.weight": torch.randn(16), f"{norm}.bias": torch.randn(16)}
    weights = tmp_path / "gpt2.safetensors"
    save_tensors(weights, state)
    command = [
        "train-proposal", "--recipe", "toy/proposal-ar", "--tokens", family["tokens"], "--out", tmp_path / "p", "--set",
        "proposal={name: gpt2, width: 16, depth: 1, heads: 2, mlp_width: 32, language: gpt2-medium}",
        "--set", "train.steps=1", "--set", "optim={lr: 1.0e-9, betas: [0.9, 0.9], weight_decay: 0.0, warmup_steps: 0}",
    ]  # fmt: skip
    assert "holds no 65 position embeddings" in refusal(
        *command, "--language-weights", open_artifact(family["tokenizer"]).path / "model.safetensors"
    )
    gc.collect()  # in this process the first try still holds its lock
    made(*command, "--language-weights", weights)
    trained = load_tensors(tmp_path / "p" / "model.safetensors")
    learnt = next(t for name, t in trained.items() if "position" in name)
    assert torch.allclose(learnt.flatten(end_dim=-2), state["wpe.weight"][: learnt.shape[-2]], atol=1e-4)
