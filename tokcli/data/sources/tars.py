"""Webdataset shards on a disk, read map-style: a sample is one seek away, so order and resume are exact."""

import itertools
import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from tokcli.data.decode import BadImage, decode
from tokcli.data.sources.listing import class_numbers, data_id, is_url, refuse_labels
from tokcli.data.sources.tar_index import IMAGES, TEXTS, TarIndex, index_tar, read_member, texts_of
from tokcli.errors import TokError

MOST_SHARDS = 1_000_000
log = logging.getLogger("tok")


def expand(pattern: str) -> list[Path]:
    """The files that `a-{000..009}.tar` stands for, in order.

    Raises:
        TokError: a broken pattern, or one of more than a million files.
    """
    from braceexpand import braceexpand

    where = f"--data {pattern}"
    try:
        paths = list(itertools.islice(braceexpand(pattern), MOST_SHARDS + 1))
    except ValueError as error:
        raise TokError(where, "the braces do not match", got=str(error)) from None
    if len(paths) > MOST_SHARDS:
        raise TokError(where, f"stands for more than {MOST_SHARDS:,} files")
    return [Path(path) for path in paths]


class Tars:
    """Samples of one or more tars, in the order of the shards and within them; keys are `shard/key`.

    A sample is the members that share a name up to the first dot: jpg, jpeg, png or webp, and beside it cls
    (class), txt (captions) or json ("cls" or "label"; "captions", "caption" or "text"). Nothing else is read:
    other members are counted and named in a warning. A shard that is cut short gives what is whole and says
    the rest in `problems`.

    Raises:
        TokError: a shard is missing or not a plain tar, or there is no image in any.
    """

    def __init__(self, pattern: str) -> None:
        where = f"--data {pattern}"
        self.name = os.path.abspath(pattern)
        self.shards = expand(self.name)
        shards = [index_tar(path) for path in self.shards]
        self.problems = [(key, why) for shard in shards for key, why in shard.problems]
        self.ignored = _report(where, shards)
        self.keys = [f"{p.stem}/{key}" for p, shard in zip(self.shards, shards, strict=True) for key in shard.keys]
        if not self.keys:
            why = f" ({self.problems[0][0]}: {self.problems[0][1]})" if self.problems else ""
            raise TokError(where, f"no images found{why}", next="Members are read by extension: " + " ".join(IMAGES))
        self._shard = np.repeat(np.arange(len(shards), dtype=np.int32), [len(shard.keys) for shard in shards])
        self._place = np.array([place for shard in shards for place in shard.images], dtype=np.int64).reshape(-1, 2)
        self._texts = [text for shard in shards for text in shard.texts]
        self.labels, self.classes = class_numbers([name for shard in shards for name in shard.names], where)
        texts = (size for text in self._texts for _, _, size in text)
        self.id = data_id("tar", "1", self.keys, self.labels, [*self._place[:, 1].tolist(), *texts])

    @classmethod
    def claims(cls, spec: str) -> bool:
        """Names that end in .tar (compressed ones are refused on opening), and patterns with braces."""
        named = spec.endswith((".tar", ".tgz", ".tar.gz")) or "{" in spec
        return named and not is_url(spec) and not Path(spec).is_dir()

    @classmethod
    def open(cls, spec: str, *, size: int, labels: Path | None = None) -> "Tars":
        """The samples of all shards; raises TokError as the class does, and with labels."""
        refuse_labels(labels, spec)
        return cls(os.path.expanduser(spec))

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
        found: dict[str, None] = {}  # img2dataset writes one caption into both .txt and .json
        with open(self.shards[self._shard[i]], "rb") as file:
            for extension, offset, size in self._texts[i]:
                found |= dict.fromkeys(texts_of(extension, read_member(file.fileno(), offset, size)))
        return list(found)

    def image(self, i: int) -> UInt8[Tensor, "3 h w"]:
        """RGB pixels of sample i; raises BadImage."""
        offset, size = self._place[i].tolist()
        try:
            with open(self.shards[self._shard[i]], "rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise BadImage(self.keys[i], error.strerror or "cannot be read") from None
        return decode(data, self.keys[i])


def _report(where: str, shards: list[TarIndex]) -> dict[str, int]:
    ignored: Counter[str] = Counter()
    for shard in shards:
        ignored.update(shard.ignored)
    if ignored:
        named = ", ".join(f"{kind} {count}" for kind, count in ignored.most_common())
        log.warning(
            "%s: %d members not read (%s); only %s are",
            where,
            ignored.total(),
            named,
            " ".join(IMAGES + TEXTS),
        )
    return dict(ignored)
