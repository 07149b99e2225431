"""Labels and captions as other tools write them: the right value, or a fault that is named and counted."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from test_data_tars import write as tar
from test_faults_folder import draw

from tokcli.data.sources import open_source
from tokcli.data.sources.caption_files import MOST_CAPTION, captions_beside
from tokcli.data.sources.classes import class_name
from tokcli.data.sources.folder import Folder
from tokcli.errors import TokError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOK_CACHE", str(tmp_path_factory.mktemp("cache")))


def folder(root: Path, labels: str | None = None) -> Folder:
    file = root.parent / "labels.csv"
    if labels is not None:
        file.write_bytes(labels.encode())
    source = open_source(str(root), size=8, labels=None if labels is None else file)
    assert isinstance(source, Folder)
    return source


@pytest.mark.parametrize(
    ("value", "name"),
    [(2, "2"), (2.0, "2"), ("2.0", "2"), (" cat\n", "cat"), (-1, None), (-1.0, None), ("-1", None), ("-1.0", None),
     (None, None), ("", None), (0, "0"), ("\ufeff10", "10"), ("\ufeff-1\r\n", None), ("007", "007"), ("1.5", "1.5"), ("n01440764", "n01440764"), ("2.0b", "2.0b")],
)  # fmt: skip
def test_a_label_means_the_class_that_it_names(value: object, name: str | None) -> None:
    assert class_name(value) == name


@pytest.mark.parametrize(
    "value",
    [
        True,
        False,
        0.5,
        -2,
        "-2",
        "-2.0",
        [3],
        {"a": 1},
        float("nan"),
        float("inf"),
        "x" * 1001,
        "\ud800",
        "3\n5",
        "cat\r\ndog",
    ],
)
def test_a_label_that_names_no_class_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="its label is not understood"):
        class_name(value)


@pytest.mark.parametrize("line", ["2.png,", "2.png\t", '"2.png",""', "2.png, "])
def test_an_empty_label_of_a_table_is_none(tmp_path: Path, line: str) -> None:
    source = folder(draw(tmp_path / "d", "1.png", "2.png"), f"1.png,cat\n{line}\n")
    assert [source.label(i) for i in range(2)] == [0, -1] and source.problems == []


def test_minus_one_is_unlabelled_and_does_not_turn_numbers_into_words(tmp_path: Path) -> None:
    root = draw(tmp_path / "d", "1.png", "2.png", "3.png", "4.png")
    source = folder(root, "1.png 10\n2.png 2\n3.png -1\n4.png 3.0\n")
    assert [source.label(i) for i in range(4)] == [10, 2, -1, 3] and len(source.classes) == 11


def test_labels_in_quotes_are_read_as_csv_writes_them(tmp_path: Path) -> None:
    root = draw(tmp_path / "d", "a, b.png", "c.png", 'say "hi".png')
    source = folder(
        root, 'file_name,label\r\n"a, b.png","tench, Tinca tinca"\r\nc.png,"cat"\r\n"say ""hi"".png",dog\r\n'
    )
    assert [source.classes[source.label(i)] for i in range(3)] == ["tench, Tinca tinca", "cat", "dog"]
    assert source.problems == []


def test_labels_find_images_by_other_spellings_and_count_what_they_do_not_understand(tmp_path: Path) -> None:
    root = draw(tmp_path / "d", "x/é.PNG", "y/2.png")
    source = folder(root, "x\\e\u0301.png 4\ny/2.png -7\n")
    assert [source.label(i) for i in range(2)] == [4, -1]
    assert source.problems == [("y/2.png", 'its label is not understood: "-7"')]


def test_a_line_ends_where_an_editor_says_so(tmp_path: Path) -> None:
    root = draw(tmp_path / "d", "a\u2028b.png", "c.png")
    source = folder(root, "a\u2028b.png x\u0085y\nc.png z\n")
    assert source.classes == ["x\u0085y", "z"]
    (root / "captions.jsonl").write_text('{"key": "c.png", "caption": "one\u2028two\u0085three"}\n', encoding="utf-8")
    assert folder(root).captions(1) == ["one two three"]


def test_captions_jsonl_finds_images_by_other_spellings_and_names_unknown_ones(tmp_path: Path) -> None:
    root = draw(tmp_path / "d", "a/1.png", "a/2.JPG", "b/3.png")
    names = ["a\\1.png", "./a/2.jpg", str(root / "b" / "3.png"), "b/4.png"]
    (root / "captions.jsonl").write_text("\n".join(json.dumps({"key": n, "caption": n[-5]}) for n in names))
    source = folder(root)
    assert [source.captions(i) for i in range(3)] == [["1"], ["2"], ["3"]]
    assert source.problems == [("b/4.png", "in captions.jsonl, but no such image")]


def test_an_ambiguous_spelling_finds_none(tmp_path: Path) -> None:
    root = draw(tmp_path / "d", "a.png", "A.png")
    (root / "captions.jsonl").write_text('{"key": "a.PNG", "caption": "which"}\n{"key": "A.png", "caption": "this"}')
    source = folder(root)
    assert [source.captions(i) for i in range(2)] == [["this"], []] and len(source.problems) == 1


BAD = ["half \ud800", "x" * (MOST_CAPTION + 1)]


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_caption_is_one_problem_and_the_others_stay(tmp_path: Path, bad: str) -> None:
    root = draw(tmp_path / "d", "1.png", "2.png")
    (root / "captions.jsonl").write_text(json.dumps({"key": "1.png", "captions": ["good", bad]}))
    source = folder(root)
    assert source.captions(0) == ["good"] and [key for key, _ in source.problems] == ["1.png"]


@pytest.mark.parametrize("bad", [*BAD, b"\xff latin"])
def test_a_bad_caption_beside_an_image_is_one_problem_at_every_start(tmp_path: Path, bad: str | bytes) -> None:
    root = draw(tmp_path / "d", "1.png", "2.png")
    data = json.dumps({"caption": bad}).encode() if isinstance(bad, str) else bad
    (root / ("1.json" if isinstance(bad, str) else "1.txt")).write_bytes(data)
    (root / "2.txt").write_text("good")
    for _ in range(2):
        source = folder(root)
        assert [source.captions(i) for i in range(2)] == [[], ["good"]] and [key for key, _ in source.problems] == [
            "1.png"
        ]


@pytest.mark.parametrize(
    ("text", "row", "captions"),
    [
        (b"a\nb", b'{"caption": "a\\nb"}', ["a b"]),
        (b"a\r\nb\n", b'{"caption": "a b"}', ["a b"]),
        (b"a\nb", b"", ["a", "b"]),
        (b"a", b'{"caption": "a"}', ["a"]),
        (b"a\nb", b'{"captions": ["c"]}', ["a", "b", "c"]),
        ("\ufeffa".encode(), b"not json", ["a"]),
        ("a\u2028b\u0085c".encode(), b"[]", ["a b c"]),
    ],
)
def test_a_text_and_its_json_are_one_caption_where_they_say_the_same(
    text: bytes, row: bytes, captions: list[str]
) -> None:
    assert captions_beside(text, row) == captions


def test_img2datasets_files_are_one_caption_in_folders_and_tars(tmp_path: Path) -> None:
    root = draw(tmp_path / "d", "1.png")
    (root / "1.txt").write_text("a\nb")
    (root / "1.json").write_text('{"caption": "a\\nb", "key": "1"}')
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("1.png", "1.txt", "1.json"):
            tar.add(root / name, name)
    assert folder(root).captions(0) == ["a b"] == open_source(str(tmp_path / "a.tar"), size=8).captions(0)


def test_hugging_faces_metadata_gives_captions_and_labels(tmp_path: Path) -> None:
    root = draw(tmp_path / "d", "1.png", "2.png", "3.png")
    rows = [
        {"file_name": "1.png", "text": "one", "label": 3},
        {"file_name": "2.png", "text": "two", "label": -1},
        {"file_name": "9.png"},
    ]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = folder(root)
    assert [source.captions(i) for i in range(3)] == [["one"], ["two"], []]
    assert ([source.label(i) for i in range(3)], source.classes) == ([3, -1, -1], ["0", "1", "2", "3"])
    assert source.problems == [("9.png", "in metadata.jsonl, but no such image")]


@pytest.mark.parametrize("row", [{}, {"file_name": "images/3.png", "text": "three"}])
def test_folders_are_no_classes_beside_the_labels_of_metadata(tmp_path: Path, row: dict[str, str]) -> None:
    root = draw(tmp_path / "d", "images/1.png", "images/2.png", "images/3.png", "other/4.png")
    rows = [
        {"file_name": "images/1.png", "label": 10},
        {"file_name": "images/2.png", "label": 2},
        *([row] if row else []),
    ]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = folder(root)
    assert [source.label(i) for i in range(4)] == [10, 2, -1, -1] and source.problems == []


def test_an_image_to_which_metadata_gives_two_classes_is_refused(tmp_path: Path) -> None:
    root = draw(tmp_path / "d", "a/1.png", "2.png")
    row = '{"file_name": "1.png", "label": %s}\n'
    (root / "a/metadata.jsonl").write_text(row % 3 + row % '"3.0"')
    (root / "metadata.jsonl").write_text('{"file_name": "a/1.png", "label": 5}')
    assert folder(root).label(1) == 3  # the nearest table counts
    (root / "a/metadata.jsonl").write_text(row % 3 + row % 4)
    with pytest.raises(TokError, match=r"metadata.jsonl: a/1.png has two classes. Got 3 and 4"):
        folder(root)


def test_texts_and_tables_are_found_whatever_the_case_of_their_names(tmp_path: Path) -> None:
    root = draw(tmp_path / "d", "1.png", "2.PNG", "a/3.png", "b/4.png", "5.png")
    (root / "1.TXT").write_text("one")
    (root / "2.Json").write_text('{"caption": "two"}')
    (root / "a" / "Captions.JSONL").write_text('{"key": "3.png", "caption": "three"}')
    for name, text in (("5.txt", "five"), ("5.TXT", "other")):
        (root / name).write_text(text)
    source = folder(root)
    assert [source.captions(i) for i in range(5)] == [["one"], ["two"], ["five"], ["three"], []]
    assert source.problems == [] and source.ignored == {"second .txt of an image": 1}
    before = source.id
    (root / "1.TXT").write_text("eno")
    assert folder(root).id != before
    (root / "Metadata.CSV").write_text("file_name,label\n1.png,7\n")
    assert folder(root).classes[folder(root).label(0)] == "7"


@pytest.mark.parametrize("text", ["{broken", '{"caption": "x"', "[1", "\xff", '"x" "y"'])
def test_a_text_that_is_no_json_is_one_problem_in_folders_and_tars(tmp_path: Path, text: str) -> None:
    root = draw(tmp_path / "d", "1.png", "2.png")
    (root / "1.json").write_text(text, encoding="latin-1")
    (root / "2.json").write_text('[{"box": [1, 2]}]')  # is JSON, and no caption
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("1.png", "1.json", "2.png", "2.json"):
            archive.add(root / name, name)
    why = "its .json is not JSON, or too long"
    for _ in range(2):  # at every start
        assert folder(root).problems == [("1.png", why)]
        assert open_source(str(tmp_path / "a.tar"), size=8).problems == [("a.tar/1", why)]


def test_hugging_faces_csv_is_read_and_folders_stay_classes_where_it_says_no_label(tmp_path: Path) -> None:
    root = draw(tmp_path / "d", "cat/1.png", "dog/2.png")
    (root / "metadata.csv").write_text('file_name,text\ncat/1.png,"a cat,\nasleep"\n')
    source = folder(root)
    assert source.captions(0) == ["a cat, asleep"] and source.classes == ["cat", "dog"]


def png(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("end", ["cls", "json"])
def test_labels_of_a_tar_mean_what_they_say(tmp_path: Path, end: str) -> None:
    values = ["10", "2.0", "-1", "0.5" if end == "json" else "-3"]
    members = {f"{i}.png": png() for i in range(4)} | {
        f"{i}.{end}": (value if end == "cls" else f'{{"label": {value}}}').encode() for i, value in enumerate(values)
    }
    source = open_source(str(tar(tmp_path / "a.tar", members)), size=8)
    assert ([source.label(i) for i in range(4)], len(source.classes)) == ([10, 2, -1, -1], 11)
    assert [key for key, _ in source.problems] == ["a.tar/3"] and "not understood" in source.problems[0][1]


def test_true_is_no_class_of_a_tar(tmp_path: Path) -> None:
    source = open_source(str(tar(tmp_path / "a.tar", {"1.png": png(), "1.json": b'{"cls": true}'})), size=8)
    assert (source.label(0), source.classes) == (-1, []) and "true" in source.problems[0][1]


@pytest.mark.parametrize("bad", [b"\xff", b'{"caption": "half \\ud800"}', b"x" * (MOST_CAPTION + 1), b"{broken"])
def test_a_bad_text_of_a_tar_is_one_problem(tmp_path: Path, bad: bytes) -> None:
    members = {"1.png": png(), "1.json" if bad[:1] == b"{" else "1.txt": bad, "2.png": png(), "2.txt": b"good"}
    source = open_source(str(tar(tmp_path / "a.tar", members)), size=8)
    assert [source.captions(i) for i in range(2)] == [[], ["good"]] and [key for key, _ in source.problems] == [
        "a.tar/1"
    ]
