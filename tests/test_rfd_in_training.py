"""The distance of reconstructions in a training's log: the number of `tok eval`, measured where it is asked for alone."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_evaluation_judging import CPU, SIZE, Copy, pictures, tiny  # noqa: F401  fixtures
from test_faults import draw, family, logged, made, refusal  # noqa: F401  the fixture
from torch import Tensor

from tokcli.artifact.manifest import identity
from tokcli.command.options import Options
from tokcli.command.weight_files import network_input
from tokcli.data.sources import open_source
from tokcli.evaluation.reconstructions import judge_decoder
from tokcli.evaluation.references import References
from tokcli.measure.decoding import Judges, measure_decoder
from tokcli.measure.extractors import Extractor


class Darker(Copy):
    """A decoder that darkens by a factor."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, images: Tensor) -> Tensor:
        return images * self.by


def test_it_is_the_number_of_the_evaluation(tmp_path: Path, pictures: Path) -> None:  # noqa: F811
    source = open_source(str(pictures), size=SIZE)
    references = References(Options(workspace=tmp_path / "ws"), [], 0, CPU)
    judged = judge_decoder(
        Copy(), Darker(0.5), source, CPU, size=SIZE, extractors=[tiny()],
        originals=lambda e: references.images(source, e, SIZE), roles=lambda e: (), maps=None, maps_roles=(), worst=0,
    )  # fmt: skip
    (wanted,) = [m.value for m in judged.measurements if m.name == "rfd_tiny"]
    found = measure_decoder(Copy(), Darker(0.5), source, CPU, size=SIZE, judges=Judges([tiny()]))
    assert found["rfd_tiny"] == pytest.approx(wanted, rel=1e-9) and wanted > 0
    assert "rfd_tiny" not in measure_decoder(Copy(), Darker(0.5), source, CPU, size=SIZE)


def test_originals_are_looked_at_once(pictures: Path) -> None:  # noqa: F811
    network = SimpleNamespace(asked=0, **{name: getattr(tiny().network, name) for name in ("sha256", "extractor_size")})

    def pooled(images: Tensor) -> Tensor:
        network.asked += 1
        return torch.stack([images.mean((1, 2, 3)), images[:, 0].amax((1, 2))], 1)

    network.pooled = pooled
    judges, source = Judges([Extractor("tiny", network, "tiny")]), open_source(str(pictures), size=SIZE)  # type: ignore[arg-type]
    counts, values = [], []
    for factor in (0.5, 0.5, 0.9):
        before = network.asked
        values.append(measure_decoder(Copy(), Darker(factor), source, CPU, size=SIZE, judges=judges)["rfd_tiny"])
        counts.append(network.asked - before)
    assert counts[0] == 2 * counts[1] == 2 * counts[2] and values[0] == values[1] != values[2]


def val_lines(folder: Path) -> list[dict[str, Any]]:
    lines = logged(folder)
    return [line for line in lines if any(name.startswith("val/") for name in line)]


@pytest.mark.parametrize("command", ["train-decoder", "train-tokenizer"])
def test_a_training_logs_it_where_it_is_asked_for(family: dict[str, Path], tmp_path: Path, command: str) -> None:  # noqa: F811
    recipe = {"train-decoder": "toy/decoder-conv", "train-tokenizer": "toy/tokenizer-vqgan"}[command]
    tokenizer = ["--tokenizer", family["tokenizer"]] if command == "train-decoder" else []
    tokenizer += ["--set", "decoder.widths=[16, 16, 8, 8, 8]"] if command == "train-decoder" else []
    for number in range(12):
        split = "val" if number % 3 == 0 else "train"
        draw(tmp_path / "photos" / split / ("cat", "dog")[number % 2] / f"{number}.png", shade=20 * number)
    brief = ["--set", "train.steps=2", "--set", "train.eval_every=1", "--set", "gan=null"]
    asked = ["--set", "train.eval_extractors=[efflite0]"]
    where = [*tokenizer, "--data", tmp_path / "photos" / "train", "--workspace", tmp_path]
    made_of = [made(command, "--recipe", recipe, *where, *brief, *more) for more in ([], asked)]
    plain, judged = (val_lines(folder) for folder in made_of)
    assert len(plain) == len(judged) == 1 and "val/rfd_efflite0" not in plain[0] and judged[0]["val/rfd_efflite0"] > 0
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in made_of]
    final, inputs = ([manifest[key] for manifest in manifests] for key in ("metrics", "inputs"))
    assert "rfd_efflite0" not in final[0] and final[1]["rfd_efflite0"] > 0
    assert inputs[1].keys() - inputs[0].keys() == {"weights-extractor-efflite0"}
    assert inputs[1]["weights-extractor-efflite0"] == network_input("efflite0")


def test_a_joint_tokenizer_without_pixels_refuses_it() -> None:
    said = refusal(
        "train-tokenizer", "--recipe", "openmoji/tokenizer-joint", "--data", "openmoji/train", "--dry-run",
        "--set", "train.eval_extractors=[efflite0]", "--set", "objective.pixels=0",
    )  # fmt: skip
    assert "train.eval_extractors: nothing makes pixels" in said


def test_an_unknown_extractor_is_refused_before_anything_is_read(family: dict[str, Path]) -> None:  # noqa: F811
    for command, recipe in (("train-decoder", "toy/decoder-conv"), ("train-tokenizer", "toy/tokenizer-vqgan")):
        tokenizer = ["--tokenizer", family["tokenizer"]] if command == "train-decoder" else []
        said = refusal(command, "--recipe", recipe, *tokenizer, "--dry-run", "--set", "train.eval_extractors=[efflite]")
        assert "extractor 'efflite': no such extractor. Did you mean 'efflite0'?" in said


def test_methods_that_make_no_pixels_have_no_such_key() -> None:
    said = refusal("train-tokenizer", "--recipe", "toy/tokenizer-vqkd", "--set", "train.eval_extractors=[efflite0]")
    assert "train.eval_extractors: unknown key" in said


def test_weights_of_inception_are_refused_where_no_judge_reads_them(family: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "weights.pth").write_bytes(b"0")
    flags = ["--tokenizer", family["tokenizer"], "--inception-weights", tmp_path / "weights.pth", "--dry-run"]
    assert "nothing here reads it" in refusal("train-decoder", "--recipe", "toy/decoder-conv", *flags)


def test_a_recipe_of_before_is_the_same_recipe() -> None:
    assert identity({"train": {"steps": 1, "eval_extractors": []}}) == {"train": {"steps": 1}}
