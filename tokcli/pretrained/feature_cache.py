"""A teacher's features of a whole data set, computed once and read from disk, for training without random transforms."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from tqdm import tqdm

from tokcli import distributed
from tokcli.data.reading import read_all
from tokcli.data.sources import BadImage, ImageSource
from tokcli.files import atomic_write, cache_dir, require_space

if TYPE_CHECKING:
    from tokcli.pretrained.teachers import Teacher

SHARD = 256  # images per file: a killed run loses at most one
BATCH = 32


class FeatureCache:
    """Features as float16 shards under the cache folder, keyed by teacher, layers, data set and transform.

    Args:
        teacher: whose features.
        source: of which images.
        transform: a deterministic one.
        grid: rows and columns of the features.
    """

    def __init__(self, teacher: "Teacher", source: ImageSource, transform: Any, grid: tuple[int, int]) -> None:
        import hashlib
        import json

        self.teacher, self.source, self.transform, self.grid = teacher, source, transform, grid
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
            *(["unprojected"] if teacher.projection is False else []),
        ]
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        self.folder = cache_dir() / "features" / f"{teacher.name.replace('/', '-')}-{name}"
        self.shape = (grid[0] * grid[1], teacher.feature_dim)
        self._shards: dict[int, np.ndarray] = {}

    def fill(self, device: torch.device, precision: str) -> None:
        """Compute what is missing; ranks share the shards.

        Raises:
            TokError: the disk cannot hold the cache.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        shards = -(-len(self.source) // SHARD)
        missing = [s for s in range(shards) if not self._path(s).exists()]
        need = len(missing) * SHARD * self.shape[0] * self.shape[1] * 2
        require_space(self.folder, need, "data.cache_features", next="set it to false, or TOK_CACHE to another disk")
        mine = missing[distributed.rank() :: distributed.world_size()]
        for shard in tqdm(mine, desc="teacher features", unit="shard", disable=not distributed.is_main() or not mine):
            with atomic_write(self._path(shard)) as tmp, open(tmp, "wb") as file:
                np.save(file, self._compute(shard, device, precision))
        distributed.barrier()

    def rows(self, indices: Int64[Tensor, " b"]) -> Float[Tensor, "b n d"]:
        """Features of those samples, float32 on the CPU."""
        found = np.empty((len(indices), *self.shape), np.float16)
        for row, index in enumerate(indices.tolist()):
            shard = index // SHARD
            if shard not in self._shards:
                self._shards[shard] = np.load(self._path(shard), mmap_mode="r", allow_pickle=False)
            found[row] = self._shards[shard][index % SHARD]
        return torch.from_numpy(found).float()

    def _path(self, shard: int) -> Any:
        return self.folder / f"features-{shard:05d}.npy"

    def _compute(self, shard: int, device: torch.device, precision: str) -> np.ndarray:
        first = shard * SHARD
        numbers = range(first, min(first + SHARD, len(self.source)))
        out = np.zeros(
            (len(numbers), *self.shape), np.float16
        )  # unreadable images keep zeros; training never asks for them
        waiting: list[tuple[int, Tensor]] = []
        for index, image in read_all(self.source, self.transform, indices=numbers):
            if not isinstance(image, BadImage):
                waiting.append((index - first, image))
            if len(waiting) == BATCH:
                self._run(waiting, out, device, precision)
                waiting = []
        if waiting:
            self._run(waiting, out, device, precision)
        return out

    def _run(self, waiting: list[tuple[int, Tensor]], out: np.ndarray, device: torch.device, precision: str) -> None:
        images = torch.stack([image for _, image in waiting]).to(device).float() / 255
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            features = self.teacher(images, self.grid)
        # unit length: float16 holds it to 3 digits whatever the teacher's scale, and the loss is a cosine
        features = torch.nn.functional.normalize(features.float(), dim=-1)
        out[[row for row, _ in waiting]] = features.cpu().numpy().astype(np.float16)
