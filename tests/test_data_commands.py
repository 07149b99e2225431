"""`tok data check` and `tok data pack`: what they say, and that packed data is the data that was packed."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from tokcli.cli import cli
from tokcli.data.sources import ImageSource, open_source
from tokcli.data.sources.summary import one_line
from tokcli.errors import TokError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOK_CACHE", str(tmp_path_factory.mktemp("cache")))


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, ["data", *map(str, arguments)])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four classes that look like numbers; captions beside two images."""
    root = tmp_path / "photos" / "train"
    for number, name in enumerate(["0/a.png", "1/b.jpg", "10/c.png", "2/d.png", "2/e.png"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + number, 6), (50 * number, 0, 0)).save(root / name)
    (root / "0" / "a.txt").write_text("one\ntwo")
    (root / "2" / "e.txt").write_text("ü")
    return root


def told(source: ImageSource) -> list[tuple[str, list[str], Any]]:
    numbers = range(len(source))
    return [(source.classes[source.label(i)], source.captions(i), source.image(i).tolist()) for i in numbers]


def test_packed_data_is_what_was_packed(photos: Path, tmp_path: Path) -> None:
    done = run("pack", photos, "--out", tmp_path / "shards")
    assert done.exit_code == 0 and done.stdout.strip() == str(tmp_path / "shards"), (done.output, done.exception)
    source, packed = open_source(str(photos), size=8), open_source(str(tmp_path / "shards"), size=8)
    assert told(packed) == told(source) and packed.classes == source.classes == ["0", "1", "10", "2"]
    assert [packed.label(i) for i in range(5)] == [source.label(i) for i in range(5)]
    assert packed.problems == [] and len(list((tmp_path / "shards").glob("*.tar"))) == 1


def test_packing_again_finds_the_pack_and_other_data_is_refused(photos: Path, tmp_path: Path) -> None:
    run("pack", photos, "--out", tmp_path / "shards")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()}
    assert run("pack", photos, "--out", tmp_path / "shards").exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()}
    (photos / "0" / "a.txt").write_text("six")
    refused = run("pack", photos, "--out", tmp_path / "shards")
    assert isinstance(refused.exception, TokError) and "holds something else" in str(refused.exception)


