"""Random numbers that depend on what they are for, not on rank or batch size; and the order in which a training sees its samples."""

import hashlib

import numpy as np
import torch

from tokcli.errors import TokError


def seed_of(seed: int, *keys: int | str) -> int:
    """A 63-bit hash of a seed and of keys that name a purpose, such as ("crop", epoch, sample index)."""
    text = "\x1f".join([str(seed), *map(str, keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *keys: int | str) -> torch.Generator:
    """A CPU generator seeded by `seed_of(seed, *keys)`."""
    return torch.Generator().manual_seed(seed_of(seed, *keys))


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of n samples in one epoch, int64 (n,)."""
    return np.random.Generator(np.random.PCG64(seed_of(seed, "order", epoch))).permutation(n)


class Order:
    """Step s is samples [s * batch_size, (s + 1) * batch_size) of the stream; a rank takes every `world`-th.

    Nothing is dropped and no epoch is padded: a batch may end one epoch and begin the next.

    Raises:
        ValueError: no samples.
        TokError: a batch size that does not divide over the ranks.
    """

    def __init__(self, count: int, batch_size: int, seed: int, world: int = 1) -> None:
        if count < 1 or batch_size < 1:
            raise ValueError(f"batch_size: there must be samples and a batch size, not {count} and {batch_size}")
        if batch_size % world:
            raise TokError(
                "batch_size",
                f"does not divide over {world} processes",
                got=str(batch_size),
                next="Choose a multiple of it: --set train.batch_size=N",
            )
        self.count, self.batch_size, self.seed, self.world = count, batch_size, seed, world
        self._known: dict[int, np.ndarray] = {}

    def epoch(self, step: int) -> float:
        """How many passes over the data `step` steps are."""
        return step * self.batch_size / self.count

    def of_rank(self, step: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Epochs and sample numbers, each int64 (batch_size / world,)."""
        places = np.arange(step * self.batch_size + rank, (step + 1) * self.batch_size, self.world)
        epochs, slots = np.divmod(places, self.count)
        samples = np.empty_like(slots)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            samples[here] = self._permutation(epoch)[slots[here]]
        return epochs, samples

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._known:
            self._known = {e: p for e, p in self._known.items() if e == epoch - 1}
            self._known[epoch] = permutation(self.seed, epoch, self.count)
        return self._known[epoch]
