"""Features of a data set, computed once and read from disk: the shards that teachers' and captions' features share."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from tokcli import distributed
from tokcli.data.npy import NpyError, NpyRows
from tokcli.files import Behind, atomic_write, cache_dir, require_space
from tokcli.progress import bar


class FeatureCache:
    """Arrays in shards under the cache folder, each written whole or not at all.

    Args:
        name: of the folder: what the features depend on, as a hash.
        rows: of the whole.
        per_shard: rows of a shard; a killed run loses at most one.
        fits: whether the arrays of a shard are those of so many rows.
        arrays: names of the files of a shard. The last is written last: with it the shard is whole.
    """

    def __init__(
        self,
        name: str,
        rows: int,
        per_shard: int,
        fits: Callable[[Sequence[NpyRows], int], bool],
        arrays: Sequence[str] = ("features",),
    ) -> None:
        self.folder = cache_dir() / "features" / name
        self.per_shard, self.fits, self.arrays = per_shard, fits, arrays
        self._bounds = [range(start, min(start + per_shard, rows)) for start in range(0, rows, per_shard)]
        self._open: dict[int, tuple[NpyRows, ...]] = {}

    def fill(
        self,
        compute: Callable[[Sequence[range]], Iterable[Sequence[np.ndarray]]],
        *,
        row_bytes: int,
        where: str,
        next: str,
        unit: str,
        desc: str,
    ) -> None:
        """Compute the shards that are missing or damaged; ranks share them.

        Args:
            compute: the arrays of each range of rows in turn.
            row_bytes: bytes of a row, at most.
            where, next: recipe key and advice of the error.
            unit, desc: of a row and of the work, for the progress bar.

        Raises:
            TokError: the disk cannot hold them.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [shard for shard in range(len(self._bounds)) if not self._whole(shard)]
        require_space(self.folder, len(missing) * self.per_shard * row_bytes, where, next=next)
        # by number, not by place in the list: what is missing changes while ranks that are ahead write theirs
        mine = [shard for shard in missing if shard % distributed.world_size() == distributed.rank()]
        bounds = [self._bounds[shard] for shard in mine]
        with bar(sum(map(len, bounds)), unit=unit, desc=desc) as shown, Behind() as behind:
            for shard, rows, arrays in zip(mine, bounds, compute(bounds), strict=True):
                behind(self._write, shard, arrays)
                shown.update(len(rows))
        distributed.barrier()

    def _write(self, shard: int, arrays: Sequence[np.ndarray]) -> None:
        for name, array in zip(self.arrays, arrays, strict=True):
            with atomic_write(self._path(name, shard)) as tmp, open(tmp, "wb") as file:
                np.save(file, array, allow_pickle=False)

    def shard(self, number: int) -> tuple[NpyRows, ...]:
        """The arrays of a shard, of which rows are read.

        Raises:
            FileNotFoundError: it was not filled.
            NpyError: a file is damaged.
        """
        if number not in self._open:
            self._open[number] = tuple(NpyRows(self._path(name, number)) for name in self.arrays)
        return self._open[number]

    def _path(self, name: str, shard: int) -> Path:
        return self.folder / f"{name}-{shard:05d}.npy"

    def _whole(self, shard: int) -> bool:
        """Whether all files of a shard are there at full length, and of its rows."""
        try:
            return self.fits([NpyRows(self._path(name, shard)) for name in self.arrays], len(self._bounds[shard]))
        except (FileNotFoundError, NpyError):
            return False
