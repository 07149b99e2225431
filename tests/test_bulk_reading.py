"""Bulk commands read through worker processes: the same bytes, one line when one dies, none left behind, bounded memory."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_data_batches import Numbers
from test_faults import made, refusal
from torch import Tensor

from tokcli import device, distributed
from tokcli.artifact.opening import open_artifact
from tokcli.data import reading
from tokcli.data import sample_store as store
from tokcli.data.reading import most_processes, processes, read_all
from tokcli.data.sources import BadImage
from tokcli.data.transforms import CenterCrop
from tokcli.device import cores
from tokcli.errors import TokError
from tokcli.files import Behind
from tokcli.pretrained.feature_cache import TeacherCache
from tokcli.stages import tokenize

TOY = ["--recipe", "toy/tokenizer-vqgan", "--set", "loss={l1: {weight: 1.0}}", "--set", "train.steps=1"]
LOAD = reading.load


def photograph(folder: Path, count: int, size: tuple[int, int] = (40, 32)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    noise = torch.randint(0, 256, (count, size[1], size[0], 3), generator=torch.Generator().manual_seed(0))
    for number, pixels in enumerate(noise.to(torch.uint8).numpy()):
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")
    return folder


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """40 training images, 20 held out, one of which is none, and a tokenizer with a decoder."""
    root = tmp_path_factory.mktemp("bulk")
    train, val = photograph(root / "photos" / "train", 40), photograph(root / "photos" / "val", 20)
    (val / "0003.png").write_text("no image")
    return {
        "train": train,
        "val": val,
        "tokenizer": made("train-tokenizer", *TOY, "--data", train, "--out", root / "t"),
    }


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """However little there is to read, workers are worth it; how many each reading started. None of them is left afterwards."""
    asked: list[int] = []

    def load(dataset: Any, sampler: Any, workers: int) -> Iterator[Any]:
        asked.append(workers)
        return LOAD(dataset, sampler, workers)

    monkeypatch.setattr(reading, "WORTH", -1.0)
    monkeypatch.setattr(reading, "CHUNK", 4)
    monkeypatch.setattr(reading, "load", load)
    yield asked
    assert not multiprocessing.active_children()


def tokenizing(ready: dict[str, Path], data: Path) -> list[Any]:
    return ["tokenize", "--recipe", "toy/tokens", "--tokenizer", ready["tokenizer"], "--data", data]


COMMANDS: dict[str, Callable[[dict[str, Path]], list[Any]]] = {
    "tokenize": lambda r: [
        *tokenizing(r, r["val"]), "--crops", "3", "--flip",
        "--set", "tokens.max_bad=0.5", "--set", "tokens.shard_size=6",
    ],
    "viz-codebook": lambda r: [
        "viz-codebook", "--recipe", "toy/viz", "--tokenizer", r["tokenizer"], "--data", r["val"],
        "--set", "viz.perplexity=2", "--set", "viz.points=20", "--set", "viz.columns=2",
    ],
    "eval": lambda r: [
        "eval", r["tokenizer"], "--recipe", "toy/eval", "--data", r["val"], "--set", "eval.extractors=[]",
        "--set", "eval.manifold=0", "--set", "eval.images=0",
    ],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_writes_the_same_with_any_number_of_workers(
    command: str, ready: dict[str, Path], started: list[int], tmp_path: Path
) -> None:
    ids = []
    for workers in (0, 1, 2):
        started.clear()
        a = open_artifact(made(*COMMANDS[command](ready), "--workers", workers, "--out", tmp_path / str(workers)))
        assert max(started) == workers
        ids.append(
            (a.id, a.facts, {name: one["sha256"] for name, one in a.manifest["files"].items() if one["payload"]})
        )
    assert ids[0] == ids[1] == ids[2] and ids[0][2]


def test_neighbours_and_cached_features_are_the_same_with_any_number_of_workers(
    ready: dict[str, Path], started: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokcli.data.sources import open_source
    from tokcli.sampling.memorisation import features_of, nearest

    class Teacher:
        name, sha256, layers, norm, image_size, projection, feature_dim = "t", "0", [1], False, 8, True, 3

        def __call__(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
            return images.unflatten(2, (2, 4)).unflatten(4, (2, 4)).mean((3, 5)).flatten(2).mT + 0.1

    monkeypatch.setenv("TOK_CACHE", str(tmp_path))
    monkeypatch.setattr("tokcli.pretrained.feature_cache.TEACHER_SHARD", 7)
    source, own, found = open_source(str(ready["train"]), size=8), features_of("pixels", torch.device("cpu")), []
    for workers in (0, 2):
        with processes(workers):
            near = nearest(torch.zeros(3, 768), source, own, 16)
            cache = TeacherCache(Teacher(), source, CenterCrop(8), (2, 2), "float32")  # type: ignore[arg-type]
            cache.fill(torch.device("cpu"))
        rows = cache.rows(torch.arange(40))
        found.append((near.numbers.tolist(), near.distances.tolist(), rows))
        for file in cache.cache.folder.iterdir():
            file.unlink()
    assert found[0][:2] == found[1][:2] and torch.equal(found[0][2], found[1][2]) and found[0][2].abs().sum() > 0
    assert sorted(set(started)) == [0, 2]


def test_little_work_starts_no_process_and_much_starts_as_many_as_are_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(reading, "load", lambda d, s, workers: asked.append(workers) or LOAD(d, s, 0))
    with processes(8):
        list(read_all(Numbers(100), CenterCrop(8), indices=range(100)))
        monkeypatch.setattr(reading, "WORTH", -1.0)
        list(read_all(Numbers(40), CenterCrop(8), indices=range(40)))  # 16 are read here, 24 are two chunks
    assert asked == [0, 2]


def test_the_default_is_this_process_s_share_of_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reading, "cores", lambda: 6)
    assert most_processes() == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert distributed.local_world_size() == 4 and most_processes() == 1
    with processes(3):
        assert most_processes() == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.setattr(device, "GROUPS", tmp_path)
    monkeypatch.setattr(device, "OWN_GROUP", tmp_path / "own")
    (tmp_path / "own").write_text("0::/a/b\n")
    assert cores() == 16
    (tmp_path / "a" / "cpu.max").write_text("250000 100000\n")
    (tmp_path / "a" / "b" / "cpu.max").write_text("max 100000\n")
    assert cores() == 2
    (tmp_path / "cpu").mkdir()
    for part, value in (("quota", "50000"), ("period", "100000")):
        (tmp_path / "cpu" / f"cpu.cfs_{part}_us").write_text(value)
    assert cores() == 1


def test_shared_memory_bounds_the_workers(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(reading, "cores", lambda: 6)
    monkeypatch.setattr(
        reading.shutil, "disk_usage", lambda _: os.terminal_size((0, 0)) and type("D", (), {"free": 6000})
    )
    assert reading._workers(10, 500) == 2 and "has room for 2 of 6 processes" in caplog.text


class Telling(Numbers):
    """Image 30 ends in an error of that kind, wherever it is read."""

    def __init__(self, error: Exception) -> None:
        super().__init__(60)
        self.error = error

    def image(self, i: int) -> Tensor:
        if i == 30:
            raise self.error
        return super().image(i)


@pytest.mark.parametrize(
    "error", [TokError("a.tar", "is gone", got="404", next="Look for it"), OSError(5, "Input/output error", "x")]
)
def test_an_error_in_a_worker_is_what_it_would_be_here(error: Exception, started: list[int]) -> None:
    with pytest.raises(type(error)) as caught, processes(2):
        list(read_all(Telling(error), CenterCrop(8), indices=range(60)))
    assert str(caught.value) == str(error) and max(started) == 2


def test_a_worker_that_dies_ends_the_work_in_one_line(started: list[int]) -> None:
    with (
        pytest.raises(TokError, match="a process that decodes images died.*Use fewer --workers") as caught,
        processes(2),
    ):
        list(read_all(Numbers(60, deadly=50), CenterCrop(8), indices=range(60)))
    assert "\n" not in str(caught.value)


def test_full_shared_memory_is_said_and_hangs_nothing(started: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Tensor) -> None:
        raise RuntimeError("unable to write to file </torch_1>: No space left on device (28)\nmore")

    monkeypatch.setattr(Tensor, "share_memory_", full)
    with (
        pytest.raises(TokError, match="no shared memory for images: unable to write.*Use fewer --workers"),
        processes(1),
    ):
        list(read_all(Numbers(60), CenterCrop(8), indices=range(60)))


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_images_stop_in_the_middle_of_a_shard(
    workers: int, ready: dict[str, Path], started: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = photograph(tmp_path / "d", 60)
    for i in (20, 21):
        (data / f"{i:04d}.png").write_text("no image")
    encoded: list[int] = []
    encode = tokenize._encode
    monkeypatch.setattr(
        tokenize, "_encode", lambda t, images, *r: encode(t, (encoded.append(1) or x for x in images), *r)
    )
    command = [*tokenizing(ready, data), "--workers", workers]
    said = refusal(*command, "--set", "tokens.shard_size=50", "--out", tmp_path / "k")
    assert "2 of 60 images could not be read" in said and len(encoded) == 20
    assert not list((tmp_path / "k").glob("indices-*"))
    assert open_artifact(made(*command, "--set", "tokens.max_bad=0.1", "--out", tmp_path / "l")).facts["left_out"] == {
        "unreadable": 2
    }


@pytest.mark.parametrize("keeping", [False, True])
def test_as_many_images_are_held_for_a_large_shard_as_for_a_small_one(
    keeping: bool, ready: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`keeping` is what a list of a shard's images would be: the count sees it."""
    alive: list[tuple[Any, int]] = []
    most: dict[int, int] = {}
    read, encode = reading._Chunks.__getitem__, tokenize._encode

    def counted(self: Any, chunk: list[int]) -> Any:
        images, bad = read(self, chunk)
        alive[:] = [(one, held) for one, held in alive if one() is not None]
        alive.append((weakref.ref(images.untyped_storage()), len(images.flatten(0, 1))))
        most[size] = max(most.get(size, 0), sum(held for _, held in alive))
        return images, bad

    monkeypatch.setattr(reading._Chunks, "__getitem__", counted)
    if keeping:
        monkeypatch.setattr(tokenize, "_encode", lambda t, images, *r: encode(t, list(images), *r))
    monkeypatch.setattr(tokenize, "BATCH", 16)
    data = photograph(tmp_path / "d", 40)
    for size in (10, 40):
        made(*tokenizing(ready, data), "--crops", "4", "--flip",
             "--set", f"tokens.shard_size={size}", "--workers", "0", "--out", tmp_path / str(size))  # fmt: skip
    views = 8
    assert (most[40] >= 40 * views) if keeping else (most[40] <= most[10] + 2 * reading.CHUNK <= 16 + 5 * reading.CHUNK)


