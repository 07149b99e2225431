"""The log of a training: one JSON object a line, and TensorBoard where it is installed."""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokcli.files import atomic_write, disk_error
from tokcli.terminal import printable

log = logging.getLogger("tok")


LOG = "log.jsonl"


RATE = "images_per_second"  # in every line of a training step, in none of an evaluation


class Journal:
    """`log.jsonl` and, where it is installed, TensorBoard; continued at `step` without the lines of lost steps.

    Dropped too is an evaluation at `step` itself: state is saved before it, so the continued run does it again.
    """

    def __init__(self, folder: Path, step: int) -> None:
        path = folder / LOG
        kept: list[str] = []
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    values = json.loads(line)
                    if values["step"] < step or (values["step"] == step and RATE in values):
                        kept.append(line)
                except (json.JSONDecodeError, KeyError, TypeError):
                    break  # a line cut short by kill -9 is the last one
        with atomic_write(path) as tmp:
            tmp.write_text("".join(line + "\n" for line in kept))
        self._file = open(path, "a", buffering=1)
        self._board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
        except ImportError:
            pass
        except (OSError, ValueError) as error:  # a full disk, a path that is not UTF-8
            log.warning("there is no TensorBoard log: %s", printable(str(error)))

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line of numbers at a step."""
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise disk_error(Path(self._file.name), error) from None
        if self._board:
            with self._optional():
                for name, value in values.items():
                    self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        with contextlib.suppress(OSError):  # what could not be written has been told already
            self._file.close()
        if self._board:
            with self._optional():
                self._board.close()

    @contextlib.contextmanager
    def _optional(self) -> Iterator[None]:
        """TensorBoard's files are a comfort: where they cannot be written, training goes on without."""
        try:
            yield
        except OSError as error:
            log.warning("TensorBoard's log is given up: %s", error)
            self._board = None
