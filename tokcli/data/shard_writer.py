"""Webdataset shards, written by webdataset: equal samples give equal bytes."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def shard_writer(path: Path) -> Iterator[Callable[[Mapping[str, Any]], int]]:
    """Yields a function that writes a sample, {"__key__": name, extension: bytes, ...}, into a plain tar without times and owners."""
    from webdataset.writer import TarWriter  # here: importing it takes a second

    # GNU's form has room for names of any length
    options: dict[str, Any] = {"user": "", "group": "", "mode": 0o644, "mtime": 0, "format": "GNU_FORMAT"}
    with open(path, "wb") as file, TarWriter(file, encoder=False, **options) as writer:
        yield writer.write
