"""Folders as people have them: every image is read, or named and counted; contents decide the id."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokcli.data.sources import open_source
from tokcli.data.sources.contents import file_digests, state_of
from tokcli.data.sources.folder import Folder
from tokcli.data.sources.summary import one_line
from tokcli.errors import TokError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOK_CACHE", str(tmp_path_factory.mktemp("cache")))
    return Path(os.environ["TOK_CACHE"])


def draw(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(root / name, "PNG")
    return root


def folder(root: Path) -> Folder:
    source = open_source(str(root), size=8)
    assert isinstance(source, Folder)
    return source


@pytest.mark.parametrize("end", [".jfif", ".jpe", ".gif", ".JFIF", ".avif", ".bmp", ".tif"])
def test_every_usual_extension_is_an_image(tmp_path: Path, end: str) -> None:
    assert folder(draw(tmp_path, f"a{end}")).image(0).shape == (3, 4, 4)


@pytest.mark.parametrize("name", ["b.heic", "c.JP2", "x/d.svg", "e.cr2"])
def test_images_of_other_types_are_named(tmp_path: Path, name: str) -> None:
    source = folder(draw(tmp_path, "a.png", name))
    end = name[-4:] if name[-4] == "." else name[-5:]
    assert source.problems == [(name, f"images of type {end.lower()} are not read")]


def test_images_that_lie_too_deep_are_named_and_other_files_counted(tmp_path: Path) -> None:
    draw(tmp_path, "a/b/c/1.png", "a/b/c/d/2.png", "a/b/c/d/e/3.png")
    (tmp_path / "notes.md").touch()
    source = folder(tmp_path)
    assert [key for key, why in source.problems if why == "deeper than 3 folders"] == [
        "a/b/c/d/2.png",
        "a/b/c/d/e/3.png",
    ]
    assert len(source) == 1 and source.ignored == {".md": 1}


def test_a_folder_of_unreadable_kinds_says_which(tmp_path: Path) -> None:
    with pytest.raises(
        TokError, match=r"no images found .* 2 that are not read, the first: a.heic: images of type .heic"
    ):
        folder(draw(tmp_path, "a.heic", "b.heic"))


@pytest.mark.parametrize(
    "names",
    [("Train", "Val"), ("training", "testing"), ("train", "test", "docs"), ("TRAIN",), ("train2017", "val2017"), ("val", "test"),
     ("training_set", "test_set"), ("TrainSet", "DevSet"), ("train", "dev"), ("train", "eval"),
     ("images/train", "images/val"), ("bottle/train/good", "bottle/test/broken"), ("a/b/train/c/d", "a/b/val/c/d"), ("test",)],
)  # fmt: skip
def test_splits_under_any_usual_name_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(TokError, match="holds the splits of a data set") as error:
        folder(draw(tmp_path, *(f"{name}/1.png" for name in names)))
    named = [part for name in names for part in [name] if part.split("/")[0] != "docs"]
    assert all(
        str(tmp_path / name.partition("/good")[0].partition("/broken")[0].partition("/c/")[0]) in str(error.value)
        for name in named
    )


def test_splits_beside_a_folder_without_images_are_no_classes(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    with pytest.raises(TokError, match="holds the splits"):
        folder(draw(tmp_path, "train/1.png"))


def test_trains_beside_cars_are_a_class(tmp_path: Path) -> None:
    assert folder(draw(tmp_path, "train/1.png", "car/1.png", "bus/1.png")).classes == ["bus", "car", "train"]


def test_what_macos_leaves_in_archives_is_no_class(tmp_path: Path) -> None:
    source = folder(draw(tmp_path, "cat/1.png", "__MACOSX/cat/1.png", "cat/._1.png"))
    assert source.classes == ["cat"] and len(source) == 1 and source.ignored == {"folder __MACOSX": 1}


@pytest.mark.parametrize("name", ["@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found"])
def test_what_systems_and_storage_boxes_keep_beside_images_is_none_of_them(tmp_path: Path, name: str) -> None:
    source = folder(draw(tmp_path, "cat/1.png", f"{name}/2.png", f"cat/{name}/1.png/3.png"))
    assert source.keys == ["cat/1.png"] and source.classes == ["cat"] and source.ignored == {f"folder {name}": 2}


def test_a_folder_of_folders_of_tars_says_what_to_give(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.tar").touch()
    with pytest.raises(
        TokError, match=r"no images found .* other files: 2 \(.tar\). Give the folder in which the tars lie"
    ):
        folder(tmp_path)


@pytest.mark.parametrize("target", ["d/cat", "d", "."])
def test_a_link_to_a_folder_above_repeats_no_image_and_brings_in_none_from_beside(tmp_path: Path, target: str) -> None:
    draw(tmp_path, "d/cat/1.png", "d/dog/2.png", "val/cat/3.png")
    (tmp_path / "d" / "cat" / "again").symlink_to(tmp_path / target)
    source = folder(tmp_path / "d")
    assert source.keys == ["cat/1.png", "dog/2.png"] and source.problems == []
    assert source.ignored == {"link to a folder that is read already": 1}
    assert "not read: 1 (link to a folder that is read already)" in one_line(source)


def test_a_folder_is_read_under_its_own_name_or_that_of_its_first_link_and_no_image_twice(tmp_path: Path) -> None:
    draw(tmp_path, "d/a/1.png", "d/b/2.png", "far/3.png")
    (tmp_path / "d" / "a" / "b").symlink_to(tmp_path / "d" / "b")
    (tmp_path / "d" / "b" / "a").symlink_to(tmp_path / "d" / "a")
    for name in ("z", "y", "x"):
        (tmp_path / "d" / name).symlink_to(tmp_path / "far")
    source = folder(tmp_path / "d")
    assert source.keys == ["a/1.png", "b/2.png", "x/3.png"]
    assert source.ignored == {"link to a folder that is read already": 4}


def test_tables_in_sub_folders_speak_of_what_lies_in_and_below_them(tmp_path: Path) -> None:
    draw(tmp_path, "1.png", "a/2.png", "a/b/3.png", "c/4.png", "c/5.png")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "1.png", "text": "one"}\n{"file_name": "a/2.png", "text": "far", "label": "x"}\n'
    )
    (tmp_path / "a" / "metadata.jsonl").write_text(
        '{"file_name": "2.png", "text": "near", "label": "y"}\n{"file_name": "./b/3.png", "text": "three"}\n'
    )
    (tmp_path / "a" / "metadata.csv").write_text("file_name,text\n2.png,not read\n")
    (tmp_path / "c" / "metadata.csv").write_text("file_name,text\n4.png,four\ngone.png,x\n")
    (tmp_path / "c" / "5.txt").write_text("beside")
    source = folder(tmp_path)
    assert [source.captions(i) for i in range(5)] == [["one"], ["near"], ["three"], ["four"], ["beside"]]
    assert [source.label(i) >= 0 and source.classes[source.label(i)] for i in range(5)] == [
        False,
        "y",
        False,
        False,
        False,
    ]
    assert source.problems == [("c/gone.png", "in c/metadata.csv, but no such image")]
    assert source.ignored == {"metadata.csv beside metadata.jsonl": 1}
    before = source.id
    (tmp_path / "a" / "metadata.jsonl").write_text('{"file_name": "2.png", "text": "else", "label": "y"}\n')
    assert folder(tmp_path).id != before


def test_lists_of_captions_in_sub_folders_go_before_metadata(tmp_path: Path) -> None:
    draw(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "captions.jsonl").write_text('{"key": "1.png", "captions": ["one"]}\n')
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a/1.png", "text": "x", "label": 3}\n')
    source = folder(tmp_path)
    assert [source.captions(i) for i in range(2)] == [["one"], []] and source.ignored == {}


def test_a_picture_edited_in_place_is_other_data_and_a_copy_is_the_same(tmp_path: Path) -> None:
    first = folder(draw(tmp_path / "d", "a/1.png", "b/2.png")).id
    shutil.copytree(tmp_path / "d", tmp_path / "copy")
    os.utime(tmp_path / "copy" / "a" / "1.png", ns=(1, 1))
    assert folder(tmp_path / "copy").id == first
    file = tmp_path / "d" / "a" / "1.png"
    before = file.stat()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if nothing had happened
    assert file.stat().st_size == before.st_size and folder(tmp_path / "d").id != first


@pytest.mark.parametrize("name", ["a/1.txt", "a/1.json", "captions.jsonl"])
def test_a_caption_edited_in_place_is_other_data(tmp_path: Path, name: str) -> None:
    draw(tmp_path, "a/1.png")
    ids = set()
    for word in ("cat", "dog"):
        (tmp_path / name).write_text(f'{{"key": "a/1.png", "caption": "{word}"}}')
        ids.add(folder(tmp_path).id)
    assert len(ids) == 2


def aged(*files: Path) -> np.ndarray:
    """States of files that look as if they had not been touched for a while."""
    old = time.time_ns() - 10**10
    return np.array([(s := state_of(f.stat()))[:1] + (old, old) + s[3:] for f in files], np.int64)


@pytest.mark.parametrize("what", range(5), ids=["bytes", "mtime", "ctime", "inode", "device"])
def test_a_later_start_reads_only_what_has_changed(tmp_path: Path, what: int) -> None:
    files = [tmp_path / name for name in ("1", "2", "3")]
    for file in files:
        file.write_bytes(file.name.encode())
    states, read = aged(*files), list[int]()
    look = lambda number, data: read.append(number) or True  # noqa: E731
    first = file_digests(files, states, "x", remember=look)
    states[1, what] += 1_000_003  # not the next file's number
    assert np.array_equal(file_digests(files, states, "x", remember=look), first) and read == [0, 1, 2, 1]
    assert np.array_equal(file_digests(files[::-1], states[::-1], "x", remember=look), first[::-1]) and len(read) == 4


def test_a_file_that_may_change_within_its_clocks_tick_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "1").write_bytes(b"a")
    states = np.array([state_of((tmp_path / "1").stat())], np.int64)
    first = file_digests([tmp_path / "1"], states, "x")
    (tmp_path / "1").write_bytes(b"b")
    assert not np.array_equal(file_digests([tmp_path / "1"], states, "x"), first)


def test_links_to_one_file_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "1").write_bytes(b"a")
    read = list[int]()
    states = aged(*[tmp_path / "1"] * 5)
    found = file_digests([tmp_path / "1"] * 5, states, "x", remember=lambda number, data: read.append(number) or True)
    assert len(read) == 1 and (found == found[0]).all() and found[0].any()


def test_a_damaged_or_forbidden_cache_costs_time_only(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "1").write_bytes(b"a")
    first = file_digests([tmp_path / "1"], aged(tmp_path / "1"), "x")
    for file in (cache / "contents").glob("*.npy"):
        file.write_bytes(b"no array")
    assert np.array_equal(file_digests([tmp_path / "1"], aged(tmp_path / "1"), "x"), first)
    shutil.rmtree(cache / "contents")
    (cache / "contents").write_text("a file in the way")
    assert np.array_equal(file_digests([tmp_path / "1"], aged(tmp_path / "1"), "x"), first)


def test_past_the_bound_size_and_time_stand_for_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokcli.data.sources.contents.CONTENTS_UP_TO", 0)
    first = folder(draw(tmp_path / "d", "a/1.png")).id
    shutil.copytree(tmp_path / "d", tmp_path / "copy")
    assert folder(tmp_path / "copy").id == first
    os.utime(tmp_path / "d" / "a" / "1.png", ns=(1, 1))
    assert folder(tmp_path / "d").id != first


def test_idx_files_edited_in_place_are_other_data(tmp_path: Path) -> None:
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 1, 0]))
    ids = set()
    for shade in (1, 2):
        (tmp_path / "train-images-idx3-ubyte").write_bytes(
            bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, shade])
        )
        ids.add(open_source(str(tmp_path / "train"), size=8).id)
    assert len(ids) == 2
