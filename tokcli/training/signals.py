"""SIGTERM, SIGHUP, SIGUSR1 and Ctrl-C: a training finishes its step and saves; bulk work finishes its shard."""

import os
import signal
import time
from types import FrameType
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def heard() -> list[int]:
    """The signals that stop a command: all of STOPPING, without SIGHUP where it was started to outlive it (`nohup`)."""
    return [n for n in STOPPING if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]


class StopSignal:
    """Remembers that a signal of STOPPING came, so that a loop can stop between steps; a second signal acts at once.

    What comes within `echo` seconds of the first is that one again: torchrun and SLURM pass on to each rank what the
    rank has already got from the terminal or the scheduler.
    """

    echo = 1.0

    def __init__(self) -> None:
        self.received: int | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in heard():
            self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > self.echo:
            self.__exit__()
            os.kill(os.getpid(), number)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
