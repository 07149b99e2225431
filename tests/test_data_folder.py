"""Folders of images, labels files, captions, COCO's layout."""

import json
import os
import pickle
from pathlib import Path

import pytest
from PIL import Image

from tokcli.command.data import held_out_beside
from tokcli.data.decode import BadImage
from tokcli.data.sources import open_source, sibling
from tokcli.errors import TokError


def draw(root: Path, *names: str, colour: int = 0) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (colour, 0, 0)).save(root / name)


def keys(source) -> list[str]:  # type: ignore[no-untyped-def]
    return [source.key(i) for i in range(len(source))]


def test_classes_are_the_ranks_of_sorted_folder_names(tmp_path: Path) -> None:
    draw(tmp_path, "zebra/1.png", "ant/9.jpg", "ant/1.png", "Bee/x/y/3.png")
    source = open_source(str(tmp_path), size=8)
    assert source.classes == ["Bee", "ant", "zebra"]
    assert keys(source) == ["Bee/x/y/3.png", "ant/1.png", "ant/9.jpg", "zebra/1.png"]
    assert [source.label(i) for i in range(4)] == [0, 1, 1, 2]


def test_numbered_class_folders_are_ranked_as_names(tmp_path: Path) -> None:
    draw(tmp_path, "10/a.png", "2/a.png")
    assert open_source(str(tmp_path), size=8).classes == ["10", "2"]


def test_a_flat_folder_has_no_classes(tmp_path: Path) -> None:
    draw(tmp_path, "b.png", "a.JPG", ".hidden.png")
    source = open_source(str(tmp_path), size=8)
    assert (keys(source), source.classes, source.label(0)) == (["a.JPG", "b.png"], [], -1)


def test_images_deeper_than_three_folders_are_not_seen(tmp_path: Path) -> None:
    draw(tmp_path, "a/b/c/1.png", "a/b/c/d/2.png")
    assert keys(open_source(str(tmp_path), size=8)) == ["a/b/c/1.png"]


def test_the_id_does_not_depend_on_the_path_but_on_what_is_there(tmp_path: Path) -> None:
    draw(tmp_path / "one", "a/1.png", "b/2.png")
    draw(tmp_path / "two", "b/2.png", "a/1.png")
    first, second = (open_source(str(tmp_path / name), size=8).id for name in ("one", "two"))
    assert first == second and len(first) == len("data-") + 12
    (tmp_path / "two" / "a" / "1.txt").write_text("a caption")
    assert open_source(str(tmp_path / "two"), size=8).id != first


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(TokError, match=r"no images found \(looked for \.png \.jpg .*, 3 folders deep\)"):
        open_source(str(tmp_path), size=8)


def test_a_folder_of_splits_names_both(tmp_path: Path) -> None:
    draw(tmp_path, "train/a/1.png", "val/a/1.png")
    with pytest.raises(TokError) as error:
        open_source(str(tmp_path), size=8)
    assert str(tmp_path / "train") in str(error.value) and str(tmp_path / "val") in str(error.value)
    assert sibling(str(tmp_path / "train"), "val") == str(tmp_path / "val")
    assert sibling(str(tmp_path / "val"), "val") is None


@pytest.mark.parametrize(
    "spec", ["gone", "opemoji/train", "pipe:cat a.tar", "https://x/a.tar", "s3://b/{0..3}.tar", "ftp://b/{0..3}.tar"]
)
def test_what_is_not_there_is_one_line(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TokError) as error:
        open_source(spec, size=8)
    assert "\n" not in str(error.value)
    assert f"--data {spec}:" in str(error.value) or "--data s3://b/0.tar:" in str(error.value)  # where `aws` is at hand


def test_a_mistyped_set_is_recognised() -> None:
    with pytest.raises(TokError, match="Did you mean 'openmoji'"):
        open_source("opemoji/train", size=8)


@pytest.mark.parametrize("separator", ["\t", ",", " "])
def test_a_labels_file_decides_classes_and_images(tmp_path: Path, separator: str) -> None:
    draw(tmp_path / "d", "x/1.png", "x/2 b.png", "x/3.png")
    labels = tmp_path / "labels"
    labels.write_text(f"x/2 b.png{separator}cat\n./x/1.png{separator}dog\n\nx/gone.png{separator}dog\n")
    source = open_source(str(tmp_path / "d"), size=8, labels=labels)
    assert (keys(source), source.classes) == (["x/1.png", "x/2 b.png"], ["cat", "dog"])
    assert [source.label(0), source.label(1)] == [1, 0]
    assert source.problems == [("x/gone.png", "in labels, but no such image")]


def test_numbers_in_a_labels_file_are_the_classes(tmp_path: Path) -> None:
    draw(tmp_path / "d", "1.png", "2.png")
    (tmp_path / "labels").write_text("1.png 10\n2.png 2\n")
    source = open_source(str(tmp_path / "d"), size=8, labels=tmp_path / "labels")
    assert ([source.label(0), source.label(1)], len(source.classes)) == ([10, 2], 11)


