"""Every source keeps the same promises, and a new one is used as soon as it is registered."""

import contextlib
import functools
import gzip
import http.server
import io
import json
import pickle
import struct
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

from tokcli.artifact.draft import Draft, begin
from tokcli.artifact.opening import open_artifact
from tokcli.cli import cli
from tokcli.data import sample_store as store
from tokcli.data.sources import SOURCES, BadImage, ImageSource, open_source, sibling
from tokcli.data.sources.listing import refuse_labels
from tokcli.errors import TokError
from tokcli.stages import pack_data


def png(shade: int, side: int = 6) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def a_folder(root: Path) -> str:
    for name, data in {"b/2.png": png(2), "a/1.png": png(1), "a/3.png": b"no image"}.items():
        (root / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "photos" / name).write_bytes(data)
    (root / "photos" / "a" / "1.txt").write_text("one")
    (root / "photos" / "b" / "gone.png").symlink_to(root / "nowhere")
    return str(root / "photos")


def a_tar(root: Path) -> str:
    members = {
        "1.png": png(1),
        "1.txt": b"one",
        "1.cls": b"cat",
        "2.png": png(2),
        "3.png": b"no image",
        "4.txt": b"alone",
    }
    with tarfile.open(root / "a.tar", "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(root / "a.tar")


def a_coco(root: Path) -> str:
    (root / "train2017").mkdir()
    for number, data in enumerate([png(1), png(2), b"no image"], 1):
        (root / "train2017" / f"{number}.png").write_bytes(data)
    table = {"images": [{"id": i, "file_name": f"{i}.png"} for i in (1, 2, 3, 4)],
             "annotations": [{"image_id": 1, "caption": "one"}]}  # fmt: skip
    (root / "annotations").mkdir()
    (root / "annotations" / "captions_train2017.json").write_text(json.dumps(table))
    return str(root / "train")


def an_idx(root: Path, split: str = "train", stem: str = "train") -> str:
    images = bytes([0, 0, 8, 3]) + struct.pack(">III", 4, 2, 3) + bytes(range(24))
    root.mkdir(parents=True, exist_ok=True)
    (root / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (root / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 4, 0, 1, 2, 1])))
    return str(root / split)


def the_fashion(root: Path) -> str:
    an_idx(root / "cache" / "fashion-mnist", "val", "t10k")
    return "fashion-mnist/val"


def the_emoji(root: Path) -> str:
    pytest.importorskip("resvg_py", reason="extra demo")
    return "openmoji/val"


def a_parquet(root: Path) -> str:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [
        {"bytes": png(1), "path": None},
        {"bytes": png(2), "path": "2.png"},
        None,
        {"bytes": b"no image", "path": None},
    ]
    table = {"image": images, "label": [0, 1, 0, 1], "caption": ["one", None, "of none", ""]}
    parquet.write_table(arrow.table(table), root / "train.parquet", row_group_size=2)
    return str(root / "train.parquet")


def some_samples(root: Path, form: str = "png", prompts: list[str] | None = None) -> str:
    folder, labels = root / "samples", [1, 0, -1]
    begun = begin(folder, "samples", {"sample": {"prompts": prompts}}, {}, {"command": ["tok", "sample"]})
    assert isinstance(begun, Draft)
    for i in range(3):
        store.write_batch(
            folder,
            i,
            range(i, i + 1),
            torch.zeros(1, 2, dtype=torch.int64),
            torch.full((1, 3, 6, 6), i, dtype=torch.uint8),
            form,
        )
    kept = {"per_file": 2, "codebook_size": 8, "form": form, "labels": labels, "captions": [], "classes": ["10", "2"]}
    files = store.merge(folder, 3, **kept)  # type: ignore[arg-type]
    (folder / "sheet.png").write_bytes(png(99))
    begun.finish({"labels": labels, "classes": ["10", "2"]}, payload=files, extras=["sheet.png"])
    return str(folder)


def a_url(root: Path) -> str:
    a_tar(root)
    return f"{served(root)}/a.tar"


def served(root: Path) -> str:
    """The address of a server of a folder, which ends with the tests."""
    handler = functools.partial(Quiet, directory=str(root))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None: ...


