"""How many tokens are masked, and which: MaskGIT's cosine schedule (arXiv 2202.04200, section 3.1)."""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from tokcli.errors import TokError
from tokcli.proposals.noise import Purpose, uniform


def cosine_counts(r: Float[Tensor, " b"], n: int) -> Int64[Tensor, " b"]:
    """Tokens to mask in training for r in [0, 1): ceil(cos(pi r / 2) n), 1 to n."""
    return (torch.cos(r * (math.pi / 2)) * n).ceil().long().clamp(1, n)


def decoding_counts(n: int, steps: int) -> list[int]:
    """Tokens still masked after each decoding step; strictly falling, the last is 0.

    floor(cos(pi t / 2T) n) after step t of T, clamped to 1..masked - 1 so that every step finds something.

    Raises:
        TokError: more steps than tokens.
    """
    if steps > n:
        raise TokError("sample.steps", f"more steps than the {n} tokens of an image", got=f"Got {steps}")
    counts, masked = [], n
    for t in range(1, steps):
        masked = max(1, min(masked - 1, math.floor(math.cos(math.pi * t / (2 * steps)) * n)))
        counts.append(masked)
    return [*counts, 0]


def random_mask(seeds: Int64[Tensor, " b"], counts: Int64[Tensor, " b"], n: int) -> Bool[Tensor, "b n"]:
    """True at `counts` positions of each row, chosen uniformly by the row's seed."""
    noise = uniform(seeds, Purpose.MASK, torch.arange(n, device=seeds.device)[None])
    largest = noise.sort(dim=1).values.gather(1, counts[:, None] - 1)
    return noise <= largest
