"""Captions of a data set as conditions, by number: text tokens in memory, or a tower's features computed once and kept on disk."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor
from tqdm import tqdm

from tokcli import distributed
from tokcli.data.npy import open_npy
from tokcli.files import atomic_write, cache_dir, require_space
from tokcli.pretrained.text import TextTower, byte_pairs

SHARD = 1024  # captions per file: a killed run loses at most one


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
        key = hashlib.sha256(json.dumps([tower.name, tower.sha256, length, self.texts]).encode()).hexdigest()[:16]
        self.folder = cache_dir() / "features" / f"text-{tower.name.replace('/', '-').replace(':', '-')}-{key}"
        self._shards: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def fill(self) -> None:
        """Compute what is missing; ranks share the shards.

        Raises:
            TokError: the disk cannot hold the cache.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        shards = range(-(-len(self.texts) // SHARD))
        missing = [s for s in shards if not (self.folder / f"features-{s:05d}.npy").exists()]
        need = len(missing) * SHARD * self.length * self.dim * 2
        require_space(self.folder, need, "condition.tower", next="set TOK_CACHE to another disk")
        # by number, not by place: what is missing changes while ranks that are ahead write theirs
        mine = [s for s in missing if s % distributed.world_size() == distributed.rank()]
        for shard in tqdm(mine, desc="text features", unit="shard", disable=not distributed.is_main() or not mine):
            features = self.tower.encode(self.texts[shard * SHARD : (shard + 1) * SHARD], self.length)
            given = (features != 0).any(-1)  # (captions, length)
            self._write(f"ends-{shard:05d}.npy", given.sum(1).cumsum(0).numpy())
            self._write(f"features-{shard:05d}.npy", features[given].half().numpy())  # last: with it the shard is whole
        distributed.barrier()

    def rows(self, numbers: Int64[Tensor, " b"]) -> Float[Tensor, "b length d"]:
        """Conditions of captions by number, float32; -1 is the empty one."""
        found = torch.zeros(len(numbers), self.length, self.dim)
        for row, number in enumerate(numbers.tolist()):
            if number >= 0:
                shard, at = divmod(int(self._places[number]), SHARD)
                ends, features = self._shard(shard)
                own = features[ends[at - 1] if at else 0 : ends[at]]
                found[row, : len(own)] = torch.from_numpy(own.astype(np.float32))
        return found

    def _write(self, name: str, array: np.ndarray) -> None:
        with atomic_write(self.folder / name) as tmp, open(tmp, "wb") as file:
            np.save(file, array, allow_pickle=False)

    def _shard(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        if number not in self._shards:
            names = (f"ends-{number:05d}.npy", f"features-{number:05d}.npy")
            ends, features = (open_npy(self.folder / name) for name in names)
            self._shards[number] = (ends, features)
        return self._shards[number]
