"""Webdataset shards on a web server or in an object store: fetched into the cache, then read map-style as those on a disk."""

import itertools
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from jaxtyping import UInt8
from torch import Tensor

from tokcli.data.decode import BadImage
from tokcli.data.fetching import look, using
from tokcli.data.object_stores import readable
from tokcli.data.sources.listing import refuse_labels
from tokcli.data.sources.tar_index import TarIndex, contents_of, index_tar, packed_index, parse_index
from tokcli.data.sources.tars import MOST_SHARDS, Tars, braces
from tokcli.data.web_files import Remote
from tokcli.errors import TokError
from tokcli.progress import passing

T = TypeVar("T")
MOST_INDEX = 256 << 20  # bytes
AT_ONCE = 4  # shards that are fetched together


class RemoteTars(Tars):
    """Samples of shards at `https:`, `http:`, `s3:`, `gs:` or `hf:` addresses, with braces. A shard that left the cache is fetched again when needed.

    Shards that `tok data pack` wrote are not fetched before they are read: their indexes are, and each shard is held against its
    index when it arrives. `near` are samples that are read without fetching much.

    Equal shards give the same id on a server and on a disk.

    Raises:
        NotFound: the server cannot be reached, or does not have a shard.
        TokError: a shard does not arrive whole, or has changed since the start; or as `Tars`.
    """

    def _locate(self, pattern: str) -> None:
        self.name = pattern
        urls = list(itertools.islice(braces(pattern), MOST_SHARDS + 1))
        if len(urls) > MOST_SHARDS:
            raise TokError(
                f"--data {pattern}", f"stands for more than {MOST_SHARDS:,} files", next="Narrow the pattern"
            )
        with ThreadPoolExecutor(AT_ONCE) as pool:
            self._remote: list[Remote] = list(pool.map(look, urls))
        self.shards = [Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)) for url in urls]

    def _states(self) -> list[tuple[int, object]]:
        return [(remote.bytes, remote.tag) for remote in self._remote]

    def _indexes(self, contents: bool) -> list[TarIndex]:
        first = _packed(self._remote[0])

        def index(shard: int) -> tuple[TarIndex, str]:
            # either all of a set are packed, or none
            beside = first if shard == 0 or first is None else _packed(self._remote[shard])
            return _index(self._remote[shard], contents, beside)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            indexed = pool.map(index, range(len(self._remote)))
            found = list(passing(indexed, len(self._remote), unit="shard", desc="fetching"))
        self._digests = [digest for _, digest in found]
        self._lost: dict[int, str] = {}
        self.near = range(len(found[0][0].keys))
        return [index for index, _ in found]

    def _using(self, shard: int) -> AbstractContextManager[Path]:
        remote, digest = self._remote[shard], self._digests[shard]

        def check(path: Path) -> None:
            if digest and contents_of(path) != digest:
                where = f"--data {remote.url}"
                raise TokError(where, "is not the shard that its index describes", next="Pack the data again")

        return using(remote, check)

    def encoded(self, i: int) -> tuple[str, bytes]:
        """The extension and the bytes of sample i; raises BadImage, also where its shard cannot be fetched any more."""
        return self._or_lost(i, super().encoded)

    def image(self, i: int) -> UInt8[Tensor, "3 h w"]:
        """RGB pixels of sample i; raises BadImage, as `encoded`."""
        return self._or_lost(i, super().image)

    def _or_lost(self, i: int, read: Callable[[int], T]) -> T:
        """What reading gives; a shard that could not be fetched once is not asked for again for each of its images."""
        shard = int(self._shard[i])
        try:
            if shard in self._lost:
                raise BadImage(self.keys[i], self._lost[shard])
            return read(i)
        except TokError as error:
            self._lost[shard] = str(error)
            raise BadImage(self.keys[i], str(error)) from None

    @classmethod
    def claims(cls, spec: str) -> bool:
        """Addresses of tars; nothing else on the web is read, and no pipe."""
        return readable(spec) and spec.split("?")[0].endswith(".tar")

    @classmethod
    def open(cls, spec: str, *, size: int, labels: Path | None = None) -> "RemoteTars":
        """The samples of all shards; raises TokError as the class does, and with labels."""
        refuse_labels(labels, spec)
        return cls(spec)


def _packed(remote: Remote) -> bytes | None:
    """The index that lies beside a shard; None where there is none."""
    address = urllib.parse.urlsplit(remote.url)
    try:
        index = look(address._replace(path=str(packed_index(Path(address.path)))).geturl())
        if index.bytes > MOST_INDEX:
            return None
        with using(index) as path:
            return path.read_bytes()
    except TokError:
        return None


def _index(remote: Remote, contents: bool, beside: bytes | None) -> tuple[TarIndex, str]:
    """The index of a shard, and the digest by which the shard is checked when it is fetched: "" where it has been.

    Args:
        beside: the index that lies beside it, which saves fetching the shard at the start.
    """
    index = parse_index(beside, remote.bytes, None) if beside is not None else None
    if index is not None and index.contents:
        return index, index.contents
    with using(remote) as path:
        index = index_tar(path, contents=contents or beside is not None, where=f"--data {remote.url}")
    index.stale = beside is not None
    return index, ""
