"""Webdataset shards on a disk, read map-style: a sample is one seek away, so order and resume are exact."""

import glob
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from tokcli.data.decode import BadImage, Part, check_bytes, decode
from tokcli.data.sources.caption_files import captions_beside, usable
from tokcli.data.sources.classes import class_numbers, known_numbers
from tokcli.data.sources.contents import CONTENTS_UP_TO, state_of
from tokcli.data.sources.listing import IMAGE_EXTENSIONS, data_id, is_url, refuse_labels
from tokcli.data.sources.tar_index import IMAGES, TarIndex, index_tar, read_member
from tokcli.errors import NotFound, TokError
from tokcli.files import from_home
from tokcli.progress import passing
from tokcli.recipe import MAX_PIXELS

MOST_SHARDS = 1_000_000
COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


def braces(pattern: str) -> Iterator[str]:
    """The names that a pattern such as `a-{000..009}.tar` stands for; raises TokError where its braces do not match."""
    from braceexpand import braceexpand

    try:
        yield from braceexpand(pattern)
    except ValueError as error:
        raise TokError(
            f"--data {pattern}",
            "the braces do not match",
            why=str(error),
            next="Write them like shards-{000..099}.tar, within quotes",
        ) from None


def expand(pattern: str) -> list[Path]:
    """The files that `a-{000..009}.tar`, `a-*.tar` or a folder of tars stand for, in order.

    Raises:
        NotFound: none fits.
        TokError: a broken pattern, or one of more than a million files.
    """
    where = f"--data {pattern}"
    if os.path.isdir(pattern):
        return sorted(
            path for path in Path(pattern).iterdir() if path.suffix.lower() == ".tar" and not path.name.startswith(".")
        )
    patterns = itertools.islice(braces(pattern), MOST_SHARDS + 1)
    paths: list[str] = []
    for one in patterns:
        fitting = sorted(glob.glob(one)) if glob.has_magic(one) and not os.path.exists(one) else [one]
        if not fitting:
            raise NotFound(where, f"no file is named like {one}", next="Check the folder and the pattern")
        paths += fitting
    if len(paths) > MOST_SHARDS:
        raise TokError(where, f"stands for more than {MOST_SHARDS:,} files", next="Narrow the pattern")
    return [Path(path) for path in paths]


def regular(paths: list[Path]) -> list[Path]:
    """The same paths.

    Raises:
        TokError: one is no file; a pipe would be waited for for ever.
    """
    for path in paths:
        if path.exists() and not path.is_file():
            raise TokError(f"--data {path}", "is a folder, a pipe or a device", next="Name files, or move it away")
    return paths


