"""Rows of Parquet files by their number: a few row groups are kept, all others are read when they are asked for."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tokcli.data.sources.parquet_footers import footers
from tokcli.data.sources.parquet_pages import check_pages
from tokcli.errors import TokError

KEPT = 256 << 20  # bytes of row groups that are kept; of larger ones, one
ROWS = 1 << 20  # that a small file may have
MOST_GROUP = 2 << 30  # bytes of a row group, whose images are all read for one


class Damaged(Exception):
    """A part of a file that cannot be read; the message says why."""


class Rows:
    """The rows of several files, numbered from 0 over all of them; it can be pickled.

    Texts and bytes are read as dictionaries, so that a file of a megabyte that repeats one value a million times takes no more
    memory than that.

    Raises:
        TokError: a file is missing, damaged or not Parquet, or its row groups are too large to read one for an image.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        said = footers(paths)
        self.schema = said[0]["schema"]
        # files whose columns are not those of the first
        self._others = [
            (path, one["schema"]) for path, one in zip(paths, said, strict=True) if one["schema"] != self.schema
        ]
        self._leaves = list(dict.fromkeys(leaf for one in said for leaf in one["leaves"]))  # of bytes and texts
        self._nulls = [dict(zip(one["leaves"], one["nulls"], strict=True)) for one in said]
        for path, one in zip(paths, said, strict=True):
            if (largest := max(one["bytes"], default=0)) > MOST_GROUP:
                raise TokError(
                    f"--data {path}",
                    "its row groups are too large: one is read whole for one image",
                    got=f"{largest / 2**30:.1f} GiB",
                    next="Write it with fewer rows in each, such as row_group_size=100",
                )
            if (claimed := sum(one["rows"])) > ROWS + path.stat().st_size:
                raise TokError(
                    f"--data {path}",
                    "claims more rows than it has bytes",
                    got=f"{claimed:,}",
                    next="Write it again, without rows that repeat one image",
                )
        rows = [one["rows"] for one in said]
        groups = [(number, group, count) for number, counts in enumerate(rows) for group, count in enumerate(counts)]
        self._groups = np.array(groups, np.int64).reshape(-1, 3)  # file, number in it, rows
        self._starts = np.concatenate([[0], self._groups[:, 2].cumsum()])
        self.files = np.concatenate(
            [[0], np.cumsum([sum(counts) for counts in rows])]
        )  # where each file begins, and the end
        self._begin()

    def _begin(self) -> None:
        self._kept: OrderedDict[tuple[int, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_kept", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def require(self, columns: Iterable[str]) -> None:
        """Refuse files that do not have these columns as the first has them; raises TokError."""
        for path, schema in self._others:
            for name in columns:
                theirs = schema.field(name).type if name in schema.names else "none"
                if theirs != self.schema.field(name).type:
                    wanted = f"column {name} is {self.schema.field(name).type} in {self.paths[0].name}"
                    raise TokError(
                        f"--data {path}",
                        f"differs from the other files: {wanted}",
                        got=str(theirs),
                        next="Name files of one schema",
                    )

    def file(self, row: int) -> tuple[int, int]:
        """Which file a row is in, and its number there."""
        number = int(np.searchsorted(self.files, row, side="right")) - 1
        return number, row - int(self.files[number])

    def value(self, row: int, column: str) -> Any:
        """One value, as an Arrow scalar; raises Damaged."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        with self._lock:
            found = self._kept.get((group, column))
            if found is None:
                found = self._kept[group, column] = self._read(group, column)
            self._kept.move_to_end((group, column))
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > KEPT:
                self._kept.popitem(last=False)
        return found[row - int(self._starts[group])]

    def column(self, name: str) -> Iterator[tuple[int, Any]]:
        """(row, Arrow array of what begins there), for all rows; raises Damaged."""
        for group, start in enumerate(self._starts[:-1].tolist()):
            for piece in self._read(group, name).chunks:
                yield start, piece
                start += len(piece)

    def nulls(self, leaf: str) -> Iterator[tuple[int, np.ndarray]]:
        """(row, bool (n,): null) of each row group in which a column, or a part such as `image.bytes`, has nulls; raises Damaged."""
        for group, (number, inner, _) in enumerate(self._groups.tolist()):
            if self._nulls[number].get(leaf, {inner: None})[inner] == 0:
                continue  # without reading gigabytes of images
            found = self._read(group, leaf)
            pieces = [piece.flatten()[0] if "." in leaf else piece for piece in found.chunks]
            if pieces:  # else the group has no rows
                yield int(self._starts[group]), np.concatenate([piece.is_null().to_numpy(False) for piece in pieces])

    def _read(self, group: int, column: str) -> Any:
        """A column of a row group, or with a dotted name a part of one, as a chunked Arrow array."""
        number, inner, rows = self._groups[group].tolist()
        with self._opened(self.paths[number], self._leaves) as file:
            parts = file.metadata.row_group(inner)
            leaves = [
                parts.column(i) for i in range(parts.num_columns if rows else 0)
            ]  # without rows there are no pages
            check_pages(
                self.paths[number], [one for one in leaves if f"{one.path_in_schema}.".startswith(f"{column}.")]
            )
            found = file.read_row_group(inner, columns=[column], use_threads=False).column(0)
        if len(found) != rows:
            raise Damaged(f"{len(found)} rows where {rows} are listed")
        return found

    @contextlib.contextmanager
    def _opened(self, path: Path, dictionaries: Iterable[str] = ()) -> Iterator[Any]:
        """A file, closed afterwards: nothing is open while workers are started."""
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        try:
            with ParquetFile(path, read_dictionary=[*dictionaries]) as file:
                yield file
        except (ArrowException, OSError, ValueError) as error:
            raise Damaged(str(error).splitlines()[0] if str(error) else type(error).__name__) from None
