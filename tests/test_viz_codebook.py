"""`tok viz-codebook` as a user runs it: one tokenizer, two beside each other, images without classes."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from tokcli.cli import cli
from tokcli.stages.show import verify

SMALL = ("--recipe", "toy/viz", "--set", "viz.perplexity=2", "--set", "viz.points=20", "--set", "viz.columns=2")
PICTURES = {"atlas", "places", "purity", "ranking", "usage"}


def made(*arguments: Any) -> Path:
    result = CliRunner().invoke(cli, [*map(str, arguments), "--threads", "1"])
    assert result.exit_code == 0, (result.output, result.exception)
    return Path(result.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """Six photos of two classes, and two tokenizers that were trained on them for a step."""
    root = tmp_path_factory.mktemp("viz")
    for number in range(6):
        file = root / "photos" / "train" / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 32), (40 * number, 255 - 40 * number, 90)).save(file)
    train = ("train-tokenizer", "--recipe", "toy/tokenizer-vqgan", "--set", "train.steps=1", "--workspace", root / "ws")
    seeds = [made(*train, "--data", root / "photos" / "train", "--seed", seed) for seed in (0, 1)]
    return root, seeds


def names(folder: Path, kind: str) -> set[str]:
    return {file.stem for file in folder.glob(f"*.{kind}")}


@pytest.mark.slow
def test_two_tokenizers_are_drawn_from_the_same_images_with_numbers_beside_every_picture(ready: Any) -> None:
    root, (first, second) = ready
    found = made("viz-codebook", "--tokenizer", first, "--against", second, *SMALL, "--out", root / "two")
    for folder in (found, found / "against"):
        assert names(folder, "csv") == PICTURES - {"ranking"} | {"map", "patches", "images"}
        assert names(folder, "png") - {"map"} == PICTURES
    assert (found / "images.csv").read_bytes() == (found / "against" / "images.csv").read_bytes()
    manifest = json.loads((found / "manifest.json").read_text())
    assert set(manifest["inputs"]) == {"data", "tokenizer", "against"} and len(manifest["metrics"]) == 2
    assert manifest["files"]["against/usage.csv"]["payload"] and not manifest["files"]["page.sha256"]["payload"]
    assert "files are whole" in verify(found)
    data = json.loads((found / "page" / "data.js").read_text(encoding="utf-8")[len("window.TOK = ") : -2])
    titles = [book["name"] for book in data["books"]]
    assert titles == list(manifest["metrics"]) and titles[0] != titles[1]  # told apart though both are called vqgan


@pytest.mark.slow
def test_the_usage_on_the_page_is_that_of_the_tables(ready: Any) -> None:
    root, (first, _) = ready
    found = made("viz-codebook", "--tokenizer", first, *SMALL, "--out", root / "one")
    with open(found / "usage.csv", newline="", encoding="utf-8") as file:
        counts = [int(row["count"]) for row in csv.DictReader(file)]
    with open(found / "places.csv", newline="", encoding="utf-8") as file:
        placed = [(int(row["index"]), int(row["tokens"])) for row in csv.DictReader(file)]
    assert [sum(n for i, n in placed if i == code) for code in range(len(counts))] == counts
    (image, *_) = csv.DictReader((found / "images.csv").open(encoding="utf-8"))
    assert image["label"] == "cat" and image["key"].endswith("0.png")


@pytest.mark.slow
def test_images_without_classes_have_everything_but_purity(ready: Any) -> None:
    root, (first, _) = ready
    flat = root / "flat"
    flat.mkdir()
    for file in (root / "photos").rglob("*.png"):
        (flat / file.name).write_bytes(file.read_bytes())
    found = made("viz-codebook", "--tokenizer", first, "--data", flat, *SMALL, "--out", root / "flatviz")
    assert names(found, "png") - {"map"} == PICTURES - {"purity"} and (found / "index.html").is_file()
