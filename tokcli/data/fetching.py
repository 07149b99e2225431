"""Files from web servers and object stores in a cache of bounded size: whole or not at all, checked by length and ETag."""

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from tokcli.data.object_stores import transport
from tokcli.data.web_files import Broken, Busy, Gone, Remote
from tokcli.errors import NotFound, TokError
from tokcli.files import atomic_write, cache_dir, locked, write_text

DEFAULT_GB = 100.0
TRIES = 3
META, COMING, LOCK, TAKEN = "meta.json", "coming", ".lock", ".taken"
log = logging.getLogger("tok")
_unreachable: set[str] = set()  # servers of which that was said


def look(url: str) -> Remote:
    """What a server says about a file; what is in the cache where the server cannot be reached.

    Raises:
        NotFound: the server cannot be reached, or does not have it.
        TokError: it does not say how long the file is.
    """
    try:
        return _looked(url)
    except Gone:
        raise
    except NotFound as error:
        with contextlib.suppress(OSError, ValueError, TypeError):
            known = Remote(**json.loads((_folder(url) / META).read_text(encoding="utf-8")))
            if _file(url).stat().st_size == known.bytes:
                server = urllib.parse.urlsplit(url).netloc
                if server not in _unreachable:  # once, and not for each of a thousand shards
                    log.warning("%s Copies in the cache are read.", error)
                    _unreachable.add(server)
                return known
        raise


def _looked(url: str) -> Remote:
    for attempt in range(1, TRIES):
        with contextlib.suppress(Busy):
            return transport(url).look(url)
        time.sleep(attempt)
    return transport(url).look(url)


@contextlib.contextmanager
def using(remote: Remote, check: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Yields the file in the cache, fetched where it is not there; while it is used, nobody removes it.

    Several processes may ask at once: one fetches, the others wait.

    Args:
        check: looks at a file that has arrived, and raises TokError where it is not wanted.

    Raises:
        TokError: the file has changed on the server, is larger than the cache, or does not arrive whole; the disk is full.
    """
    folder, file = _folder(remote.url), _file(remote.url)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        while not _is_there(remote):  # again, for no lock is held while it is changed for another
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_there(remote):
                _fetch(remote, check)
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield file


def _is_there(remote: Remote) -> bool:
    folder = _folder(remote.url)
    with contextlib.suppress(OSError, ValueError, TypeError):
        known = Remote(**json.loads((folder / META).read_text(encoding="utf-8")))
        if known == remote and _file(remote.url).stat().st_size == remote.bytes:
            os.utime(folder / META)  # used last
            return True
    return False


def _fetch(remote: Remote, check: Callable[[Path], None] | None) -> None:
    folder, file = _folder(remote.url), _file(remote.url)
    (folder / META).unlink(missing_ok=True)
    _forget(folder)
    try:
        _make_room(remote)
        with atomic_write(file) as tmp, open(tmp, "wb") as out:
            _download(remote, out)
            out.flush()
            if check is not None:
                check(tmp)
        write_text(folder / META, json.dumps(remote._asdict()))
    finally:
        (folder / COMING).unlink(missing_ok=True)


def _forget(folder: Path) -> None:
    """Remove what a killed process has left of a file that was arriving, and all that nobody described."""
    described = (folder / META).exists()
    for left in folder.iterdir():
        if left.name == COMING or left.suffix == ".tmp" or not (described or left.name == LOCK):
            left.unlink(missing_ok=True)


def _folder(url: str) -> Path:
    return cache_dir() / "shards" / hashlib.blake2b(url.encode(), digest_size=12).hexdigest()


def _file(url: str) -> Path:
    return _folder(url) / (Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name or "file")


def _download(remote: Remote, out: IO[bytes]) -> None:
    """Write all bytes; after a break go on where it was, if the file is still the same."""
    why = ""
    for attempt in range(TRIES):
        time.sleep(attempt)
        try:
            for data in transport(remote.url).rest(remote, out):
                out.write(data)
            if out.tell() == remote.bytes:
                return
        except Broken as error:
            why = str(error)
    raise TokError(
        f"--data {remote.url}",
        f"did not arrive whole in {TRIES} tries",
        why=why,
        got=f"{out.tell():,} of {remote.bytes:,} bytes",
        next="Repeat the command: whole shards stay in the cache",
    )


def _limit() -> int:
    """Bytes that the cache may hold: `TOK_CACHE_GB`.

    Raises:
        TokError: it is not a number above 0.
    """
    given = os.environ.get("TOK_CACHE_GB") or str(DEFAULT_GB)
    try:
        limit = float(given)
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        raise TokError(
            "TOK_CACHE_GB", "must be a number of gigabytes above 0", got=given, next="Set it to a number such as 50"
        )
    return int(limit * 10**9)


def _make_room(remote: Remote) -> None:
    """Remove the files that were used longest ago and that nobody uses now, until another fits; then keep its place."""
    limit = _limit()
    if remote.bytes > limit:
        size = f"{remote.bytes / 10**9:.1f} GB"
        raise TokError(f"--data {remote.url}", "is larger than the cache", got=size, next="Raise TOK_CACHE_GB")
    root = cache_dir() / "shards"
    while True:
        with open(root / LOCK, "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            taken = _at_most(root)
            if taken is None or taken + remote.bytes > limit:
                taken = _swept(root, limit - remote.bytes)
            if taken + remote.bytes <= limit:
                (_folder(remote.url) / COMING).write_text(str(remote.bytes))
                (root / TAKEN).write_text(str(taken + remote.bytes))
                return
        time.sleep(0.2)  # all that is there is in use, or still arrives


def _at_most(root: Path) -> int | None:
    """Bytes that the cache holds, or more: what was removed by hand or never arrived is noticed when it seems full. None: unknown."""
    try:
        return int((root / TAKEN).read_text())
    except (OSError, ValueError):
        return None


def _swept(root: Path, room: int) -> int:
    """Bytes that are taken, after removing what was used longest ago and can be removed, until `room` is enough."""
    taken, arriving = 0, set[Path]()
    for coming in root.glob(f"*/{COMING}"):  # before those that are there, for it may become one of them meanwhile
        with contextlib.suppress(OSError, ValueError), locked(coming.parent, LOCK) as free:
            if free:  # who wanted it is gone
                _forget(coming.parent)
                continue
            taken += int(coming.read_text())
            arriving.add(coming.parent)
    kept = []
    for meta in root.glob(f"*/{META}"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            if meta.parent not in arriving:
                kept.append((meta.stat().st_mtime_ns, Remote(**json.loads(meta.read_text(encoding="utf-8")))))
    taken += sum(known.bytes for _, known in kept)
    for _, known in sorted(kept):
        if taken <= room:
            break
        folder = _folder(known.url)
        with contextlib.suppress(OSError), locked(folder, LOCK) as free:
            if free:
                (folder / META).unlink()
                _file(known.url).unlink(missing_ok=True)
                taken -= known.bytes
    return taken