CASES: dict[str, Callable[[Path], str]] = {
    "folder": a_folder, "tar": a_tar, "url": a_url, "samples": some_samples, "parquet": a_parquet, "coco": a_coco, "idx": an_idx, "fashion-mnist": the_fashion, "openmoji": the_emoji,
}  # fmt: skip
DAMAGED = ("folder", "tar", "url", "parquet", "coco")  # their third image is none, and one more sample is missing


def test_every_source_has_a_case() -> None:
    assert set(CASES) == set(SOURCES)


@pytest.fixture(params=CASES)
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TOK_CACHE", str(tmp_path / "cache"))
    return request.param


def opened(kind: str, root: Path) -> ImageSource:
    return open_source(CASES[kind](root), size=8)


def test_a_source_is_of_its_kind_and_named_so_that_it_is_found_again(kind: str, tmp_path: Path) -> None:
    source = opened(kind, tmp_path)
    again = open_source(source.name, size=8)
    assert type(source) is SOURCES[kind] and isinstance(source, ImageSource)
    assert (type(again), again.id, again.name, len(again)) == (type(source), source.id, source.name, len(source))
    assert source.id.startswith("data-") and len(source.id) == 17


def test_keys_are_different_lines_and_labels_are_numbers_of_classes(kind: str, tmp_path: Path) -> None:
    source = opened(kind, tmp_path)
    keys = [source.key(i) for i in range(len(source))]
    assert len(set(keys)) == len(source) >= 3 and all(key and key.isprintable() for key in keys)
    assert all(-1 <= source.label(i) < max(1, len(source.classes)) for i in range(len(source)))
    assert all(type(source.label(i)) is int for i in range(len(source)))


def test_captions_are_lists_of_lines_and_belong_to_their_image(kind: str, tmp_path: Path) -> None:
    source = opened(kind, tmp_path)
    captions = [source.captions(i) for i in range(len(source))]
    assert all(text.strip() == text and text for texts in captions for text in texts)
    if kind in DAMAGED:
        assert [i for i, texts in enumerate(captions) if texts == ["one"]] == [0] and sum(map(len, captions)) == 1


def test_a_pickled_source_gives_the_same_pixels(kind: str, tmp_path: Path) -> None:
    source = opened(kind, tmp_path)
    image, again = source.image(0), pickle.loads(pickle.dumps(source)).image(0)
    assert image.dtype == torch.uint8 and image.shape[0] == 3 and torch.equal(image, again)


@pytest.mark.parametrize("kind", DAMAGED, indirect=True)
def test_what_is_missing_is_a_problem_and_what_cannot_be_read_is_named(kind: str, tmp_path: Path) -> None:
    source = opened(kind, tmp_path)
    (bad,) = [i for i in range(len(source)) if "3" in source.key(i)]
    assert len(source) == 3 and len(source.problems) == 1
    with pytest.raises(BadImage, match=r"3.*: not an image"):
        source.image(bad)


def told(source: ImageSource) -> list[Any]:
    """All that a source says of its readable images."""
    found = []
    for i in range(len(source)):
        with contextlib.suppress(BadImage):
            found.append((source.image(i).tolist(), source.label(i), source.captions(i)))
    return found


def test_what_is_packed_comes_back_from_every_source(kind: str, tmp_path: Path) -> None:
    source = opened(kind, tmp_path)
    pack_data.main(source.name, tmp_path / "pack", labels=None, size=8, shard_bytes=10**6, max_bad=1, max_pixels=10**6)
    packed = open_source(str(tmp_path / "pack"), size=8)
    assert told(packed) == told(source) and packed.classes == source.classes and packed.problems == []


