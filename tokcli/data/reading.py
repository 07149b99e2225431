"""Images read once and in order, for measuring and bulk work: the same for any number of worker processes, none of which is left behind."""

import contextlib
import functools
import itertools
import logging
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from multiprocessing import connection, util
from types import FrameType
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from tokcli import distributed
from tokcli.data.randomness import generator
from tokcli.data.sources import BadImage, ImageSource
from tokcli.data.transforms import CropViews, Transform, evaluation_transform
from tokcli.device import cores
from tokcli.errors import TokError
from tokcli.progress import passing

AHEAD = 2  # items that a worker may have ready
LONGEST = 60  # bytes of the temporary folder's name: a socket's may have 103 on macOS, and ends in /pymp-xxxxxxxx/listener-xxxxxxxx
SHORT = ("/tmp", "/var/tmp", "/dev/shm")


class _Failed:
    """What ended an item, on its way to the process that can say it."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Guarded(Dataset[Any]):
    """A data set whose expected errors come back as items: torch would turn them into a traceback of the worker."""

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.where = dataset, f"--data {dataset.source.name}"

    def __getitem__(self, asked: Any) -> Any:
        try:
            item = self.dataset[asked]
            if get_worker_info() is not None:
                self._share(item)
            return item
        except (TokError, OSError, MemoryError) as error:
            return _Failed(error)

    def _share(self, item: Any) -> None:
        """Move tensors into shared memory here, where it can be said that there is no room: torch's own thread would hang."""
        try:
            if isinstance(item, Tensor):
                item.share_memory_()
        except RuntimeError as error:
            raise TokError(
                self.where, "no shared memory for images", why=str(error).splitlines()[0], next="Use fewer --workers"
            ) from None
        for part in item if isinstance(item, tuple | list) else ():
            self._share(part)


def load(dataset: Any, sampler: Iterable[Any], workers: int) -> Iterator[Any]:
    """Items in the sampler's order, read here (0) or in so many worker processes; pinned where there is a GPU.

    The sampler runs in this process, ahead of what is yielded. When the generator is closed, the workers end.

    Raises:
        TokError: a worker died; and whatever the data set raises.
    """
    loader: DataLoader[Any] = DataLoader(
        _Guarded(dataset),
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # not the global one: loading must not change the training
    )
    items = _iterator(loader)
    try:
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                if not _of_death(error):
                    raise
                # to be raised outside: the frames of this error hold the iterator
                item = _Failed(_died(dataset, error))
            if isinstance(item, _Failed):
                raise item.error
            yield item
    except BaseException as ended:
        if not isinstance(ended, Exception | GeneratorExit):  # a signal: a worker may hang, as the disk that it reads
            for worker in getattr(items, "_workers", ()):
                worker.kill()
        raise
    finally:
        del items  # now: the garbage collector would take its queues first, and torch wait for each worker for 10 s


def _died(dataset: Any, error: Exception) -> TokError:
    return TokError(
        f"--data {dataset.source.name}",
        "a process that decodes images died",
        why=str(error).partition("\n")[0] or "what it had read is lost",
        next="Use fewer --workers: often memory or /dev/shm is full",
    )


def _of_death(error: Exception) -> bool:
    """Whether an error is of a worker that died: torch says so, or what it had read cannot be had from its socket any more."""
    gone = isinstance(error, FileNotFoundError) and error.filename is None
    return gone or isinstance(error, ConnectionError | EOFError) or "DataLoader worker" in str(error)


def _iterator(loader: DataLoader[Any]) -> Iterator[Any]:
    """An iterator that says in `next` that a worker died. torch's handler of SIGCHLD would raise it wherever the process just is."""
    if loader.num_workers:
        _end_workers_at_exit()
        _name_sockets_shortly()
    before = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)


@functools.cache
def _end_workers_at_exit() -> None:
    """Kill what still reads when this process ends: it would wait for workers that take its one SIGTERM for that of the group."""
    util.Finalize(None, _kill_workers, exitpriority=1)


@functools.cache
def _name_sockets_shortly() -> None:
    """Let workers hand over images by sockets elsewhere, where TMPDIR is longer than a socket's name may be: they would never arrive."""
    usual = tempfile.gettempdir()
    if len(os.fsencode(usual)) <= LONGEST:
        return
    for folder in SHORT:
        tempfile.tempdir = folder
        try:
            util.get_temp_dir()  # is remembered, and workers inherit it
            return
        except OSError:  # not there, or closed
            continue
        finally:
            tempfile.tempdir = usual
    raise TokError("TMPDIR", "is too long for processes that read images", got=usual, next="Set it to a shorter path")


