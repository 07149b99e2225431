"""Parquet: Hugging Face's layout and features, columns named by hand, and what is damaged, missing or out of bounds."""

import io
import json
import os
import pickle
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tokcli.cli import cli
from tokcli.data.sources import BadImage, ImageSource, open_source, sibling
from tokcli.data.sources.parquet import Parquet
from tokcli.data.sources.summary import one_line
from tokcli.errors import NotFound, TokError

arrow = pytest.importorskip("pyarrow", reason="extra parquet")
parquet = pytest.importorskip("pyarrow.parquet", reason="extra parquet")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOK_CACHE", str(tmp_path_factory.mktemp("cache")))


def png(shade: int = 0, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("L", (6, 4), shade).save(file, form)
    return file.getvalue()


def write(path: Path, table: dict[str, Any], features: dict[str, Any] | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = arrow.table(table)
    if features:
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(made, path, **options)
    return path


def embedded(*shades: int) -> list[dict[str, Any]]:
    return [{"bytes": png(shade), "path": f"{shade}.png"} for shade in shades]


def shades(source: ImageSource) -> list[int]:
    return [int(source.image(i)[0, 0, 0]) for i in range(len(source))]


def opened(path: Path | str) -> Parquet:
    source = open_source(str(path), size=8)
    assert isinstance(source, Parquet)
    return source


HUGGING = {"picture": {"_type": "Image"}, "kind": {"_type": "ClassLabel", "names": ["zebra", "ant", "bee"]}}


def test_columns_are_found_by_their_features_and_classes_have_their_names_in_their_order(tmp_path: Path) -> None:
    table = {
        "kind": [2, 0, -1, None],
        "other": embedded(9, 9, 9, 9),
        "picture": embedded(1, 2, 3, 4),
        "text": ["a", "b", None, "d"],
    }
    source = opened(write(tmp_path / "a.parquet", table, HUGGING))
    assert source.classes == ["zebra", "ant", "bee"] and [source.label(i) for i in range(4)] == [2, 0, -1, -1]
    assert shades(source) == [1, 2, 3, 4] and [source.captions(i) for i in range(4)] == [["a"], ["b"], [], ["d"]]
    assert source.problems == [] and source.key(3) == "a/000003"
    assert "columns image=picture,label=kind,caption=text (not read: other)" in one_line(source)


def test_columns_named_by_hand_are_read_and_recorded_so_that_they_are_found_again(tmp_path: Path) -> None:
    table = {
        "a": [png(1), png(2)],
        "b": [png(3), png(4)],
        "word": ["dog", "cat"],
        "label": [0, 1],
        "say": [["x", "y"], []],
    }
    path = write(tmp_path / "a.parquet", table)
    with pytest.raises(TokError, match=r"has several columns of images. Got a, b. Name it: --columns image=a"):
        opened(path)
    source = opened(f"{path}:image=b,label=word,caption=say")
    assert source.name == f"{path}:image=b,label=word,caption=say" and opened(source.name).id == source.id
    assert shades(source) == [3, 4] and [source.classes[source.label(i)] for i in range(2)] == ["dog", "cat"]
    assert [source.captions(i) for i in range(2)] == [["x", "y"], []]
    assert opened(f"{path}:image=b,label=").classes == []
    assert opened(f"{path}:image=a").id != opened(f"{path}:image=b").id


def test_several_columns_of_captions_are_the_captions_of_one_image(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet", {"image": [png()], "caption_0": ["one"], "caption_1": [" two\n"], "url": ["x"]}
    )
    assert opened(path).captions(0) == ["one", "two"]
    assert opened(f"{path}:caption=url,caption=caption_0").captions(0) == ["x", "one"]


def test_the_flag_columns_says_the_same_in_every_command_that_reads_images(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"a": [png(1)], "b": [png(2)]})
    done = CliRunner().invoke(cli, ["data", "check", str(path), "--columns", "image=b", "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["name"] == f"{path}:image=b"
    for command in ("train-tokenizer", "train-decoder", "tokenize", "eval", "viz-codebook"):
        assert "--columns" in CliRunner().invoke(cli, [command, "--help"]).output
        alone = CliRunner().invoke(cli, [command, "--columns", "image=b"])
        assert alone.exit_code == 2 and "--columns goes with --data" in alone.output
    wrong = CliRunner().invoke(cli, ["tokenize", "--data", str(path), "--columns", "b"])
    assert wrong.exit_code == 2 and "'b' is not like image=A" in wrong.output


def test_columns_of_other_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "d" / "1.png")
    with pytest.raises(TokError, match=r"--columns image=b: goes with Parquet, not with .*/d"):
        open_source(f"{tmp_path}/d:image=b", size=8)


def hub(root: Path) -> Path:
    """As `datasets` pushes a data set to the hub."""
    for split, first in (("train", 0), ("validation", 10)):
        for part in range(2):
            images, labels = embedded(first + 2 * part, first + 2 * part + 1), [0, 1]
            write(root / "data" / f"{split}-{part:05d}-of-00002.parquet", {"picture": images, "kind": labels}, HUGGING)
    (root / "README.md").write_text("# data")
    Image.new("L", (4, 4)).save(root / "thumbnail.png")
    return root


@pytest.mark.parametrize(
    "spec", ["data/train", "train", "data/train-*.parquet", "data/train-{00000..00001}-of-00002.parquet"]
)
def test_a_split_is_the_files_that_begin_with_its_name_and_its_sibling_is_found(tmp_path: Path, spec: str) -> None:
    source = opened(f"{hub(tmp_path)}/{spec}")
    assert shades(source) == [0, 1, 2, 3] and source.key(2) == "train-00001-of-00002/000000"
    other = sibling(source.name, "val")
    assert other == f"{tmp_path}/data/validation" and shades(opened(other)) == [10, 11, 12, 13]
    assert sibling(f"{source.name}:image=picture", "val") == f"{other}:image=picture" and sibling(other, "val") is None
    assert opened(f"{tmp_path}/data/train").id == source.id


@pytest.mark.parametrize("spec", ["", "data"])
def test_splits_side_by_side_are_to_be_chosen_from(tmp_path: Path, spec: str) -> None:
    with pytest.raises(TokError, match=r"holds splits or several data sets. Give .*/data/train or .*/data/validation"):
        opened(f"{hub(tmp_path)}/{spec}")


def test_a_folder_with_one_split_or_with_files_of_no_split_is_that_data(tmp_path: Path) -> None:
    write(tmp_path / "one" / "train-00000-of-00001.parquet", {"image": [png(1)]})
    write(tmp_path / "two" / "b.parquet", {"image": [png(2)]})
    write(tmp_path / "two" / "a.parquet", {"image": [png(3)]})
    assert opened(tmp_path / "one").name == f"{tmp_path}/one/train"
    assert shades(opened(tmp_path / "two")) == [3, 2]


def test_configurations_and_folders_of_splits_are_told_apart(tmp_path: Path) -> None:
    for name in ("small/train/0000.parquet", "small/test/0000.parquet"):
        write(tmp_path / name, {"image": [png(1)]})
    with pytest.raises(TokError, match=r"Give .*/small/test or .*/small/train\."):
        opened(tmp_path)
    assert sibling(opened(tmp_path / "small" / "train").name, "test") == f"{tmp_path}/small/test"


def test_a_split_with_files_missing_is_refused_unless_they_are_named(tmp_path: Path) -> None:
    (hub(tmp_path) / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(
        TokError,
        match=r"some of its files are missing. Got 1 where .* says 2. Fetch.*name those that are there: '.*/train-\*.parquet'",
    ):
        opened(tmp_path / "train")
    assert shades(opened(f"{tmp_path}/data/train-*.parquet")) == [0, 1]


def test_tables_of_addresses_beside_images_are_no_data(tmp_path: Path) -> None:
    write(tmp_path / "00000.parquet", {"url": ["x"], "caption": ["y"]})
    write(tmp_path / "metadata.parquet", {"file_name": ["x"]})
    (tmp_path / "00000").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "00000" / "1.png")
    source = open_source(str(tmp_path), size=8)
    assert not isinstance(source, Parquet) and len(source) == 1 and source.ignored == {".parquet": 2}  # type: ignore[attr-defined]


def test_images_beside_the_file_are_read_and_none_outside_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "d" / "sub").mkdir(parents=True)
    for name in ("secret.png", "d/1.png", "d/sub/2.png"):
        (tmp_path / name).write_bytes(png(7))
    paths = ["1.png", "sub/../sub/2.png", str(tmp_path / "d" / "1.png"), "../secret.png", str(tmp_path / "secret.png"),
             "gone.png", None, "", "https://host/1.png", "a\0b", "sub"]  # fmt: skip
    path = write(tmp_path / "d" / "a.parquet", {"image": [{"bytes": None, "path": name} for name in paths]})
    source = opened(path)
    assert shades(source) == [7, 7, 7]
    assert [(key[2:], why) for key, why in source.problems] == [
        ("000003", "leads out of the folder"), ("000004", "leads out of the folder"), ("000005", "in a.parquet, but no such image"),
        ("000006", "no image in this row"), ("000007", "no image in this row"), ("000008", "names an address instead of an image"),
        ("000009", "in a.parquet, but no such image"), ("000010", "in a.parquet, but no such image"),
    ]  # fmt: skip
    first = source.id
    (tmp_path / "d" / "1.png").write_bytes(png(8))
    assert opened(path).id != first  # what lies beside the file is part of the data


def test_a_column_of_paths_alone_names_files(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png(5))
    assert shades(opened(f"{write(tmp_path / 'a.parquet', {'file': ['1.png', '1.png']})}:image=file")) == [5, 5]


def test_null_images_are_counted_and_null_labels_are_unlabelled_wherever_they_lie(tmp_path: Path) -> None:
    images = [*embedded(1), None, {"bytes": None, "path": None}, *embedded(2, 3), None]
    table = {"image": images, "label": [5, 5, 5, None, 6, 6]}
    source = opened(write(tmp_path / "a.parquet", table, row_group_size=2))
    assert shades(source) == [1, 2, 3] and [source.label(i) for i in range(3)] == [5, -1, 6]
    assert [source.key(i) for i in range(3)] == ["a/000000", "a/000003", "a/000004"]
    assert [key for key, why in source.problems if why == "no image in this row"] == [
        "a/000001",
        "a/000002",
        "a/000005",
    ]


def test_labels_out_of_range_and_captions_that_cannot_be_used_are_problems(tmp_path: Path) -> None:
    table = {
        "picture": embedded(1, 2, 3, 4), "kind": [7, 0, 1, -2],
        "text": ["x" * 10_001, "ok", "fine", "x" * 10_001],
    }  # fmt: skip
    source = opened(write(tmp_path / "a.parquet", table, HUGGING))
    assert [source.label(i) for i in range(4)] == [-1, 0, 1, -1] and source.captions(0) == []
    assert sorted(source.problems) == [
        ("a/000000", "a caption of more than 10,000 characters"), ("a/000000", "its label is none of the 3 classes: 7"),
        ("a/000003", "a caption of more than 10,000 characters"), ("a/000003", "its label is not understood: \"-2\""),
    ]  # fmt: skip


def test_text_that_is_not_utf_8_is_a_problem_and_no_traceback(tmp_path: Path) -> None:
    broken = arrow.Array.from_buffers(arrow.string(), 2, arrow.array([b"\xff\xfe", b"ok"]).buffers())
    source = opened(write(tmp_path / "a.parquet", {"image": [png(1), png(2)], "text": broken, "label": broken}))
    assert [source.captions(i) for i in range(2)] == [[], ["ok"]] and [source.label(i) for i in range(2)] == [-1, 0]
    assert sorted(why.partition(":")[0] for _, why in source.problems) == [
        "a caption is not UTF-8 text",
        "its label is not understood",
    ]


def test_categories_and_large_types_are_labels_texts_and_images_too(tmp_path: Path) -> None:
    table = {"image": arrow.array([png(1), png(2)], arrow.large_binary()), "label": arrow.array(["b", "a"]).dictionary_encode(),
             "text": arrow.array(["x", "y"], arrow.large_string())}  # fmt: skip
    source = opened(write(tmp_path / "a.parquet", table))
    assert (
        source.classes == ["a", "b"] and [source.label(i) for i in range(2)] == [1, 0] and source.captions(1) == ["y"]
    )
    assert shades(source) == [1, 2]


WHOLE = [arrow.array(np.array([2, -1, np.nan, 0], kind)) for kind in "efd"]


@pytest.mark.parametrize(
    "labels",
    [*WHOLE, arrow.array([Decimal("2.0"), Decimal(-1), None, Decimal(0)])],
    ids=lambda labels: str(labels.type),
)
def test_a_whole_number_is_a_class_however_it_is_written(tmp_path: Path, labels: Any) -> None:
    source = opened(write(tmp_path / "a.parquet", {"image": [png()] * 4, "label": labels}))
    assert [source.label(i) for i in range(4)] == [2, -1, -1, 0] and source.classes == ["0", "1", "2"]


def test_numbers_that_are_no_classes_are_read_as_such_only_where_they_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": [png()] * 2, "target": [1.0, 0.5]})
    assert opened(path).classes == [] and "(not read: target)" in one_line(opened(path))
    named = opened(f"{path}:label=target")
    assert named.label(0) == 1 and named.problems == [("a/000001", "its label is not understood: 0.5")]


@pytest.mark.parametrize("label", [arrow.int64(), arrow.float64()])
def test_a_file_without_rows_holds_no_images(tmp_path: Path, label: Any) -> None:
    table = {
        "image": arrow.array([], arrow.binary()),
        "label": arrow.array([], label),
        "text": arrow.array([], arrow.string()),
    }
    with pytest.raises(TokError, match="no images found"):
        opened(write(tmp_path / "a.parquet", table))
    write(tmp_path / "b.parquet", table | {"image": [png()], "label": arrow.array([3], label), "text": ["x"]})
    assert opened(f"{tmp_path}/*.parquet").captions(0) == ["x"]


@pytest.mark.parametrize("cut", ["half", "middle", "text", "empty"])
def test_a_damaged_file_is_one_line_or_bad_images_and_no_traceback(tmp_path: Path, cut: str) -> None:
    path = write(
        tmp_path / "a.parquet", {"image": [png(i) for i in range(40)]}, row_group_size=20, use_dictionary=False
    )
    whole = path.read_bytes()
    path.write_bytes(
        {
            "half": whole[: len(whole) // 2],
            "middle": whole[:60] + bytes(200) + whole[260:],
            "text": b"no",
            "empty": b"",
        }[cut]
    )
    if cut != "middle":
        with pytest.raises(TokError, match=r"a.parquet: is damaged or not Parquet: "):
            opened(path)
        return
    source = opened(path)
    with pytest.raises(BadImage, match=r"a/000000: cannot be read: "):
        source.image(0)
    assert int(source.image(30)[0, 0, 0]) == 30


def test_a_missing_file_and_a_wrong_column_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": [png()], "label": [1], "right": [True]})
    with pytest.raises(NotFound, match=r"b.parquet: no such file"):
        opened(tmp_path / "b.parquet")
    with pytest.raises(TokError, match=r"--columns image=imag: no such column. Did you mean 'image'\?"):
        opened(f"{path}:image=imag")
    with pytest.raises(TokError, match=r"--columns label=right: is no column of labels. Got bool"):
        opened(f"{path}:label=right")
    with pytest.raises(TokError, match=r"--columns image=image,image=label: names no single column as image"):
        opened(f"{path}:image=image,image=label")
    with pytest.raises(TokError, match=r"has no column of images. Got label. Name it: --columns image=NAME"):
        opened(write(tmp_path / "c.parquet", {"label": [1]}))


def test_files_with_other_columns_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": [png()], "label": [1], "more": [1]})
    write(tmp_path / "b.parquet", {"image": [png()], "label": ["x"]})
    with pytest.raises(
        TokError, match=r"b.parquet: differs from the other files: column label is int64 in a.parquet. Got string"
    ):
        opened(tmp_path)
    assert len(opened(f"{tmp_path}:label=")) == 2  # only what is read has to agree


def test_few_row_groups_are_kept_and_a_pickled_source_keeps_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokcli.data.sources import parquet_rows

    noise = [os.urandom(1000) for _ in range(12)]
    source = opened(write(tmp_path / "a.parquet", {"image": noise}, row_group_size=3))
    monkeypatch.setattr(parquet_rows, "KEPT", 8000)
    read = list[int]()
    reading = parquet_rows.Rows._read
    monkeypatch.setattr(
        parquet_rows.Rows, "_read", lambda rows, group, column: read.append(group) or reading(rows, group, column)
    )
    source._rows._begin()
    for i in (0, 1, 3, 0, 6, 9, 11, 0):
        assert source._bytes(i, "") == noise[i]
    assert read == [0, 1, 2, 3, 0]  # 0 and 1 are kept together; 2 and 3 put them out
    assert len(pickle.dumps(source)) < 10_000


def test_a_value_repeated_a_million_times_takes_no_memory(tmp_path: Path) -> None:
    big = arrow.DictionaryArray.from_arrays(
        arrow.array([0] * 1000, arrow.int32()), arrow.array([png() + bytes(1 << 20)])
    )
    path = write(tmp_path / "a.parquet", {"image": big})
    source = opened(path)
    assert len(source) == 1000 and source.image(500).shape == (3, 4, 6)
    assert sum(kept.nbytes for kept in source._rows._kept.values()) < 2 << 20 and path.stat().st_size < 2 << 20


def test_a_row_group_of_gigabytes_is_refused_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokcli.data.sources import parquet_rows

    monkeypatch.setattr(parquet_rows, "MOST_GROUP", 1000)
    path = write(tmp_path / "a.parquet", {"image": [os.urandom(1100)], "label": [0]})
    with pytest.raises(TokError, match=r"its row groups are too large: .* Got 0.0 GiB. Write it with fewer rows"):
        opened(path)


def test_a_footer_that_ends_the_process_that_reads_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokcli.data.sources import parquet_footers

    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "parquet_probe.py").write_text("import os\nos.abort()")
    monkeypatch.setattr(parquet_footers, "__file__", str(tmp_path / "script" / "x.py"))
    path = write(tmp_path / "a.parquet", {"image": [png()]})
    with pytest.raises(TokError, match=r"a.parquet: is damaged or not Parquet: its footer cannot be read"):
        opened(path)


def test_a_later_start_reads_no_footers_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokcli.data.sources import parquet_footers

    path = write(tmp_path / "a.parquet", {"image": [png(1)]})
    os.utime(path, (1, 1))
    monkeypatch.setattr("tokcli.data.sources.kept.RACY", 0)
    asked, asking = list[int](), parquet_footers._ask
    monkeypatch.setattr(parquet_footers, "_ask", lambda paths: asked.append(len(paths)) or asking(paths))
    opened(path), opened(path), opened(path.rename(tmp_path / "b.parquet"))
    assert asked == [1, 0, 1]


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, ["data", *map(str, arguments)])


