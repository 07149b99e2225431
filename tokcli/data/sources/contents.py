"""Digests of files by their contents, kept by size, times and inode, so that a later start reads only what has changed.

An image that is edited in place has another digest, however equal in size; equal files have equal ones, wherever they lie. Reading
everything takes as long as the disk: past `CONTENTS_UP_TO` bytes an image's size and time of change stand for its contents, so that an
edit is noticed, and a copy is known as equal if it keeps the times (`cp -p`, `rsync -a`).
"""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tokcli.data.npy import NpyError, read_npy
from tokcli.device import cores
from tokcli.errors import TokError
from tokcli.files import atomic_write, cache_dir
from tokcli.progress import passing

CONTENTS_UP_TO = 32 << 30  # bytes; at half a gigabyte a second a minute
RACY = 2_000_000_000  # ns: a file this young may change again within one tick of its clock, and is not remembered
CHUNK = 1 << 20
BLOCK = 64  # files that a thread reads in one go

State = tuple[int, int, int, int, int]  # bytes, time of change of the data and of the file (ns), inode, device


def _short() -> Any:
    return hashlib.blake2b(digest_size=16)


def state_of(found: os.stat_result) -> State:
    """What changes when a file does."""
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev & (2**63 - 1)


def digest_of(images: Sequence[Path | str], states: Sequence[State], name: str) -> bytes:
    """One digest of all images, in their order; `name` says whose they are, and where what is known of them is kept."""
    table = np.array(states, dtype=np.int64).reshape(-1, 5)
    if table[:, 0].sum() > CONTENTS_UP_TO:
        return b"times" + np.ascontiguousarray(table[:, :2], "<i8").tobytes()
    return file_digests(images, table, name).astype("<i8").tobytes()


def known_sha256(path: Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits; it is read once, and again only when it has changed.

    Raises:
        TokError: it cannot be read.
    """
    try:
        state = np.array([state_of(path.stat())], dtype=np.int64)
        (found,) = file_digests([path], state, f"sha256 of {path.resolve()}", make=hashlib.sha256)
    except OSError as error:
        raise TokError(
            str(path),
            error.strerror.lower() if error.strerror else str(error),
            next="Check the file and its permissions",
        ) from None
    if not found.any():
        raise TokError(str(path), "cannot be read", next="Check the file and its permissions")
    return found.astype("<i8").tobytes().hex()


def file_digests(
    paths: Sequence[Path | str],
    states: np.ndarray,
    name: str,
    *,
    remember: Callable[[int, bytes], bool] | None = None,
    make: Callable[[], Any] = _short,
) -> np.ndarray:
    """Digests of files, int64 (n, words); of one that cannot be read zeros.

    Args:
        states: int64 (n, 5), see `State`.
        name: of the data set.
        remember: looks at the first `CHUNK` bytes of each file that is read, and says whether it need not be read at the next start.
        make: begins a hash; the usual one has 2 words.
    """
    words = make().digest_size // 8
    digests, known = _known(name, states, words)
    if known.all():
        return digests
    with _alone(name):
        digests, known = _known(name, states, words)  # another process may have read them meanwhile
        rows = np.flatnonzero(~known)
        _, first, group = np.unique(
            states[rows], axis=0, return_index=True, return_inverse=True
        )  # links to one file: once
        found, keep = np.zeros((len(first), words), np.int64), np.zeros(len(first), bool)
        old = time.time_ns() - RACY
        try:
            for number, (digest, lasting) in enumerate(
                _read_all([paths[rows[i]] for i in first], remember, rows[first], make)
            ):
                found[number], keep[number] = digest, lasting
        finally:
            digests[rows] = found[group.reshape(-1)]
            known[rows] = keep[group.reshape(-1)] & (states[rows, 1:3].max(1) < old)
            _keep(name, np.hstack([states, digests])[known])
    return digests


def _read_all(
    paths: Sequence[Path | str], look: Callable[[int, bytes], bool] | None, numbers: np.ndarray, make: Callable[[], Any]
) -> Iterator[tuple[np.ndarray, bool]]:
    def one(at: int) -> tuple[np.ndarray, bool]:
        digest, keep = make(), None
        try:
            with open(paths[at], "rb", buffering=0) as file:
                while data := file.read(CHUNK):
                    digest.update(data)
                    if look is not None and keep is None:
                        keep = look(int(numbers[at]), data)
        except OSError:
            return np.zeros(digest.digest_size // 8, np.int64), False
        return np.frombuffer(digest.digest(), "<i8"), keep is not False

    blocks = [range(start, min(start + BLOCK, len(paths))) for start in range(0, len(paths), BLOCK)]
    with ThreadPoolExecutor(min(16, cores())) as pool:
        read = pool.map(lambda block: [one(at) for at in block], blocks)
        for block in passing(read, len(paths), unit="file", desc="reading contents, once", units=len):
            yield from block


def _file(name: str) -> Path:
    return cache_dir() / "contents" / f"{hashlib.blake2b(os.fsencode(name), digest_size=12).hexdigest()}.npy"


def _known(name: str, states: np.ndarray, words: int) -> tuple[np.ndarray, np.ndarray]:
    """Remembered digests (n, words), and which rows have one."""
    digests, known = np.zeros((len(states), words), np.int64), np.zeros(len(states), bool)
    try:
        kept = read_npy(_file(name))
    except (OSError, NpyError):
        return digests, known
    if kept.ndim != 2 or kept.shape[1] != 5 + words or kept.dtype != np.int64 or not len(kept):
        return digests, known
    places = np.searchsorted(kept[:, 3], states[:, 3]).clip(max=len(kept) - 1)  # by inode, as `_keep` sorts them
    known = (kept[places, :5] == states).all(1)
    digests[known] = kept[places[known], 5:]
    return digests, known


def _keep(name: str, rows: np.ndarray) -> None:
    rows = rows[np.argsort(rows[:, 3], kind="stable")]
    with contextlib.suppress(OSError, TokError):  # a cache that cannot be written costs time and nothing else
        _file(name).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(_file(name)) as tmp, open(tmp, "wb") as file:
            np.save(file, rows, allow_pickle=False)


@contextlib.contextmanager
def _alone(name: str) -> Iterator[None]:
    """Of several processes that start together one reads and the others wait for what it finds."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            _file(name).parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(_file(name).with_suffix(".lock"), "a"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