def _kill_workers() -> None:
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _start_worker(number: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C, a closed session and what SLURM sends go to the whole group: the main process decides when to stop, and its handlers
    # are not for workers
    for stopping in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(stopping, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _second_time)
    # torch's own watch begins after this and takes whoever is the parent by then: a worker whose command was killed while it
    # started would wait for work for ever
    threading.Thread(target=_end_with_the_command, daemon=True).start()


def _end_with_the_command() -> None:
    command = multiprocessing.parent_process()
    assert command is not None
    connection.wait([command.sentinel])
    os._exit(1)


def _second_time(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # the second comes from the main process, which is at its end


log = logging.getLogger("tok")
CHUNK = 16  # squares that a worker of a bulk job hands over at once
WORTH = 1.0  # seconds of reading that are left; for less no process is started
SHARED_MEMORY = "/dev/shm"  # where Linux has it
_asked: int | None = None


@contextlib.contextmanager
def processes(number: int | None) -> Iterator[None]:
    """Read in at most so many worker processes meanwhile; None: in as many as there are cores for this process."""
    global _asked
    before, _asked = _asked, number
    try:
        yield
    finally:
        _asked = before


def most_processes() -> int:
    """How many worker processes reading may take: as `processes` says, else this process's share of the cores."""
    return max(1, cores() // distributed.local_world_size()) if _asked is None else _asked


class _Chunks(Dataset[Any]):
    """Sample numbers -> (stacked images, what was bad)."""

    def __init__(self, source: ImageSource, transform: Transform | CropViews) -> None:
        self.source, self.transform = source, transform

    def __getitem__(self, chunk: list[int]) -> tuple[Tensor, list[tuple[int, str, str]]]:
        images, bad = [], []
        for i in chunk:
            try:
                image = self.source.image(i)
            except BadImage as error:
                bad.append((i, error.key, error.why))
                continue
            views = isinstance(self.transform, CropViews)
            images.append(
                self.transform(image, i) if views else self.transform(image, generator(0, "read", i))  # type: ignore[arg-type]
            )
        return torch.stack(images) if images else torch.empty(0, dtype=torch.uint8), bad


Found = tuple[int, UInt8[Tensor, "*views 3 s s"] | BadImage]


def read_all(
    source: ImageSource, transform: Transform | CropViews, *, indices: Iterable[int], count: int | None = None
) -> Generator[Found]:
    """(sample number, transformed image or why there is none), in the order of `indices`.

    `CropViews` give (views, 3, s, s); a random transform is a function of the sample number.
    `processes` read ahead, where they are worth their start.

    Args:
        indices: sample numbers; they are asked for some chunks before their images are yielded.
        count: how many they are; None where they have a length.

    Raises:
        TokError: a worker died.
    """
    numbers = (int(i) for i in indices)
    left = len(indices) if count is None else count  # type: ignore[arg-type]
    size = max(1, CHUNK // (len(transform.names) if isinstance(transform, CropViews) else 1))
    chunks = iter(lambda: list(itertools.islice(numbers, size)), [])
    reader = _Chunks(source, transform)
    for chunk in itertools.islice(chunks, 1):
        began = time.perf_counter()
        images, bad = reader[chunk]
        seconds, left = time.perf_counter() - began, left - len(chunk)
        yield from _named(chunk, images, bad)
        worth = seconds / len(chunk) * left >= WORTH
        workers = _workers(-(-left // size), images.nbytes) if worth else 0
        handed_out: deque[list[int]] = deque()
        for images, bad in load(reader, _noted(chunks, handed_out), workers):
            yield from _named(handed_out.popleft(), images, bad)


def _noted(chunks: Iterable[list[int]], noted: deque[list[int]]) -> Iterator[list[int]]:
    for chunk in chunks:
        noted.append(chunk)
        yield chunk


def _named(chunk: list[int], images: Tensor, bad: list[tuple[int, str, str]]) -> Iterator[Found]:
    why = {i: BadImage(key, reason) for i, key, reason in bad}
    good = iter(images)
    for i in chunk:
        yield i, why[i] if i in why else next(good)


def _workers(chunks: int, chunk_bytes: int) -> int:
    """How many workers are of use for so many chunks, and have room in shared memory for what they read ahead."""
    wanted, room = min(most_processes(), chunks), chunks
    with contextlib.suppress(OSError):
        room = shutil.disk_usage(SHARED_MEMORY).free // 2 // max(1, (AHEAD + 1) * chunk_bytes)
    if room < wanted:
        log.warning("%s has room for %d of %d processes that read images", SHARED_MEMORY, room, wanted)
    return min(wanted, room)


BATCH = 64  # images at a time; one shape for all, so that numbers do not depend on what fits


def read_batches(
    source: ImageSource, transform: Any, indices: Sequence[int] | None = None, *, desc: str = "images"
) -> Iterator[tuple[list[int], UInt8[Tensor, "b 3 s s"]]]:
    """Batches of (sample numbers, images) in order; unreadable images are left out and named once.

    Args:
        desc: what is done with them, for the progress bar.

    Raises:
        TokError: not one image could be read.
    """
    numbers: list[int] = []
    images: list[Tensor] = []
    bad = good = 0
    wanted = indices if indices is not None else range(len(source))
    for index, image in passing(read_all(source, transform, indices=wanted), len(wanted), unit="image", desc=desc):
        if isinstance(image, BadImage):
            bad += 1
            log.warning("%s: left out: %s", image.key, image.why)
            continue
        good += 1
        numbers.append(index)
        images.append(image)
        if len(images) == BATCH:
            yield numbers, torch.stack(images)
            numbers, images = [], []
    if images:
        yield numbers, torch.stack(images)
    if not good and bad:
        raise TokError(
            f"--data {source.name}", f"none of {bad} images could be read", next="Run tok data check to see why"
        )


def first_readable(
    source: ImageSource, size: int, groups: Iterable[Sequence[int]]
) -> tuple[list[int], list[UInt8[Tensor, "3 s s"]]]:
    """The first readable image of each group of sample numbers, with its number; a group without one is left out."""
    numbers: list[int] = []
    images: list[Tensor] = []
    for group in groups:
        for i in group:
            ((_, image),) = read_all(source, evaluation_transform(size), indices=[i])
            if not isinstance(image, BadImage):
                numbers.append(i)
                images.append(image)
                break
    return numbers, images
