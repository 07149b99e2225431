"""Arrays in .npy files, mapped into memory after their header was checked against the file's size."""

import os
from pathlib import Path

import numpy as np

from tokcli.errors import TokError


class NpyError(TokError):
    """A .npy file that is damaged, or holds Python objects."""


def open_npy(path: Path) -> np.ndarray:
    """A read-only map of a C-ordered array; nothing is read before it is used.

    Raises:
        FileNotFoundError: no such file.
        NpyError: not a .npy file, of objects, in Fortran order, or of another size than its header claims.
    """
    with open(path, "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"format {version}")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        except Exception as error:  # a damaged header is parsed as Python literals, and fails in as many ways
            raise NpyError(str(path), "not a whole .npy file", why=str(error).splitlines()[0]) from None
        start, held = file.tell(), os.fstat(file.fileno()).st_size
    if dtype.hasobject or fortran or any(side < 0 for side in shape):
        raise NpyError(str(path), "not a plain array", got=f"{dtype} {shape}")
    claimed = start + dtype.itemsize * int(np.prod(shape, dtype=object))
    if claimed != held:
        raise NpyError(str(path), f"its header claims {claimed:,} bytes", got=f"{held:,}")
    if claimed == start:
        return np.empty(shape, dtype)  # an empty range cannot be mapped
    return np.memmap(path, dtype=dtype, mode="r", offset=start, shape=shape)
