"""Tokens of training images, for networks that learn from a frozen tokenizer's codes."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tokcli.data.batches import Batch
from tokcli.models import Tokenizer

KEPT = 1 << 24  # indices of training images in memory: 64 MiB


def fits(count: int, tokens: int) -> bool:
    """Whether the indices of so many images, each of so many tokens, are few enough to be kept in memory."""
    return count * tokens <= KEPT


class Encoding:
    """Indices of training images; those of an image that always looks the same are computed once.

    Args:
        tokenizer: frozen.
        count: how many images keep their indices; 0 where a random transform makes each view another.
        tokens: of an image. Where all take more than `KEPT`, none are kept.
    """

    def __init__(self, tokenizer: Tokenizer, count: int, tokens: int) -> None:
        self.tokenizer = tokenizer
        kept = count > 0 and fits(count, tokens)
        self.known = torch.full((count, tokens), -1, dtype=torch.int32) if kept else None

    def __call__(self, batch: Batch, images: Float[Tensor, "b 3 s s"]) -> Int64[Tensor, "b n"]:
        """The indices of a batch; images in [0, 1] on the tokenizer's device."""
        if self.known is None:
            return self.tokenizer.encode(images)
        if (self.known[batch.indices] < 0).any():
            self.known[batch.indices] = self.tokenizer.encode(images).int().cpu()
        return self.known[batch.indices].long().to(images.device)
