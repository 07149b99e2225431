"""Captions through the real commands: tokens with captions, a text-conditional network, prompts in, pictures out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from test_faults import logged

from tokcli import pictures
from tokcli.artifact.opening import open_artifact
from tokcli.cli import cli
from tokcli.data.token_batches import TokenBatches
from tokcli.data.token_store import TokenStore
from tokcli.errors import TokError
from tokcli.loading import load_proposal
from tokcli.sampling.request import read_prompts

CAPTIONS = ["red heart", "flag: France", "cat with tears of joy", "ox"]
TEXT = "condition={name: text, length: 4}"


def run(*arguments: Any, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)], input=stdin)


def made(*arguments: Any, stdin: str | None = None) -> Path:
    result = run(*arguments, "--threads", 1, stdin=stdin)
    assert result.exit_code == 0, (result.output, result.exception)
    return Path(result.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Eight captioned photos of two classes; networks on captions (both modes), on classes and on nothing."""
    root = tmp_path_factory.mktemp("captioned")
    lines = []
    for number in range(8):
        file = root / "photos" / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(file)
        texts = [CAPTIONS[number % 4], f"number {number}"] if number else []  # the first has none
        lines.append(json.dumps({"key": f"{file.parent.name}/{file.name}", "captions": texts}))
    (root / "photos" / "captions.jsonl").write_text("\n".join(lines))
    data = ["--data", root / "photos", "--workspace", root]
    found = {"photos": root / "photos"}
    found["tokenizer"] = made("train-tokenizer", "--recipe", "toy/tokenizer-vqgan", *data, "--set", "train.steps=1")
    found["tokens"] = made("tokenize", "--recipe", "toy/tokens", "--tokenizer", found["tokenizer"], *data)
    for name, mode, condition in (
        ("ar", "ar", TEXT), ("nar", "nar", TEXT), ("class", "ar", "condition.name=class"), ("none", "ar", "condition.name=none"),
    ):  # fmt: skip
        found[name] = made("train-proposal", "--mode", mode, "--recipe", f"toy/proposal-{mode}", "--tokens", found["tokens"],
                           "--workspace", root, "--set", condition, "--set", "train.steps=2")  # fmt: skip
    return found


def sampling(family: dict[str, Path], name: str, out: Path) -> list[Any]:
    mode = "nar" if name == "nar" else "ar"
    return [
        "sample",
        "--recipe",
        f"toy/sample-{mode}",
        "--proposal",
        family[name],
        "--decoder",
        family["tokenizer"],
        "--out",
        out,
    ]


def test_facts_say_what_a_network_is_conditioned_on(family: dict[str, Path]) -> None:
    facts = {name: open_artifact(family[name]).facts for name in ("ar", "nar", "class", "none")}
    assert [f["condition"] for f in facts.values()] == ["text", "text", "class", "none"]
    assert [len(f["classes"]) for f in facts.values()] == [0, 0, 2, 0]


def test_the_log_tells_tokens_and_operations_per_second(family: dict[str, Path]) -> None:
    line = logged(family["none"])[-1]
    tokens = line["tokens_per_second"] / line["images_per_second"]
    network = load_proposal(open_artifact(family["none"]), torch.device("cpu"))
    assert tokens == pytest.approx(network.tokens, rel=0.01)
    assert line["flop_per_second"] / line["images_per_second"] == pytest.approx(network.flops(), rel=0.01)


@pytest.mark.parametrize("name", ["ar", "nar"])
def test_prompts_from_standard_input_are_those_of_a_file(family: dict[str, Path], tmp_path: Path, name: str) -> None:
    (tmp_path / "prompts.txt").write_text("red heart\nox\n")
    first = made(*sampling(family, name, tmp_path / "a"), "--prompts", tmp_path / "prompts.txt")
    second = made(*sampling(family, name, tmp_path / "b"), "--prompts", "-", stdin="red heart\nox\n")
    assert open_artifact(first).id == open_artifact(second).id and open_artifact(first).facts["number"] == 2
    assert open_artifact(first).recipe["sample"]["prompts"] == ["red heart", "ox"]


def test_captions_are_drawn_in_turn_and_n_says_how_many(family: dict[str, Path], tmp_path: Path) -> None:
    made(*sampling(family, "ar", tmp_path / "a"), "--prompts", "-", "-n", 5, stdin="red heart\nox\n")
    assert len(list((tmp_path / "a" / "images").glob("*.png"))) == 5


