"""`tok data pack`: any source as webdataset shards of about a gigabyte, with classes, captions and an index."""

import contextlib
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from tokcli.data.addresses import remember
from tokcli.data.decode import open_image, opened
from tokcli.data.shard_writer import shard_writer
from tokcli.data.sources import BadImage, Encoded, ImageSource, open_source
from tokcli.data.sources.classes import class_name
from tokcli.data.sources.summary import kinds, refuse_bad, say_problems
from tokcli.data.sources.tar_index import IMAGES, write_index
from tokcli.errors import TokError
from tokcli.files import atomic_write, disk_error, write_text
from tokcli.progress import passing

LISTING = "dataset.json"  # written last: with it the pack is whole
BEGUN = ".source.json"  # written first: the shards beside it are of a pack of this source, and no user's
log = logging.getLogger("tok")


def main(
    spec: str, out: Path, *, labels: Path | None, size: int, shard_bytes: int, max_bad: float, max_pixels: int
) -> Path:
    """Pack the images of a spec into `out`; where they are there already, nothing is done.

    Args:
        size: in pixels; what vector images are rendered for.
        shard_bytes: a shard ends with the sample that reaches so many.
        max_bad: share of images that may be left out.
        max_pixels: of an image that is decoded; a file of more than four bytes for each is left out.

    Raises:
        TokError: `out` holds something else, the disk is full, or too much is left out.
    """
    remember(spec)
    source = open_source(spec, size=size, labels=labels, max_pixels=max_pixels)
    if _there(out, source):
        log.info("%s is complete already", out)
        return out
    changed = [name for name in source.classes if _read_back(name) != name]
    if changed:
        raise TokError(
            f"class '{changed[0]}'",
            "would be read from a shard as another class",
            got=f"{_read_back(changed[0])}",
            next="Rename it: a name may not be a number below 0 or with a point, nor begin or end with a space",
        )
    write_text(out / BEGUN, json.dumps({"source": {"id": source.id}}) + "\n")
    for stale in (*out.glob("shard-*"), *out.glob(".*.tmp")):  # of a pack that was interrupted
        stale.unlink()
    say_problems(source)
    refuse_bad(source, 0, max_bad, "--max-bad")
    samples = _Samples(source, max_bad)
    shards = []
    try:
        for path in _shards(samples, out, shard_bytes):
            write_index(path)
            shards.append(path.name)
    except OSError as error:
        raise disk_error(out, error) from error
    left_out = kinds(source.problems) + kinds(samples.bad)
    listing = {
        "source": {"id": source.id, "name": source.name},
        "images": len(source) - len(samples.bad),
        "classes": source.classes,
        "shards": len(shards),
        "left_out": dict(sorted(left_out.items())),
    }
    write_text(out / LISTING, json.dumps(listing, indent=2, ensure_ascii=False) + "\n")
    return out


def _read_back(name: str) -> str | None:
    """A class's name as it is read from a `.cls`."""
    try:
        return class_name(name)
    except ValueError:
        return None


def _there(out: Path, source: ImageSource) -> bool:
    """Whether this source is packed in `out`; raises TokError where something else is."""
    out.mkdir(parents=True, exist_ok=True)
    held = [entry.name for entry in out.iterdir() if not entry.name.startswith(".")]
    if not held:
        return False
    try:
        packed = json.loads((out / LISTING).read_text(encoding="utf-8"))["source"]["id"]
    except FileNotFoundError:
        begun = None
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            begun = json.loads((out / BEGUN).read_text(encoding="utf-8"))["source"]["id"]
        if begun == source.id and all(name.startswith("shard-") for name in held):
            return False  # a pack of this source that was interrupted: it is written anew
        packed = f"an interrupted pack of {begun}" if begun else "other files"
    except (OSError, ValueError, TypeError, KeyError):
        packed = "a damaged listing"
    if packed != source.id:
        raise TokError(f"--out {out}", "holds something else", got=str(packed), next="Choose another folder")
    return True


class _Samples:
    """What goes into a tar for each image; those that cannot be read are left out, and bounded."""

    def __init__(self, source: ImageSource, max_bad: float) -> None:
        self.source, self.max_bad = source, max_bad
        self.bad: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[dict[str, Any]]:
        numbers = range(len(self.source))
        for i in passing(numbers, len(numbers), unit="image", desc="pack"):
            try:
                yield self._sample(i)
            except BadImage as error:
                log.warning("%s: left out: %s", error.key, error.why)
                self.bad.append((error.key, error.why))
                refuse_bad(self.source, len(self.bad), self.max_bad, "--max-bad")

    def _sample(self, i: int) -> dict[str, Any]:
        source = self.source
        end, data = source.encoded(i) if isinstance(source, Encoded) else ("png", _png(source, i))
        if end not in IMAGES:  # bytes of a table, a file without extension, or with one of its own
            end = _type(data, source.key(i), source.max_pixels)
        sample: dict[str, Any] = {"__key__": f"{i:09d}", end: data}
        if source.label(i) >= 0:
            sample["cls"] = source.classes[source.label(i)].encode()
        row = {"key": source.key(i), "captions": source.captions(i)}
        return sample | {"json": json.dumps(row, ensure_ascii=False).encode()}


def _type(data: bytes, name: str, most: int) -> str:
    """The extension of an image by its contents, such as "jpeg"; raises BadImage."""
    try:
        with opened(data, name, most) as file, open_image(file, name, most) as image:
            return {"MPO": "jpeg"}.get(
                str(image.format), str(image.format).lower()
            )  # several JPEGs, of which one is read
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(name, f"not an image ({type(error).__name__})") from None


def _png(source: ImageSource, i: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(source.image(i).permute(1, 2, 0).contiguous().numpy()).save(file, "PNG")
    return file.getvalue()


def _shards(samples: _Samples, out: Path, shard_bytes: int) -> Iterator[Path]:
    """Write shards, each whole or not at all; yields their paths."""
    left, number = iter(samples), 0
    sample = next(left, None)
    while sample is not None:
        path = out / f"shard-{number:05d}.tar"
        with atomic_write(path) as tmp, shard_writer(tmp, samples.source.classes) as write:
            written = 0
            while sample is not None and written < shard_bytes:
                written += write(sample)
                sample = next(left, None)
        yield path
        number += 1