def test_checked_and_packed_it_is_the_same_data(tmp_path: Path) -> None:
    images = [
        {"bytes": png(1, "JPEG"), "path": None},
        {"bytes": png(2), "path": None},
        {"bytes": b"none", "path": None},
    ]
    path = write(tmp_path / "train.parquet", {"picture": images, "kind": [1, 0, 0], "text": ["a", None, "c"]}, HUGGING)
    write(tmp_path / "val.parquet", {"picture": images[:1], "kind": [2]}, HUGGING)
    checked = run("check", path, "--max-bad", 0.5, "--json")
    found = json.loads(checked.stdout)
    assert checked.exit_code == 0 and found["images"] == 3 and found["unreadable"][0][0] == "train/000002"
    assert found["classes"]["only_in_val"] == ["bee"] and found["columns"].startswith("image=picture,label=kind")
    assert run("pack", path, "--out", tmp_path / "s", "--max-bad", 0.5).exit_code == 0
    source, packed = opened(path), open_source(str(tmp_path / "s"), size=8)
    assert (
        packed.classes == source.classes
        and [packed.label(i) for i in range(2)] == [1, 0]
        and packed.captions(0) == ["a"]
    )
    assert [packed.encoded(i) for i in range(2)] == [("jpeg", images[0]["bytes"]), ("png", images[1]["bytes"])]  # type: ignore[attr-defined]


def test_equal_files_have_equal_ids_wherever_they_lie(tmp_path: Path) -> None:
    table = {"image": [png(1)], "label": [0]}
    ids = {opened(write(tmp_path / name / "a.parquet", table)).id for name in ("x", "y")}
    assert len(ids) == 1 and opened(write(tmp_path / "x" / "a.parquet", table | {"label": [1]})).id not in ids


def test_without_pyarrow_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", {"image": [png()]})
    monkeypatch.setattr("tokcli.data.sources.parquet_footers.find_spec", lambda name: None)
    with pytest.raises(
        TokError,
        match=r"a.parquet: Parquet is read by pyarrow, which is not installed. Run pip install 'tokcli\[parquet\]'",
    ):
        opened(path)
