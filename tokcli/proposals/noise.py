"""Uniform numbers that are a function of (seed, purpose, counter) alone.

A generator per sample would cost a Python call each (4 times as long at a batch of 256) and give other
numbers on another device; a hash of a counter (SplitMix64: Steele, Lea and Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014) is a few integer operations on a whole batch. A sample's mask
and an image's draws so do not depend on what shares the batch.
"""

from enum import IntEnum

import torch
from jaxtyping import Float64, Int64
from torch import Tensor


class Purpose(IntEnum):
    """What a number is for; the values are part of the stream: changing one changes every picture."""

    LABEL_DROP = 1
    MASK_RATIO = 2
    MASK = 3
    TOKEN = 4
    CHOICE = 5
    ORDER = 6
    SHUFFLED = 7


def _signed(word: int) -> int:
    """The int64 with the lowest 64 bits of a word."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


_STEP = _signed(0x9E3779B97F4A7C15)  # 2^64 / golden ratio
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's is arithmetic, so the copies of the sign bit are masked away."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: a bijection of 64-bit words; each input bit flips half of the output's."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def uniform(seeds: Int64[Tensor, " b"], purpose: Purpose, counters: Int64[Tensor, "#b m"]) -> Float64[Tensor, "b m"]:
    """Numbers in the open interval (0, 1), odd multiples of 2^-53; equal on every device.

    Args:
        seeds: one per sample, any int64.
        purpose: numbers for different purposes are unrelated.
        counters: which numbers of each sample's stream, one row for all samples or one for each.
    """
    streams = _mix(_mix(seeds) + _signed(int(purpose) * _STEP))[:, None]  # (b, 1)
    words = _mix(streams + counters * _STEP)
    return (_shift(words, 12).double() + 0.5) * 2.0**-52


def gumbel(seeds: Int64[Tensor, " b"], purpose: Purpose, counters: Int64[Tensor, "#b m"]) -> Float64[Tensor, "b m"]:
    """Standard Gumbel noise, -log(-log u) of the same numbers."""
    return -torch.log(-torch.log(uniform(seeds, purpose, counters)))
