"""Random numbers that depend on what they are for and on nothing else: not on rank, batch size or order."""

import hashlib

import numpy as np
import torch


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
