"""Batches: the same for any workers, ranks and first step, whatever is bad in the data."""

import itertools
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tokcli.data import reading
from tokcli.data.batches import Batch, TrainBatches
from tokcli.data.randomness import generator
from tokcli.data.reading import processes, read_all
from tokcli.data.sources import BadImage, open_source
from tokcli.data.transforms import CenterCrop, CropViews, RandomResizedCrop
from tokcli.errors import TokError
from tokcli.training.signals import NothingCame


class Numbers:
    """Images that show their number; some are bad."""

    name, id, classes = "numbers", "data-0", ["even", "odd"]

    def __init__(self, count: int, bad: tuple[int, ...] = (), deadly: int = -1, endless: int = -1) -> None:
        self.count, self.bad, self.deadly, self.endless = count, bad, deadly, endless
        self.problems: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return self.count

    def key(self, i: int) -> str:
        return f"n{i}"

    def label(self, i: int) -> int:
        return i % 2

    def captions(self, i: int) -> list[str]:
        return []

    def image(self, i: int) -> Tensor:
        if i == self.deadly:
            os._exit(1)
        if i == self.endless:
            os.kill(os.getppid(), signal.SIGUSR2)
            time.sleep(600)
        if i in self.bad:
            raise BadImage(f"n{i}", "bad")
        return torch.randint(0, 256, (3, 12, 12), generator=generator(9, i), dtype=torch.uint8)


RANDOM = RandomResizedCrop(8, scale=(0.3, 1.0))


def take(batches: Iterator[Batch], count: int) -> list[Batch]:
    return list(itertools.islice(batches, count))


def same(some: list[Batch], others: list[Batch]) -> bool:
    pairs = zip(some, others, strict=True)
    return all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))


def test_each_epoch_sees_every_sample_once_across_batch_borders() -> None:
    batches = take(iter(TrainBatches(Numbers(10), RANDOM, batch_size=4, seed=0)), 5)
    seen = torch.cat([batch.indices for batch in batches])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_labels_and_types_fit_the_samples() -> None:
    (batch,) = take(iter(TrainBatches(Numbers(10), RANDOM, batch_size=4, seed=0)), 1)
    assert batch.images.shape == (4, 3, 8, 8) and batch.images.dtype == torch.uint8
    assert torch.equal(batch.labels, batch.indices % 2) and batch.labels.dtype == torch.int64


def test_starting_late_is_the_same_as_skipping() -> None:
    batches = TrainBatches(Numbers(10), RANDOM, batch_size=4, seed=0)
    assert same(take(batches.from_step(3), 3), take(iter(batches), 6)[3:])


def test_seeds_differ() -> None:
    one, other = (take(iter(TrainBatches(Numbers(10), RANDOM, batch_size=4, seed=s)), 1) for s in (0, 1))
    assert not same(one, other)


def test_an_image_is_cropped_anew_in_each_epoch() -> None:
    first, second = take(iter(TrainBatches(Numbers(1), RANDOM, batch_size=1, seed=0)), 2)
    assert not torch.equal(first.images, second.images)


@pytest.mark.parametrize("bad", [(), (0, 1, 7)])
def test_ranks_together_see_what_one_process_sees(bad: tuple[int, ...]) -> None:
    def run(rank: int, world: int) -> list[Batch]:
        source = Numbers(10, bad)
        batches = TrainBatches(source, RANDOM, batch_size=6, seed=0, max_bad=0.5, rank=rank, world=world)
        return take(iter(batches), 4)

    whole, parts = run(0, 1), [run(rank, 3) for rank in range(3)]
    for step, batch in enumerate(whole):
        for rank in range(3):
            assert same([Batch(*(t[rank::3] for t in batch))], [parts[rank][step]])


@pytest.mark.parametrize("bad", [(), (0, 4)])
def test_workers_change_nothing(bad: tuple[int, ...]) -> None:
    runs = []
    for workers in (0, 1, 2):
        batches = TrainBatches(Numbers(10, bad), RANDOM, batch_size=4, seed=0, workers=workers, max_bad=0.2)
        runs.append((take(batches.from_step(1), 5), batches.skipped))
    assert all(same(runs[0][0], run) and skipped == runs[0][1] for run, skipped in runs[1:])
    assert sorted(key for key, _ in runs[0][1]) == [f"n{i}" for i in bad]


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_draws_nothing_from_the_global_generator(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "WORTH", -1.0)  # so that processes are started
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(iter(TrainBatches(Numbers(10), RANDOM, batch_size=4, seed=0, workers=workers)), 2)
    with processes(workers):
        list(read_all(Numbers(40), RANDOM, indices=range(40)))
    assert torch.equal(before, torch.get_rng_state())


def test_a_bad_image_is_replaced_by_the_next_good_one_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    batches = TrainBatches(Numbers(5, bad=(3, 4)), RANDOM, batch_size=5, seed=0, max_bad=0.4)
    with caplog.at_level(logging.WARNING, "tok"):
        seen = [batch.indices.tolist() for batch in take(iter(batches), 3)]
    assert [sorted(one) for one in seen] == [[0, 0, 0, 1, 2]] * 3
    assert sorted(batches.skipped) == [("n3", "bad"), ("n4", "bad")]
    assert caplog.text.count("skipped n3: bad") == 1