def test_equal_data_gives_equal_shards_of_the_size_asked_for(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokcli.stages import pack_data

    for name in ("x", "y"):
        pack_data.main(str(photos), tmp_path / name, labels=None, size=8, shard_bytes=300, max_bad=0, max_pixels=999)
    shards = sorted(path.name for path in (tmp_path / "x").glob("*.tar"))
    assert shards == [f"shard-0000{i}.tar" for i in range(len(shards))] and 1 < len(shards) < 5
    assert all((tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes() for name in shards)
    assert len(open_source(str(tmp_path / "x"), size=8)) == 5


def test_the_index_is_read_instead_of_the_headers_until_the_shard_changes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("pack", photos, "--out", tmp_path / "shards")
    shutil.copytree(tmp_path / "shards", tmp_path / "copy")
    built = list[Path]()
    from tokcli.data.sources import tar_index

    build = tar_index._build
    monkeypatch.setattr(tar_index, "_build", lambda path, *others: built.append(path) or build(path, *others))
    first = open_source(str(tmp_path / "shards"), size=8).id
    assert open_source(str(tmp_path / "copy"), size=8).id == first and built == []
    (shard,) = (tmp_path / "copy").glob("*.tar")
    data = shard.read_bytes()
    shard.write_bytes(data.replace(b"one", b"six"))
    os.utime(shard, (1, 1))
    changed = open_source(str(tmp_path / "copy"), size=8)
    assert changed.id != first and built == [shard] and changed.captions(0) == ["six", "two"]


def test_a_pack_is_the_same_data_however_it_is_read(photos: Path, tmp_path: Path) -> None:
    run("pack", photos, "--out", tmp_path / "shards")
    source = open_source(str(tmp_path / "shards"), size=8)
    assert source.classes == ["0", "1", "10", "2"]
    for name, change in {
        "touched": lambda p: os.utime(p, (1, 1)),
        "alone": lambda p: p.with_suffix(".index.json").unlink(),
    }.items():
        shutil.copytree(tmp_path / "shards", tmp_path / name)
        change(next((tmp_path / name).glob("*.tar")))
        again = open_source(str(tmp_path / name), size=8)
        assert (again.id, again.classes, told(again)) == (source.id, source.classes, told(source))
        said = "1 of 1 indexes are not of their shards" in one_line(again)
        assert said == (name == "touched")


def test_the_list_of_classes_is_no_sample_to_other_readers(photos: Path, tmp_path: Path) -> None:
    import webdataset

    run("pack", photos, "--out", tmp_path / "shards")
    (shard,) = (tmp_path / "shards").glob("*.tar")
    read = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    assert [sample["cls"] for sample in read] == [b"0", b"1", b"10", b"2", b"2"]


@pytest.mark.parametrize("text", [b"{", b"[1]", b'["a", "a"]', b"\xff"])
def test_a_damaged_list_of_classes_is_a_problem(tmp_path: Path, text: bytes) -> None:
    from test_data_tars import picture, write

    source = open_source(
        str(write(tmp_path / "a.tar", {".classes.json": text, "1.png": picture(), "1.cls": b"x"})), size=8
    )
    assert source.problems == [("a.tar/.classes.json", "is not a list of classes, or too long")] and source.classes == [
        "x"
    ]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"version": 3}', '{"version": 3, "bytes": BYTES, "time": TIME, "index": {"keys": ["a"]}}']
)
def test_a_damaged_index_is_made_again(photos: Path, tmp_path: Path, text: str) -> None:
    run("pack", photos, "--out", tmp_path / "shards")
    (shard,), (index,) = ((tmp_path / "shards").glob(f"*.{end}") for end in ("tar", "index.json"))
    state = shard.stat()
    index.write_text(text.replace("BYTES", str(state.st_size)).replace("TIME", str(int(state.st_mtime))))
    assert len(open_source(str(tmp_path / "shards"), size=8)) == 5


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("images", ["a", 1]),
        ("images", [-1, 1]),
        ("images", 5),
        ("names", 5),
        ("ends", "exe"),
        ("texts", [["sh", 1, 1]]),
        ("texts", 1),
    ],
)
def test_an_index_with_parts_of_another_kind_is_made_again(photos: Path, tmp_path: Path, part: str, value: Any) -> None:
    run("pack", photos, "--out", tmp_path / "shards")
    (index,) = (tmp_path / "shards").glob("*.index.json")
    said = json.loads(index.read_text())
    said["index"][part][0] = value
    index.write_text(json.dumps(said))
    source = open_source(str(tmp_path / "shards"), size=8)
    assert len(source) == 5 and source.image(0).shape[0] == 3 and source.notes  # type: ignore[attr-defined]


def test_an_interrupted_pack_is_written_anew(photos: Path, tmp_path: Path) -> None:
    run("pack", photos, "--out", tmp_path / "shards")
    (tmp_path / "shards" / "dataset.json").unlink()
    (tmp_path / "shards" / "shard-00000.tar").write_bytes(b"half")
    (tmp_path / "shards" / "shard-00007.tar").write_bytes(b"of a pack with smaller shards")
    (tmp_path / "shards" / ".shard-00001.tar.xyz.tmp").write_bytes(b"of a killed process")
    assert run("pack", photos, "--out", tmp_path / "shards").exit_code == 0
    assert len(open_source(str(tmp_path / "shards"), size=8)) == 5
    assert not list((tmp_path / "shards").glob(".*.tmp"))


def test_a_pack_touches_no_shards_of_others(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "shard-00000.tar").write_bytes(b"precious")
    assert "holds something else" in str(run("pack", photos, "--out", tmp_path / "shards").exception)
    assert (tmp_path / "shards" / "shard-00000.tar").read_bytes() == b"precious"


def test_what_is_left_out_of_a_pack_is_bounded_and_kept(photos: Path, tmp_path: Path) -> None:
    (photos / "0" / "x.heic").touch()
    (photos / "0" / "y.heic").touch()
    assert "more than --max-bad. Got 0.01; left out: 2 (images of type .heic are not read)." in str(
        run("pack", photos, "--out", tmp_path / "shards").exception
    )
    assert run("pack", photos, "--out", tmp_path / "shards", "--max-bad", 0.5).exit_code == 0
    listing = json.loads((tmp_path / "shards" / "dataset.json").read_text())
    assert listing["left_out"] == {"images of type .heic are not read": 2} and listing["images"] == 5