def test_a_broken_labels_line_is_named(tmp_path: Path) -> None:
    draw(tmp_path / "d", "1.png")
    (tmp_path / "labels").write_text("1.png 1\nnonsense\n")
    with pytest.raises(TokError, match="labels:2: not a path and a class"):
        open_source(str(tmp_path / "d"), size=8, labels=tmp_path / "labels")


def test_captions_come_from_the_text_beside_the_image(tmp_path: Path) -> None:
    draw(tmp_path, "a/1.png", "a/2.png")
    (tmp_path / "a/1.txt").write_text("a red  square\n\nanother\n")
    source = open_source(str(tmp_path), size=8)
    assert (source.captions(0), source.captions(1)) == (["a red square", "another"], [])


def test_captions_jsonl_goes_before_texts(tmp_path: Path) -> None:
    draw(tmp_path, "1.png", "2.png")
    (tmp_path / "1.txt").write_text("not this")
    (tmp_path / "captions.jsonl").write_text(
        '{"key": "1.png", "captions": ["b", "c"]}\n{"file_name": "2.png", "text": "d"}\n'
    )
    source = open_source(str(tmp_path), size=8)
    assert (source.captions(0), source.captions(1)) == (["b", "c"], ["d"])


@pytest.mark.parametrize("line", ["{", "[]", '{"key": "1.png", "captions": 3}', '{"caption": "x"}'])
def test_a_broken_captions_line_is_named(tmp_path: Path, line: str) -> None:
    draw(tmp_path, "1.png")
    (tmp_path / "captions.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(TokError, match=r"captions.jsonl:2: not a caption"):
        open_source(str(tmp_path), size=8)


def test_a_bad_file_is_met_when_it_is_read(tmp_path: Path) -> None:
    draw(tmp_path, "2.png")
    (tmp_path / "1.png").touch()
    source = open_source(str(tmp_path), size=8)
    with pytest.raises(BadImage, match=r"1.png: empty file"):
        source.image(0)
    assert source.image(1).shape == (3, 4, 4)


def test_names_that_no_line_can_hold_are_problems(tmp_path: Path) -> None:
    draw(tmp_path, "ok ü.png", "line\nbreak.png")
    (tmp_path / os.fsdecode(b"latin\xfc.png")).touch()
    source = open_source(str(tmp_path), size=8)
    assert keys(source) == ["ok ü.png"]
    assert {why for _, why in source.problems} == {"its name is not UTF-8", "its name holds a line break"}


def test_linked_class_folders_are_followed(tmp_path: Path) -> None:
    draw(tmp_path / "real", "1.png")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "cat").symlink_to(tmp_path / "real")
    (tmp_path / "d" / "loop").symlink_to(tmp_path / "d")
    source = open_source(str(tmp_path / "d"), size=8)
    assert source.classes == ["cat"] and keys(source) == ["cat/1.png"]


def test_sources_can_be_pickled(tmp_path: Path) -> None:
    draw(tmp_path, "a/1.png")
    source = open_source(str(tmp_path), size=8)
    assert pickle.loads(pickle.dumps(source)).image(0).shape == (3, 4, 4)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    draw(tmp_path, "train2017/2.jpg", "train2017/1.jpg", "train2017/extra.jpg", "val2017/7.jpg")
    for split, numbers in (("train2017", [2, 1, 3]), ("val2017", [7])):
        table = {
            "images": [{"id": n, "file_name": f"{n}.jpg"} for n in numbers],
            "annotations": [{"image_id": n, "caption": f"{text} {n} "} for text in "ab" for n in numbers],
        }
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"captions_{split}.json").write_text(json.dumps(table))
    return tmp_path


@pytest.mark.parametrize("split", ["train", "train2017"])
def test_coco_has_several_captions_an_image(coco: Path, split: str) -> None:
    source = open_source(str(coco / split), size=8)
    assert keys(source) == ["1.jpg", "2.jpg"]
    assert source.captions(1) == ["a 2", "b 2"] and source.label(1) == -1
    assert source.problems == [("3.jpg", "in captions_train2017.json, but no such image")]


def test_a_coco_folder_names_its_splits_and_knows_its_sibling(coco: Path) -> None:
    with pytest.raises(TokError, match=r"train2017 or .*val2017"):
        open_source(str(coco), size=8)
    assert sibling(str(coco / "train2017"), "val") == str(coco / "val2017")
    assert sibling(str(coco / "train"), "val") == str(coco / "val")


@pytest.mark.parametrize("text", ["{", "[]", '{"images": [{"id": 1}], "annotations": []}'])
def test_broken_coco_annotations_are_one_line(coco: Path, text: str) -> None:
    (coco / "annotations" / "captions_val2017.json").write_text(text)
    with pytest.raises(TokError, match="not COCO's captions"):
        open_source(str(coco / "val2017"), size=8)


@pytest.mark.parametrize("same", [True, False])
def test_a_val_split_of_the_same_images_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, same: bool) -> None:
    draw(tmp_path / "train", "a.png")
    draw(tmp_path / "val", "a.png", colour=0 if same else 9)
    held_out_beside(open_source(str(tmp_path / "train"), size=8), 8, 4)
    assert ("no image is held out" in caplog.text) is same
