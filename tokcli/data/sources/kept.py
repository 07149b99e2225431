"""What was found out about a file, kept as JSON in the cache until the file changes."""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from tokcli import limits
from tokcli.data.sources.contents import RACY, State
from tokcli.errors import TokError
from tokcli.files import cache_dir, write_text


def recall(kind: str, path: Path, state: State) -> Any:
    """What was kept of a file in this state; None where nothing was.

    Args:
        kind: a folder of the cache, such as `tar-index-4`, with the version of what is in it.
    """
    with contextlib.suppress(OSError, ValueError):
        return limits.read_json(_file(kind, path, state), max(limits.MOST_JSON, state[0]))
    return None


def keep(kind: str, path: Path, state: State, found: Any) -> None:
    """Keep what was found, unless the file is so young that it may change without a trace; a cache that cannot be written costs time alone."""
    if time.time_ns() - max(state[1:3]) < RACY:
        return
    file = _file(kind, path, state)
    with contextlib.suppress(OSError, TokError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(found))


def _file(kind: str, path: Path, state: State) -> Path:
    identity = os.fsencode(path.resolve()) + f" {state}".encode()
    return cache_dir() / kind / f"{hashlib.blake2b(identity, digest_size=12).hexdigest()}.json"
