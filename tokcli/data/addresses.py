"""Addresses of data that the user has named. An artifact may record any address, and none is fetched on its word alone."""

import contextlib
import os

from tokcli import limits
from tokcli.data.object_stores import readable
from tokcli.files import cache_dir

NAMED = "addresses.txt"  # in the cache: an address a line
_now: set[str] = set()  # named in this process


def remember(spec: str) -> None:
    """Keep an address that the user names: from then on it is read also where an artifact records it."""
    if not readable(spec) or "\n" in spec or may_read(spec):
        return
    _now.add(spec)
    with contextlib.suppress(OSError):  # without a cache it is named anew in each command
        cache_dir().mkdir(parents=True, exist_ok=True)
        with open(cache_dir() / NAMED, "ab") as file:
            file.write(os.fsencode(spec) + b"\n")


def may_read(spec: str) -> bool:
    """Whether data that an artifact records may be read: it is on a disk, or the user has named its address at some time."""
    if not readable(spec) or spec in _now or spec == os.environ.get("TOK_DATA"):
        return True
    with contextlib.suppress(OSError, limits.TooLarge):
        return os.fsencode(spec) in limits.read_bytes(cache_dir() / NAMED, limits.MOST_JSON).split(b"\n")
    return False
