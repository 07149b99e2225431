"""Features computed once and read from disk, in shards that ranks share: a teacher's, of images; a text tower's, of captions."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from tokcli import distributed
from tokcli.data.npy import NpyError, NpyRows
from tokcli.data.reading import read_all
from tokcli.data.sources import BadImage, ImageSource
from tokcli.device import autocast
from tokcli.files import Behind, atomic_write, cache_dir, require_space
from tokcli.pretrained.text import TextTower, byte_pairs
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


if TYPE_CHECKING:
    from tokcli.pretrained.teacher import Teacher

TEACHER_SHARD = 256  # images per file
BATCH = 32


class TeacherCache:
    """Features as float16 shards under the cache folder, keyed by teacher, layers, data set and transform.

    Args:
        teacher: whose features.
        source: of which images.
        transform: a deterministic one.
        grid: rows and columns of the features.
        precision: in which they are computed.
    """

    def __init__(
        self, teacher: "Teacher", source: ImageSource, transform: Any, grid: tuple[int, int], precision: str
    ) -> None:
        self.teacher, self.source, self.transform, self.precision = teacher, source, transform, precision
        self.grid = grid
        key = [
            teacher.name,
            teacher.sha256,
            teacher.layers,
            teacher.norm,
            teacher.image_size,
            source.id,
            transform.describe(),
            grid,
            "antialias",
            *([precision] if precision != "float32" else []),
            *(["unprojected"] if teacher.projection is False else []),
        ]
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        self.shape = (grid[0] * grid[1], teacher.feature_dim)
        self.cache = FeatureCache(f"{teacher.name.replace('/', '-')}-{name}", len(source), TEACHER_SHARD, self._fits)

    def _fits(self, arrays: Sequence[NpyRows], rows: int) -> bool:
        return arrays[0].shape == (rows, *self.shape) and arrays[0].dtype == np.float16

    def fill(self, device: torch.device) -> None:
        """Compute what is missing; ranks share the shards.

        Raises:
            TokError: the disk cannot hold the cache.
        """
        self.cache.fill(
            lambda ranges: self._compute(ranges, device),
            row_bytes=self.shape[0] * self.shape[1] * 2,
            where="data.cache_features",
            next="Set it to false, or TOK_CACHE to another disk",
            unit="image",
            desc="teacher features",
        )

    def rows(self, indices: Int64[Tensor, " b"]) -> Float[Tensor, "b n d"]:
        """Features of those samples, float32 on the CPU."""
        found = np.empty((len(indices), *self.shape), np.float16)
        for row, index in enumerate(indices.tolist()):
            shard, at = divmod(index, TEACHER_SHARD)
            found[row] = self.cache.shard(shard)[0][at]
        return torch.from_numpy(found).float()

    def _compute(self, ranges: Sequence[range], device: torch.device) -> Iterator[list[np.ndarray]]:
        """The features of each range; the images of the next ones are read meanwhile."""
        rows = itertools.chain.from_iterable(ranges)
        found = read_all(self.source, self.transform, indices=rows, count=sum(map(len, ranges)))
        for part in ranges:
            # unreadable images keep zeros; training never asks for them
            out = np.zeros((len(part), *self.shape), np.float16)
            good = ((i - part.start, x) for i, x in itertools.islice(found, len(part)) if not isinstance(x, BadImage))
            while waiting := list(itertools.islice(good, BATCH)):
                self._run(waiting, out, device)
            yield [out]

    def _run(self, waiting: list[tuple[int, Tensor]], out: np.ndarray, device: torch.device) -> None:
        images = torch.stack([image for _, image in waiting]).to(device).float() / 255
        with autocast(device, self.precision):
            features = self.teacher(images, self.grid)
        # unit length: float16 holds it to 3 digits whatever the teacher's scale, and the loss is a cosine
        features = torch.nn.functional.normalize(features.float(), dim=-1)
        out[[row for row, _ in waiting]] = features.cpu().numpy().astype(np.float16)


CAPTION_SHARD = 1024  # captions per file


class BytePairTable:
    """Byte pairs of captions, see `tokcli.pretrained.text`."""

    def __init__(self, captions: Sequence[str], length: int) -> None:
        none = torch.zeros(1, length, dtype=torch.int64)
        self._numbers = torch.cat([byte_pairs(captions, length), none]).int()

    def rows(self, numbers: Int64[Tensor, " b"]) -> Int[Tensor, "b length"]:
        """Conditions of captions by number; -1 is the empty one."""
        return self._numbers[numbers].long()


class FeatureTable:
    """A tower's features of captions, in float16 shards under the cache folder; equal captions are computed once.

    Args:
        tower: whose features.
        captions: of which texts.
        length: text tokens kept of each.
    """

    def __init__(self, tower: TextTower, captions: Sequence[str], length: int) -> None:
        self.tower, self.length, self.dim = tower, length, tower.dim(tower.name)
        self.texts = list(dict.fromkeys(captions))
        place = {text: number for number, text in enumerate(self.texts)}
        self._places = np.array([place[text] for text in captions], dtype=np.int64)
        made_by = [tower.name, tower.sha256, *([tower.words_sha256] if tower.words_sha256 else [])]
        key = hashlib.sha256(json.dumps([*made_by, length, self.texts]).encode()).hexdigest()[:16]
        name = f"text-{tower.name.replace('/', '-').replace(':', '-')}-{key}"
        self.cache = FeatureCache(name, len(self.texts), CAPTION_SHARD, self._fits, ("ends", "features"))

    def _fits(self, arrays: Sequence[NpyRows], rows: int) -> bool:
        ends, features = arrays
        if ends.shape != (rows,) or ends.dtype != np.int64:
            return False
        lengths = np.diff(ends.read(0, rows), prepend=0)
        whole = (int(lengths.sum()), self.dim)
        return bool((lengths >= 0).all()) and features.shape == whole and features.dtype == np.float16

    def fill(self) -> None:
        """Compute what is missing; ranks share the shards.

        Raises:
            TokError: the disk cannot hold the cache.
        """
        self.cache.fill(
            lambda ranges: map(self._compute, ranges),
            row_bytes=self.length * self.dim * 2,
            where="condition.tower",
            next="Set TOK_CACHE to another disk",
            unit="caption",
            desc="text features",
        )

    def rows(self, numbers: Int64[Tensor, " b"]) -> Float[Tensor, "b length d"]:
        """Conditions of captions by number, float32; -1 is the empty one."""
        found = torch.zeros(len(numbers), self.length, self.dim)
        for row, number in enumerate(numbers.tolist()):
            if number >= 0:
                shard, at = divmod(int(self._places[number]), CAPTION_SHARD)
                ends, features = self.cache.shard(shard)
                own = features.read(int(ends[at - 1]) if at else 0, int(ends[at]))
                found[row, : len(own)] = torch.from_numpy(own.astype(np.float32))
        return found

    def _compute(self, rows: range) -> tuple[np.ndarray, np.ndarray]:
        """Where each caption ends among the features, and the features without padding."""
        features = self.tower.encode(self.texts[rows.start : rows.stop], self.length)
        given = (features != 0).any(-1)  # (captions, length)
        return given.sum(1).cumsum(0).numpy(), features[given].half().numpy()
