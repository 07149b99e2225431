"""Webdataset shards, written by webdataset: equal samples give equal bytes."""

import contextlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

CLASSES = ".classes.json"  # a member without a key: other readers of webdataset's form pass over it


@contextlib.contextmanager
def shard_writer(path: Path, classes: Sequence[str] = ()) -> Iterator[Callable[[Mapping[str, Any]], int]]:
    """Yields a function that writes a sample, {"__key__": name, extension: bytes, ...}, into a plain tar without times and owners.

    Args:
        classes: all classes of the data set in their order, which no shard would tell by itself; [] writes none.
    """
    from webdataset.writer import TarWriter  # here: importing it takes a second

    # GNU's form has room for names of any length
    options: dict[str, Any] = {"user": "", "group": "", "mode": 0o644, "mtime": 0, "format": "GNU_FORMAT"}
    with open(path, "wb") as file, TarWriter(file, encoder=False, **options) as writer:
        if classes:
            text = json.dumps(list(classes), ensure_ascii=False).encode()
            member = tarfile.TarInfo(CLASSES)
            member.size = len(text)
            writer.tarstream.addfile(member, io.BytesIO(text))
        yield writer.write