def test_a_check_reports_everything_and_goes_on_where_a_training_would(photos: Path) -> None:
    shutil.copy(photos / "0" / "a.png", photos / "1" / "same.png")
    val = photos.parent / "val"
    shutil.copytree(photos / "2", val / "2")
    shutil.copytree(photos / "2", val / "zebra")
    (photos / "0" / "alone.txt").write_text("no image")
    done = run("check", photos, "--size", 7, "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 0 and found["images"] == 6 and not found["stops"]
    assert found["classes"] | {"x": 0} == {
        "number": 4, "smallest": 1, "largest": 2, "images_without": 0, "not_in_val": ["0", "1", "10"], "only_in_val": ["zebra"], "x": 0
    }  # fmt: skip
    assert found["captions"] == {"images_with": 2, "images_without": 4} and found["other_files"] == {
        "text without image": 1
    }
    assert found["sizes"] == {
        "smallest": [8, 6], "median": [10, 6], "largest": [12, 6], "landscape": 6, "portrait": 0, "square": 0, "smaller_than_7": 6
    }  # fmt: skip
    assert found["duplicates"] == [["0/a.png", "1/same.png"]]


def test_a_check_names_what_cannot_be_read_and_exits_with_1_where_a_training_would_stop(photos: Path) -> None:
    for name in ("0/p.png", "0/q.png"):
        (photos / name).write_text("no image")
    done = run("check", photos)
    assert done.exit_code == 1 and "0/p.png: not an image" in done.stdout and "a training would stop" in done.stdout
    assert run("check", photos, "--max-bad", 0.5).exit_code == 0


def test_a_check_reports_what_is_wrong_with_the_other_splits_and_stops_where_val_cannot_be_opened(photos: Path) -> None:
    val = photos.parent / "val"
    (val / "0").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(val / "0" / "1.png")
    (val / "0" / "2.png").write_text("no image")
    (val / "metadata.jsonl").write_text('{"file_name": "0/1.png", "label": true}\n')
    done = run("check", photos, "--json")
    found = json.loads(done.stdout)["splits"]["val"]
    assert done.exit_code == 0 and (found["images"], found["images_without_class"]) == (2, 2)
    assert found["unreadable"][0][0] == "0/2.png" and "its label is not understood: true" in found["left_out"][0][1]
    assert "val, cannot be read: 1" in run("check", photos).stdout and found["also_here"] == []
    (val / "metadata.jsonl").write_text("{")
    done = run("check", photos)
    assert done.exit_code == 1 and "val cannot be opened: " in done.stdout
    assert "a training would stop: its val split cannot be opened" in done.stdout


def test_a_name_that_moves_the_cursor_is_printed_as_one_line(photos: Path) -> None:
    (photos / "0" / "\x1b[2Jx\n.png").write_text("no image")
    done = run("check", photos, "--max-bad", 0.5)
    assert "\x1b" not in done.stdout and "\\x1b[2Jx\\n.png: its name holds a line break" in done.stdout


def test_a_source_without_files_is_packed_as_pngs(tmp_path: Path) -> None:
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 1, 0]))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(
        bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 5, 6, 7, 8])
    )
    assert run("pack", tmp_path / "train", "--out", tmp_path / "shards").exit_code == 0
    source, packed = open_source(str(tmp_path / "train"), size=8), open_source(str(tmp_path / "shards"), size=8)
    assert all(torch.equal(source.image(i), packed.image(i)) and source.label(i) == packed.label(i) for i in range(2))


@pytest.mark.parametrize("name", ["1.0", "-1", " lead"])
def test_a_class_that_a_shard_would_call_otherwise_is_refused_before_anything_is_written(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "odd" / name).mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "odd" / name / "1.png")
    said = str(run("pack", tmp_path / "odd", "--out", tmp_path / "shards").exception)
    assert f"class '{name}': would be read from a shard as another class" in said and not [
        *(tmp_path / "shards").glob("*")
    ]


def test_an_empty_spec_is_not_the_folder_one_is_in() -> None:
    assert "--data: is empty" in str(run("check", "").exception)


def test_a_check_names_images_of_val_that_training_sees(photos: Path) -> None:
    (photos.parent / "val").symlink_to(photos)
    found = json.loads(run("check", photos, "--json").stdout)
    assert len(found["splits"]["val"]["also_here"]) == found["images"] == 5
    assert "val, equal pixels above: 5" in run("check", photos).stdout