@pytest.mark.parametrize("name", ["1", "1.img", "1.mpo"])
def test_an_image_is_packed_by_what_it_is_whatever_its_name_says(tmp_path: Path, name: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("TOK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "train2017").mkdir()
    Image.new("RGB", (6, 6), (9, 9, 9)).save(
        tmp_path / "train2017" / name, "MPO", save_all=True, append_images=[Image.new("RGB", (6, 6))]
    )
    (tmp_path / "annotations").mkdir()
    table = {"images": [{"id": 1, "file_name": name}], "annotations": []}
    (tmp_path / "annotations" / "captions_train2017.json").write_text(json.dumps(table))
    pack_data.main(
        str(tmp_path / "train"), tmp_path / "pack", labels=None, size=8, shard_bytes=10**6, max_bad=0, max_pixels=10**6
    )
    packed = open_source(str(tmp_path / "pack"), size=8)
    assert packed.image(0)[0, 0, 0] == 9 and packed.encoded(0)[0] == "jpeg" and packed.problems == []


def test_labels_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("a/1.png x\n")
    spec = CASES[kind](tmp_path)
    if kind == "folder":
        assert open_source(spec, size=8, labels=tmp_path / "labels").classes == ["x"]
    else:
        with pytest.raises(TokError, match="--labels: goes with a folder of images"):
            open_source(spec, size=8, labels=tmp_path / "labels")


@pytest.mark.parametrize("form", ["png", "shards"])
def test_samples_as_data_are_their_images_and_not_the_sheet_beside_them(tmp_path: Path, form: str) -> None:
    source = open_source(some_samples(tmp_path, form), size=8)
    assert [int(source.image(i)[0, 0, 0]) for i in range(len(source))] == [0, 1, 2]
    assert source.classes == ["10", "2"] and [source.label(i) for i in range(3)] == [1, 0, -1]


def test_samples_drawn_from_captions_bring_them_in_turn(tmp_path: Path) -> None:
    source = open_source(some_samples(tmp_path, prompts=["a cat", "a dog"]), size=8)
    assert [source.captions(i) for i in range(3)] == [["a cat"], ["a dog"], ["a cat"]]


def test_other_artifacts_are_no_data_and_neither_are_samples_that_are_not_whole(
    tmp_path: Path, make_artifact: Callable[..., Any]
) -> None:
    made = make_artifact(tmp_path / "t")
    (made.path / "preview.png").write_bytes(png(1))
    with pytest.raises(TokError, match="--data .*/t: is not of kind samples. Got tokenizer"):
        open_source(str(made.path), size=8)
    (Path(some_samples(tmp_path)) / "images" / "000001.png").unlink()
    with pytest.raises(TokError, match="some of its images are missing. Got 2 of 3. Run tok verify"):
        open_source(str(tmp_path / "samples"), size=8)


class Shades:
    """A source that a user might write: N grey squares of two classes."""

    def __init__(self, count: int) -> None:
        self.name, self.id, self.classes = f"shades:{count}", f"data-{count:012d}", ["even", "odd"]
        self.count, self.problems = count, list[tuple[str, str]]()

    @classmethod
    def claims(cls, spec: str) -> bool:
        return spec.startswith("shades:") or spec.endswith(".shades")

    @classmethod
    def open(cls, spec: str, *, size: int, labels: Path | None = None) -> "Shades":
        refuse_labels(labels, spec)
        return cls(int(spec.removeprefix("shades:")) if ":" in spec else 3)

    def __len__(self) -> int:
        return self.count

    def key(self, i: int) -> str:
        return f"shade-{i}"

    def label(self, i: int) -> int:
        return i % 2

    def captions(self, i: int) -> list[str]:
        return []

    def image(self, i: int) -> Tensor:
        return torch.full((3, 64, 64), i, dtype=torch.uint8)


def test_a_registered_source_is_what_data_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "shades", Shades)
    flags: list[Any] = [
        "train-tokenizer",
        "--recipe",
        "toy/tokenizer-vqgan",
        "--data",
        "shades:6",
        "--workspace",
        tmp_path,
    ]
    done = CliRunner().invoke(cli, [*map(str, flags), "--set", "train.steps=1", "--threads", "1"])
    assert done.exit_code == 0, (done.output, done.exception)
    made = open_artifact(Path(done.stdout.strip()))
    assert made.inputs["data"] == {"id": "data-000000000006", "path": "shades:6"}


def test_a_registered_source_goes_before_a_plain_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.shades").mkdir()
    monkeypatch.setitem(SOURCES, "shades", Shades)
    assert isinstance(open_source(str(tmp_path / "x.shades"), size=8), Shades)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("Train", "Val"),
        ("training", "validation"),
        ("train", "valid"),
        ("train2014", "val2014"),
        ("TRAIN", "val"),
        ("train", "Val"),
        ("train-set", "val-set"),
        ("train_2024", "val_2024"),
        ("Training Set", "Validation Set"),
    ],
)
def test_the_other_split_is_found_under_its_usual_names(tmp_path: Path, name: str, other: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / other).mkdir()
    assert sibling(str(tmp_path / name), "val") == str(tmp_path / other)
    assert sibling(str(tmp_path / other), "val") is None and sibling(str(tmp_path), "val") is None