def test_one_bad_image_of_a_few_is_put_up_with() -> None:
    batches = TrainBatches(Numbers(5, bad=(3,)), RANDOM, batch_size=5, seed=0)
    assert 3 not in take(iter(batches), 1)[0].indices


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("bad", [(1, 2), tuple(range(100))])
def test_too_many_bad_images_stop_the_training(bad: tuple[int, ...], workers: int) -> None:
    batches = TrainBatches(Numbers(100, bad), RANDOM, batch_size=50, seed=0, workers=workers)
    with pytest.raises(TokError, match=r"numbers: more than 1 of 100 images cannot be read.*max_bad"):
        take(iter(batches), 2)


def test_a_data_set_without_one_good_image_ends(caplog: pytest.LogCaptureFixture) -> None:
    batches = TrainBatches(Numbers(30, tuple(range(30))), RANDOM, batch_size=4, seed=0, max_bad=1.0)
    with pytest.raises(TokError, match="no image in it can be read"):
        next(iter(batches))
    assert caplog.text.count("skipped n") == 20 and len(batches.skipped) == 30


def test_what_was_found_while_listing_counts_as_bad() -> None:
    source = Numbers(10)
    source.problems = [("a.tar", "cut short"), ("b.tar", "cut short")]
    with pytest.raises(TokError, match=r"b.tar: cut short"):
        TrainBatches(source, RANDOM, batch_size=2, seed=0)


def test_a_batch_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(TokError, match="does not divide over 3 processes"):
        TrainBatches(Numbers(10), RANDOM, batch_size=4, seed=0, world=3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_workers_outlive_a_signal_that_goes_to_the_whole_job(number: int) -> None:
    others = set(multiprocessing.active_children())
    batches = iter(TrainBatches(Numbers(10), RANDOM, batch_size=2, seed=0, workers=1))
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - others
    assert worker.pid is not None
    os.kill(worker.pid, number)
    assert len(take(batches, 8)) == 8 and worker.is_alive()
    batches.close()  # type: ignore[attr-defined]
    worker.join(10)
    assert worker.exitcode == 0


def test_a_signal_does_not_wait_for_a_worker_that_hangs() -> None:
    def stop(*_: Any) -> None:
        nonlocal began
        began = time.monotonic()
        raise NothingCame

    began, left = 0.0, set(multiprocessing.active_children())
    others = iter(TrainBatches(Numbers(10), RANDOM, batch_size=2, seed=0, workers=1))
    next(others)
    (other,) = set(multiprocessing.active_children()) - left
    before = signal.signal(signal.SIGUSR2, stop)  # sent by the worker that hangs
    try:
        batches = iter(TrainBatches(Numbers(10, endless=7), RANDOM, batch_size=10, seed=0, workers=2))
        with pytest.raises(NothingCame):
            next(batches)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert time.monotonic() - began < 8  # torch waits for 5 s, and then for 5 more
    assert set(multiprocessing.active_children()) - left == {other}  # whose work is another's


def test_reading_leaves_the_handler_of_ended_children_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def ours(*_: Any) -> None: ...

    # torch sets its own with the first loader of a process only
    monkeypatch.setattr(torch.utils.data._utils.signal_handling, "_SIGCHLD_handler_set", False)
    before = signal.signal(signal.SIGCHLD, ours)
    try:
        next(iter(TrainBatches(Numbers(10), RANDOM, batch_size=2, seed=0, workers=1)))
        assert signal.getsignal(signal.SIGCHLD) is ours
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_dying_worker_raises_and_does_not_hang() -> None:
    batches = TrainBatches(Numbers(10, deadly=7), RANDOM, batch_size=10, seed=0, workers=1)
    with pytest.raises(TokError, match="a process that decodes images died"):
        next(iter(batches))


@pytest.mark.parametrize("workers", [0, 2])
def test_bulk_jobs_read_in_order_and_report_what_is_bad(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "WORTH", -1.0)
    source, wanted = Numbers(50, bad=(5, 49)), [*range(40, 50), 5, 2, 2, *range(10, 35)]
    with processes(workers):
        found = list(read_all(source, CenterCrop(12), indices=wanted))
    assert [i for i, _ in found] == wanted
    for i, image in found:
        assert isinstance(image, BadImage) == (i in source.bad)
        assert isinstance(image, BadImage) or torch.equal(image, source.image(i))


def test_bulk_jobs_take_views() -> None:
    views = CropViews(8, crops=1, flip=True)
    ((_, image),) = read_all(Numbers(5), views, indices=[3])
    assert isinstance(image, Tensor) and torch.equal(image, views(Numbers(5).image(3), 3))


def test_a_folder_with_broken_files_trains(tmp_path: Path) -> None:
    from PIL import Image

    for i in range(8):
        Image.new("RGB", (20 + i, 16), (i, 0, 0)).save(tmp_path / f"{i}.jpg")
    (tmp_path / "8.jpg").write_bytes((tmp_path / "7.jpg").read_bytes()[:300])
    (tmp_path / "9.jpg").write_text("<html>")
    batches = TrainBatches(open_source(str(tmp_path), size=8), CenterCrop(8), batch_size=10, seed=0, max_bad=0.2)
    assert take(iter(batches), 1)[0].indices.max() == 7
    assert sorted(key for key, _ in batches.skipped) == ["8.jpg", "9.jpg"]
