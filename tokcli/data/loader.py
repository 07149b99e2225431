"""Items of a data set, read in this process or in others: in order, errors as they were raised, no process left behind."""

import functools
import logging
import multiprocessing
import signal
import threading
from collections.abc import Iterable, Iterator
from multiprocessing import util
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from tokcli.errors import TokError

log = logging.getLogger("tok")
AHEAD = 2  # items that a worker may have ready


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
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            if not _of_death(error):
                raise
            raise TokError(
                f"--data {dataset.source.name}",
                "a process that decodes images died",
                why=str(error).partition("\n")[0] or "what it had read is lost",
                next="Use fewer --workers: often memory or /dev/shm is full",
            ) from error
        if isinstance(item, _Failed):
            raise item.error
        yield item


def _of_death(error: Exception) -> bool:
    """Whether an error is of a worker that died: torch says so, or what it had read cannot be had from its socket any more."""
    gone = isinstance(error, FileNotFoundError) and error.filename is None
    return gone or isinstance(error, ConnectionError | EOFError) or "DataLoader worker" in str(error)


def _iterator(loader: DataLoader[Any]) -> Iterator[Any]:
    """An iterator that says in `next` that a worker died. torch's handler of SIGCHLD would raise it wherever the process just is."""
    _end_workers_at_exit()
    before = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)
    return iterator


@functools.cache
def _end_workers_at_exit() -> None:
    """Kill what still reads when this process ends: it would wait for workers that take its one SIGTERM for that of the group."""
    util.Finalize(None, _kill_workers, exitpriority=1)


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


def _second_time(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # the second comes from the main process, which is at its end
