"""Captions of a data set as conditions, by number: text tokens in memory, or a tower's features computed once and kept on disk."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from tokcli.data.npy import NpyRows
from tokcli.pretrained.feature_cache import FeatureCache
from tokcli.pretrained.text import TextTower, byte_pairs

SHARD = 1024  # captions per file


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
        self.cache = FeatureCache(name, len(self.texts), SHARD, self._fits, ("ends", "features"))

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
                shard, at = divmod(int(self._places[number]), SHARD)
                ends, features = self.cache.shard(shard)
                own = features.read(int(ends[at - 1]) if at else 0, int(ends[at]))
                found[row, : len(own)] = torch.from_numpy(own.astype(np.float32))
        return found

    def _compute(self, rows: range) -> tuple[np.ndarray, np.ndarray]:
        """Where each caption ends among the features, and the features without padding."""
        features = self.tower.encode(self.texts[rows.start : rows.stop], self.length)
        given = (features != 0).any(-1)  # (captions, length)
        return given.sum(1).cumsum(0).numpy(), features[given].half().numpy()