def test_tokens_in_bfloat16_are_another_artifact_and_begin_at_the_one_autocast(
    ready: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    begin = tokenize.autocast
    monkeypatch.setattr(
        tokenize, "autocast", lambda device, precision: asked.append(precision) or begin(device, precision)
    )
    command = [*tokenizing(ready, ready["train"]), "--workspace", tmp_path]
    exact, rounded = (open_artifact(made(*command, "--set", f"tokens.precision={p}")) for p in ("float32", "bfloat16"))
    assert asked == ["float32", "bfloat16"] and exact.path != rounded.path
    assert exact.recipe["tokens"]["precision"] == "float32" and rounded.facts["rows"] == 40


def test_what_is_written_behind_is_in_order_and_its_error_comes_out() -> None:
    done: list[int] = []
    with Behind() as behind:
        for i in range(6):
            behind(lambda i: (time.sleep(0.001), done.append(i)), i)
    assert done == list(range(6))
    with pytest.raises(ZeroDivisionError), Behind() as behind:
        behind(lambda: 1 / 0)


def test_workers_make_no_other_artifact(ready: dict[str, Path], tmp_path: Path) -> None:
    train = ["train-tokenizer", *TOY, "--data", ready["train"], "--workspace", tmp_path]
    one = made(*train, "--workers", "0")
    assert made(*train, "--workers", "1") == one and len(list(tmp_path.glob("tokenizer-*"))) == 1
    assert json.loads((one / "manifest.json").read_text())["recipe"]["data"]["workers"] == 0


def test_an_image_that_cannot_be_read_comes_back_from_a_worker_by_name(started: list[int]) -> None:
    with processes(2):
        found = dict(read_all(Numbers(60, bad=(5, 40)), CenterCrop(8), indices=range(60)))
    assert [i for i, one in found.items() if isinstance(one, BadImage)] == [5, 40] and found[40].key == "n40"


def test_pngs_are_written_by_several_threads_and_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (4, 3, 9, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    save, both = Image.Image.save, threading.Barrier(2, timeout=20)
    written = []
    for workers in (0, 2):
        with monkeypatch.context() as patched, processes(workers):
            if workers:  # two at a time, or it breaks
                patched.setattr(Image.Image, "save", lambda image, *a, **k: both.wait() >= 0 and save(image, *a, **k))
            (tmp_path / str(workers)).mkdir()
            store.write_batch(tmp_path / str(workers), 0, range(4), torch.zeros(4, 2, dtype=torch.int64), images, "png")
        written.append([file.read_bytes() for file in sorted((tmp_path / str(workers)).glob("images/*.png"))])
    assert len(written[0]) == 4 and written[0] == written[1]


READ = """
import torch
from types import SimpleNamespace
from tokcli.data.reading import load

class Items(list):
    source = SimpleNamespace(name="items")

if __name__ == "__main__":
    print([int(item[0]) for item in load(Items(torch.full((3,), i) for i in range(3)), range(3), 1)])
"""


def test_workers_hand_over_images_under_a_long_temporary_folder(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)  # a socket's name may have 107 bytes, and lies there
    folder.mkdir()
    (tmp_path / "read.py").write_text(READ)
    variables = os.environ | {"TMPDIR": str(folder)}
    ran = subprocess.run(
        [sys.executable, tmp_path / "read.py"], env=variables, capture_output=True, text=True, timeout=100, check=False
    )
    assert ran.stdout == "[0, 1, 2]\n" and not ran.stderr and not list(folder.iterdir())


def test_a_temporary_folder_is_refused_that_is_too_long_where_there_is_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(reading, "SHORT", [str(tmp_path / "none")])
    monkeypatch.setattr(reading.tempfile, "tempdir", str(tmp_path / ("long" * 30)))
    monkeypatch.setattr(reading.util, "get_temp_dir", lambda: os.listdir(reading.tempfile.tempdir))
    with pytest.raises(TokError, match="TMPDIR: is too long for processes that read images"):
        reading._name_sockets_shortly.__wrapped__()