class Tars:
    """Samples of one or more tars, in the order of the shards and within them; keys are `shard/key`.

    A sample is the members that share a name up to the first dot: an image, and beside it cls (class), txt (captions) or json
    ("cls" or "label"; "captions", "caption" or "text"). Nothing else is read: other members are counted and named in a warning,
    and images whose name has dots before its extension are `problems`, as are labels and captions that cannot be used. A shard
    that is cut short gives what is whole and says the rest in `problems`.

    Raises:
        TokError: a shard is missing or not a plain tar, or there is no image in any.
    """

    max_pixels = MAX_PIXELS

    def __init__(self, pattern: str) -> None:
        where = f"--data {pattern}"
        self._locate(pattern)
        states = self._states()
        shards = self._indexes(sum(size for size, _ in states) <= CONTENTS_UP_TO)
        self.problems = [(key, why) for shard in shards for key, why in shard.problems]
        self.ignored = dict(sum((Counter(shard.ignored) for shard in shards), _compressed(self.name)))
        self.notes = self._notes(shards)
        prefixes = shard_names(self.shards)
        self.keys = [f"{prefix}/{key}" for prefix, shard in zip(prefixes, shards, strict=True) for key in shard.keys]
        if not self.keys:
            why = f" ({self.problems[0][0]}: {self.problems[0][1]})" if self.problems else ""
            raise TokError(where, f"no images found{why}", next="Name members by extension: " + " ".join(IMAGES))
        self._shard = np.repeat(np.arange(len(shards), dtype=np.int32), [len(shard.keys) for shard in shards])
        self._place = np.array([place for shard in shards for place in shard.images], dtype=np.int64).reshape(-1, 2)
        self._texts = [text for shard in shards for text in shard.texts]
        self._ends = [end for shard in shards for end in shard.ends]
        listed = {tuple(shard.classes) for shard in shards}
        names = [name for shard in shards for name in shard.names]
        self.labels, self.classes = (
            class_numbers(names, where) if listed == {()} else known_numbers(names, listed, where)
        )
        said = (
            [shard.contents for shard in shards]
            if all(shard.contents for shard in shards)
            else [str(state) for state in states]
        )
        self.id = data_id("tar", "2", self.keys, self.labels, "\n".join(said).encode())

    def _locate(self, pattern: str) -> None:
        """Set `name`, and `shards`, by which keys are named."""
        self.name = os.path.abspath(from_home(pattern))
        self.shards = regular(expand(self.name))

    def _states(self) -> list[tuple[int, object]]:
        """Bytes of each shard, and what changes with it; a missing one is named when it is indexed."""
        return [state_of(path.stat())[:2] if path.exists() else (0, 0) for path in self.shards]

    def _indexes(self, contents: bool) -> list[TarIndex]:
        shards = passing(self.shards, len(self.shards), unit="shard", desc="reading headers")
        return [index_tar(path, contents=contents) for path in shards]

    def _notes(self, shards: list[TarIndex]) -> list[str]:
        """What is to be said of the shards beside their contents."""
        stale = sum(shard.stale for shard in shards)
        why = "changed since, or copied without its time; the headers are read instead"
        return [f"{stale:,} of {len(shards):,} indexes are not of their shards ({why})"] if stale else []

    def _using(self, shard: int) -> AbstractContextManager[Path]:
        """Where a shard lies, for as long as it is used."""
        return nullcontext(self.shards[shard])

    @classmethod
    def claims(cls, spec: str) -> bool:
        """Names that end in .tar (compressed ones are refused on opening), patterns with braces, and folders of tars alone."""
        path = from_home(spec)
        if path.is_dir():
            return _only_tars(path)
        return not is_url(spec) and (
            spec.lower().endswith((".tar", ".tgz", ".tar.gz")) or ("{" in spec and ".parquet" not in spec)
        )

    @classmethod
    def open(cls, spec: str, *, size: int, labels: Path | None = None) -> "Tars":
        """The samples of all shards; raises TokError as the class does, and with labels."""
        refuse_labels(labels, spec)
        return cls(spec)

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, i: int) -> str:
        """Sample i as `shard/key`."""
        return self.keys[i]

    def label(self, i: int) -> int:
        """The class of sample i, -1 for none."""
        return int(self.labels[i])

    def captions(self, i: int) -> list[str]:
        """The captions of sample i, [] for none."""
        with self._using(int(self._shard[i])) as path, open(path, "rb") as file:
            parts = {end: read_member(file.fileno(), offset, size) for end, offset, size in self._texts[i]}
        return usable(captions_beside(parts.get("txt", b""), parts.get("json", b"")))

    def image(self, i: int) -> UInt8[Tensor, "3 h w"]:
        """RGB pixels of sample i; raises BadImage."""
        with self._using(int(self._shard[i])) as path:
            return decode(Part(path, *self._place[i].tolist()), self.keys[i], most=self.max_pixels)

    def encoded(self, i: int) -> tuple[str, bytes]:
        """The extension and the bytes of sample i; raises BadImage."""
        offset, size = self._place[i].tolist()
        check_bytes(size, self.keys[i], self.max_pixels)
        try:
            with self._using(int(self._shard[i])) as path, open(path, "rb") as file:
                file.seek(offset)
                return self._ends[i], file.read(size)
        except OSError as error:
            raise BadImage(self.keys[i], error.strerror or "cannot be read") from None


def _only_tars(folder: Path) -> bool:
    """Whether a folder holds tars and neither images nor folders, in which images may lie."""
    found = False
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir() or entry.name.lower().endswith(IMAGE_EXTENSIONS):
                return False
            found = found or entry.name.lower().endswith(".tar")
    return found


def _compressed(folder: str) -> Counter[str]:
    """Compressed tars in a folder of tars by their extension: they are not read."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return Counter(end for name in names for end in COMPRESSED if name.lower().endswith(end))


def shard_names(paths: list[Path]) -> list[str]:
    """What tells shards apart: their names, or their paths where several folders hold equal names."""
    names = [path.stem for path in paths]
    if len(set(names)) == len(names):
        return names
    above = os.path.commonpath([str(path.parent) for path in paths])
    return [os.path.relpath(path.with_suffix(""), above) for path in paths]
