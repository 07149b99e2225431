"""SIGTERM, SIGHUP, SIGUSR1 and Ctrl-C: a training finishes its step and saves; bulk work finishes its shard."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def heard() -> list[int]:
    """The signals that stop a command: all of STOPPING, without SIGHUP where it was started to outlive it (`nohup`)."""
    return [n for n in STOPPING if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]


class NothingCame(BaseException):
    """A signal ended a wait; no error of what was waited for, and so nothing that handles errors may take it for one."""


class StopSignal:
    """Remembers that a signal of STOPPING came, so that a loop can stop between steps; a second signal acts at once.

    What comes within `echo` seconds of the first is that one again: torchrun and SLURM pass on to each rank what the
    rank has already got from the terminal or the scheduler.
    """

    echo = 1.0

    def __init__(self) -> None:
        self.received: int | None = None
        self._waits = False
        self._process = os.getpid()
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in heard():
            self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that has just been forked, and has its own handlers in a moment
            return
        if self.received is None:
            self.received, self._since = number, time.monotonic()
            self._end_wait()
        elif time.monotonic() - self._since > self.echo:
            self.__exit__()
            os.kill(os.getpid(), number)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait for what may never come: inside, a signal acts at once.

        Raises:
            NothingCame: a signal came, or had come before.
        """
        self._waits = True
        try:
            self._end_wait()
            yield
        finally:
            self._waits = False

    def _end_wait(self) -> None:
        if self._waits and self.received is not None:
            self._waits = False
            raise NothingCame

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