@pytest.mark.parametrize(
    ("name", "flags", "stdin", "code", "said"),
    [
        ("ar", ["--prompts", "-"], "", 1, "--prompts -: holds no captions"),
        ("ar", ["--prompts", "-"], "red heart\n\nox\n", 1, "--prompts -: line 2 holds no caption"),
        ("ar", ["--prompts", "-"], b"\xff\xfe\xff", 1, "--prompts -: is not UTF-8 text"),
        ("ar", ["--prompts", "none.txt"], None, 1, "--prompts none.txt: cannot be read"),
        ("ar", [], None, 1, "--prompts: the proposal network draws what captions say, and there are none"),
        ("class", ["--prompts", "-"], "ox\n", 1, "--prompts: the proposal network is conditioned on classes, not on captions"),
        ("none", ["--prompts", "-"], "ox\n", 1, "--prompts: the proposal network is conditioned on nothing"),
        ("ar", ["--classes", "cat"], None, 1, "--classes: the proposal network was trained without classes"),
        ("ar", ["--classes", "cat", "--prompts", "-"], "ox\n", 2, "--classes and --prompts are for different networks"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_a_network_is_one_line(
    family: dict[str, Path],
    tmp_path: Path,
    name: str,
    flags: list[str],
    stdin: str | bytes | None,
    code: int,
    said: str,
) -> None:
    result = run(*sampling(family, name, tmp_path / "out"), *flags, stdin=stdin)
    text = str(result.exception) if isinstance(result.exception, TokError) else result.output
    found = result.exception.exit_code if isinstance(result.exception, TokError) else result.exit_code
    assert said in text and found == code and not (tmp_path / "out").exists()


def test_tokens_without_captions_cannot_train_a_text_network(family: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "photos" / "cat" / "1.png")
    tokens = made("tokenize", "--recipe", "toy/tokens", "--tokenizer", family["tokenizer"], "--data", tmp_path / "photos",
                  "--out", tmp_path / "tokens")  # fmt: skip
    result = run(
        "train-proposal", "--recipe", "toy/proposal-ar", "--tokens", tokens, "--out", tmp_path / "p", "--set", TEXT
    )
    assert "its images have no captions" in str(result.exception)


def test_samples_stand_under_their_captions_in_a_report(
    family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = [
        made(*sampling(family, name, tmp_path / name), "--prompts", "-", "-n", 3, stdin="red heart\nox\n")
        for name in ("ar", "nar")
    ]
    sheets: list[tuple[list[str], list[str] | None]] = []
    draw = pictures.comparison_sheet
    told = lambda rows, *, column_labels=None, **_: sheets.append((list(rows), column_labels and list(column_labels)))  # noqa: E731
    monkeypatch.setattr(pictures, "comparison_sheet", lambda rows, **keys: told(rows, **keys) or draw(rows, **keys))
    said = ["--recipe", "toy/eval", "--set", "eval.extractors=[]", "--data", family["photos"]]
    report = made("eval", family["tokenizer"], *drawn, *said, "--out", tmp_path / "report")
    assert (
        [f"{open_artifact(drawn[0]).facts['name']} {mode}" for mode in ("AR", "NAR")],
        ["red heart", "ox"],
    ) in sheets
    assert (["original", "reconstruction"], ["cat", "dog"]) in sheets  # none stands under a class
    page = (report / "report.html").read_text()
    assert (report / "captions.png").is_file() and page.count("<b>Samples by caption</b>") == 1
    assert "Samples by class" not in page


def test_evaluation_reads_the_captions_of_held_out_images(family: dict[str, Path], tmp_path: Path) -> None:
    report = made(
        "eval", "--recipe", "toy/eval", family["ar"], "--data", family["photos"], "--out", tmp_path / "report"
    )
    (value,) = [r["metrics"]["proposal_ppl"] for r in json.loads((report / "metrics.json").read_text())["artifacts"]]
    assert 1 < value < 1e4


def test_which_caption_stands_for_an_image_depends_on_seed_and_epoch_alone(family: dict[str, Path]) -> None:
    store = TokenStore(family["tokens"])
    whole = TokenBatches(store, batch_size=4, seed=3, captions=True)
    first = [next(whole.from_step(step)) for step in range(40)]
    chosen: dict[int, set[int]] = {}
    for batch in first:
        for row, number in zip(batch.rows.tolist(), batch.captions.tolist(), strict=True):
            chosen.setdefault(row, set()).add(number)
    own = [set(range(*store.caption_ends[row : row + 2].tolist())) or {-1} for row in range(8)]
    assert [chosen[row] for row in range(8)] == own  # in 20 epochs each caption has its turn
    rank = TokenBatches(store, batch_size=4, seed=3, captions=True, rank=1, world=2)
    assert torch.equal(next(rank.from_step(7)).captions, first[7].captions[1::2])


def test_prompts_lose_the_space_around_them_only(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes("\ufeff  flag: Åland  \r\nox".encode())
    assert read_prompts(str(tmp_path / "p")) == ["flag: Åland", "ox"]
