"""How a codebook is used: usage, perplexity, entropy, share of the commonest code; all from code counts."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokcli.errors import TokError


def count_codes(indices: Int[Tensor, "..."], codebook_size: int) -> Int[Tensor, " k"]:
    """How often each code occurs; counts of several batches add up.

    Raises:
        TokError: an index lies outside [0, codebook_size).
    """
    flat = indices.reshape(-1).to(torch.int64)
    if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < codebook_size:
        raise TokError(
            "indices",
            f"outside the codebook's [0, {codebook_size})",
            got=f"from {int(flat.min())} to {int(flat.max())}",
            next="Use the tokenizer that made them",
        )
    return torch.bincount(flat, minlength=codebook_size)


def _shares(counts: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
    total = int(counts.sum())
    if total == 0:
        raise TokError("codebook", "no tokens were counted", next="Give images or tokens to count")
    return counts.to(torch.float64) / total


def _entropy(counts: Int[Tensor, " k"]) -> float:
    """In nats; 0 log 0 is 0."""
    return float(-torch.special.xlogy(p := _shares(counts), p).sum())


def codebook_usage(counts: Int[Tensor, " k"]) -> float:
    """Share of codes used at least once, in [0, 1].

    It grows with the tokens counted: report `counts.sum()` beside it.

    Raises:
        TokError: nothing was counted.
    """
    return float((_shares(counts) > 0).to(torch.float64).mean())


def codebook_perplexity(counts: Int[Tensor, " k"]) -> float:
    """exp(entropy in nats) of the code frequencies, in [1, k]; k when all codes are equally frequent.

    Raises:
        TokError: nothing was counted.
    """
    return math.exp(_entropy(counts))


def entropy_bits(counts: Int[Tensor, " k"]) -> float:
    """Entropy of the code frequencies in bits a token, in [0, log2 k].

    Raises:
        TokError: nothing was counted.
    """
    return _entropy(counts) / math.log(2)


def top_code_share(counts: Int[Tensor, " k"]) -> float:
    """Share of all tokens that are the commonest code, in [1/k, 1].

    Raises:
        TokError: nothing was counted.
    """
    return float(_shares(counts).max())
