"""Files: writes that are whole or absent, writing behind other work, hashes, errors of the disk, the cache folder."""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from tokcli.errors import TokError

WAITING = 2  # pieces of work that may wait to be written; who has more waits too


def from_home(path: str | Path) -> Path:
    """A path with the home folder for its `~` or `~NAME`; as it is where nobody has that name, as shells leave it."""
    return Path(os.path.expanduser(path))


def cache_dir() -> Path:
    """Where fetched weights and computed features are kept: $TOK_CACHE, else ~/.cache/tok.

    Raises:
        TokError: neither is known: $HOME is not set, and the system does not know this user.
    """
    folder = from_home(os.environ.get("TOK_CACHE") or "~/.cache/tok")
    if folder.parts[:1] == ("~",):
        raise TokError("TOK_CACHE", "is not set, and this user has no home folder", next="Set it to a folder")
    return folder


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def not_saved(path: Path) -> TokError:
    """A state that torch could not write: it says not why, and a full disk is what it is most often."""
    return TokError(
        str(path),
        "could not be written, the disk may be full",
        next="Free some space and repeat the command: it resumes from the last state",
    )


def disk_error(path: Path, error: OSError) -> TokError:
    """The one-line form of an error met while writing `path`."""
    short = error.errno is None and "requested and" in str(error)  # NumPy's words for a write that was cut short
    if short or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return TokError(str(path), "the disk is full", next="Free some space and repeat the command: it resumes")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return TokError(str(path), "cannot write here", why=error.strerror or "", next="Choose another --out")
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return TokError(str(path), "cannot be written", why="a file is in the way", next="Choose another --out")
    return TokError(
        str(path),
        "cannot be written",
        why=error.strerror or str(error),
        next="Choose another place, or free some space",
    )


def require_space(folder: Path, need: int, where: str, *, next: str) -> None:
    """Refuse to begin what the disk of `folder` cannot hold.

    Args:
        need: bytes.
        where, next: the key or flag that asks for them, and what to do instead.

    Raises:
        TokError: fewer are free.
    """
    free = shutil.disk_usage(folder).free
    if need > free:
        raise TokError(
            where, f"needs {need / 2**30:.1f} GiB in {folder}", got=f"{free / 2**30:.1f} GiB free", next=next
        )


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success flush it to disk and rename it into place.

    Raises:
        TokError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    tmp: Path | None = None
    try:
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(fd)
        tmp = Path(name)
        yield tmp
        with open(tmp, "rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(tmp, 0o666 & ~umask)  # mkstemp makes private files; artifacts are to be shared
        os.replace(tmp, path)
        sync_folder(path.parent)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        if tmp is not None:
            tmp.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a small text file atomically, as UTF-8."""
    with atomic_write(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def locked(path: Path, name: str = ".lock", *, remove: bool = False) -> Iterator[bool]:
    """Try to hold a lock file in a folder; yields whether it was got. The kernel drops it with the process.

    Args:
        remove: the file at the end; everybody who locks it must say so, since a removed file may still be opened.
    """
    with open(path / name, "a+") as file:
        got = False
        with contextlib.suppress(OSError):  # held by another process, or removed by it since it was opened here
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            got = os.path.samestat(os.fstat(file.fileno()), os.stat(path / name))
        try:
            yield got
        finally:
            if got and remove:
                (path / name).unlink(missing_ok=True)


class Behind:
    """Writing that one thread does behind its caller, in order. An error of it comes out at the next piece or at the end."""

    def __init__(self) -> None:
        self._pool, self._waiting = ThreadPoolExecutor(1), deque[Future[Any]]()

    def __enter__(self) -> "Behind":
        return self

    def __call__(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Do this next."""
        self._waiting.append(self._pool.submit(work, *arguments))
        while len(self._waiting) > WAITING or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=False)
        for one in self._waiting if kind is None else ():
            one.result()
