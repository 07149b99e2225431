"""A teacher's features of a whole data set, computed once and read from disk, for training without random transforms."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tokcli.data.npy import NpyRows
from tokcli.data.reading import read_all
from tokcli.data.sources import BadImage, ImageSource
from tokcli.device.precision import autocast
from tokcli.pretrained.feature_cache import FeatureCache

if TYPE_CHECKING:
    from tokcli.pretrained.teachers import Teacher

SHARD = 256  # images per file
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
        self.cache = FeatureCache(f"{teacher.name.replace('/', '-')}-{name}", len(source), SHARD, self._fits)

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
            shard, at = divmod(index, SHARD)
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
