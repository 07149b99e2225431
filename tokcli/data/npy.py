"""Arrays in .npy files, whose header was checked against the file's size; read, never mapped into memory.

A map of a file that is cut short meanwhile ends the process with SIGBUS; a read that finds too little is an error that names the file.
"""

import math
import os
import weakref
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tokcli.artifact.manifest import RESTORE
from tokcli.errors import TokError

BLOCK = 1 << 20  # numbers


class NpyError(TokError):
    """A .npy file that is damaged, or holds Python objects."""

    def __init__(self, where: str, what: str, *, next: str = RESTORE, why: str = "", got: str = "") -> None:
        super().__init__(where, what, next=next, why=why, got=got)


class NpyRows:
    """A C-ordered array of numbers in a file, of which rows are read when they are asked for.

    Raises:
        FileNotFoundError: no such file.
        NpyError: not a .npy file, not of numbers, in Fortran order, or of another size than its header claims.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            try:
                version = np.lib.format.read_magic(file)
                if version != (1, 0):
                    raise ValueError(f"format {version}")
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            except Exception as error:  # a damaged header is parsed as Python literals, and fails in as many ways
                raise NpyError(str(path), "not a whole .npy file", why=str(error).splitlines()[0]) from None
            self._start, held = file.tell(), os.fstat(file.fileno()).st_size
        if dtype.kind not in "biufc" or fortran or any(side < 0 for side in shape):
            raise NpyError(str(path), "not a plain array", got=f"{dtype} {shape}"[:80])
        self.shape: tuple[int, ...] = shape
        self.dtype: np.dtype = dtype
        claimed = self._start + dtype.itemsize * math.prod(shape)
        if claimed != held:
            raise NpyError(str(path), f"its header claims {claimed:,} bytes", got=f"{held:,}")

    def __reduce__(self) -> tuple[type["NpyRows"], tuple[Path]]:
        return NpyRows, (self.path,)  # another process opens its own

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, row: int) -> Any:
        """A row; of an array of one dimension, a number."""
        return self.read(row, row + 1)[0]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` - 1.

        Raises:
            NpyError: the file has become shorter.
        """
        found = np.empty((stop - start, *self.shape[1:]), self.dtype)
        self._fill(found, start * math.prod(self.shape[1:]))
        return found

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows, in blocks of a few megabytes; raises as `read`."""
        step = max(1, BLOCK // max(1, math.prod(self.shape[1:])))
        for start in range(0, len(self), step):
            yield self.read(start, min(start + step, len(self)))

    def pick(self, rows: Sequence[int], views: Sequence[int]) -> np.ndarray:
        """One view of each row of an array (rows, views, n); raises as `read`."""
        found = np.empty((len(rows), *self.shape[2:]), self.dtype)
        each = math.prod(self.shape[2:])
        for place, (row, view) in enumerate(zip(rows, views, strict=True)):
            self._fill(found[place], (row * self.shape[1] + view) * each)
        return found

    @cached_property
    def _fd(self) -> int:
        fd = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, fd)
        return fd

    def _fill(self, array: np.ndarray, first: int) -> None:
        """Read as many numbers as the array has, from number `first` on."""
        buffer = memoryview(array).cast("B") if array.size else memoryview(b"")  # type: ignore[arg-type]
        at = self._start + first * self.dtype.itemsize
        while len(buffer):
            got = os.preadv(self._fd, [buffer], at)
            if not got:
                raise NpyError(str(self.path), "was cut short while it was read", next="Restore it, or make it again")
            buffer, at = buffer[got:], at + got


def read_npy(path: Path) -> np.ndarray:
    """A whole array of at least one dimension; raises as `NpyRows`."""
    rows = NpyRows(path)
    if not rows.shape:
        raise NpyError(str(path), "not a plain array", got="a single number")
    return rows.read(0, len(rows))
