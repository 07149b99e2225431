"""Webdataset shards on a web server: fetched into the cache, then read map-style as those on a disk."""

import itertools
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from tokcli.data.decode import BadImage
from tokcli.data.fetching import Remote, look, using
from tokcli.data.sources.listing import refuse_labels
from tokcli.data.sources.tar_index import TarIndex, index_tar
from tokcli.data.sources.tars import MOST_SHARDS, Tars, braces
from tokcli.errors import TokError

AT_ONCE = 4  # shards that are fetched together


class RemoteTars(Tars):
    """Samples of shards at `https:` or `http:` addresses, with braces. A shard that left the cache is fetched again when needed.

    Equal shards give the same id on a server and on a disk.

    Raises:
        NotFound: the server cannot be reached, or does not have a shard.
        TokError: a shard does not arrive whole, or has changed since the start; or as `Tars`.
    """

    def _locate(self, pattern: str) -> None:
        self.name = pattern
        urls = list(itertools.islice(braces(pattern), MOST_SHARDS + 1))
        if len(urls) > MOST_SHARDS:
            raise TokError(f"--data {pattern}", f"stands for more than {MOST_SHARDS:,} files")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            self._remote: list[Remote] = list(pool.map(look, urls))
        self.shards = [Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)) for url in urls]

    def _states(self) -> list[tuple[int, object]]:
        return [(remote.bytes, remote.tag) for remote in self._remote]

    def _indexes(self, contents: bool) -> list[TarIndex]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda remote: _index(remote, contents), self._remote))

    def _using(self, shard: int) -> AbstractContextManager[Path]:
        return using(self._remote[shard])

    def encoded(self, i: int) -> tuple[str, bytes]:
        """The extension and the bytes of sample i; raises BadImage, also where its shard cannot be fetched any more."""
        try:
            return super().encoded(i)
        except TokError as error:
            raise BadImage(self.keys[i], str(error)) from None

    def image(self, i: int) -> UInt8[Tensor, "3 h w"]:
        """RGB pixels of sample i; raises BadImage, as `encoded`."""
        try:
            return super().image(i)
        except TokError as error:
            raise BadImage(self.keys[i], str(error)) from None

    @classmethod
    def claims(cls, spec: str) -> bool:
        """Addresses of tars; nothing else on the web is read, and no pipe."""
        return spec.startswith(("https://", "http://")) and spec.split("?")[0].endswith(".tar")

    @classmethod
    def open(cls, spec: str, *, size: int, labels: Path | None = None) -> "RemoteTars":
        """The samples of all shards; raises TokError as the class does, and with labels."""
        refuse_labels(labels, spec)
        return cls(spec)


def _index(remote: Remote, contents: bool) -> TarIndex:
    with using(remote) as path:
        return index_tar(path, contents=contents)
