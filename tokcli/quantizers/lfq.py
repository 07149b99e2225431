"""Lookup-free quantization: one bit per channel, with an entropy term that keeps all codes in use."""

from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from tokcli import distributed
from tokcli.quantizers.quantizer import Quantized, Quantizer, mean_square, straight_through

LARGEST = 30  # bits: indices are counted per code


class LFQ(Quantizer):
    """Yu et al., MAGVIT-v2, arXiv 2310.05737, section 3.1; weights and temperature are Open-MAGVIT2's (arXiv 2409.04410).

    Differs from its code: the entropy of the mean code distribution is that of independent bits, an upper bound which costs
    n d instead of n 2^d (Zhao et al., arXiv 2406.07548, section 3.2), and the mean runs over the images of all ranks.

    Args:
        code_dim: bits of a code, 1 to 30; codes are in {-1, 1}^d.
        commitment: weight of the MSE of features to their (constant) codes.
        entropy: weight of the entropy term: mean entropy of each feature's bits, minus entropy of their mean.
        temperature: temperature of the soft assignment to codes, the softmax of -|z - c|^2 / temperature.
    """

    places: Tensor

    def __init__(
        self,
        *,
        code_dim: Annotated[int, Field(ge=1, le=LARGEST)],
        commitment: NonNegativeFloat = 0.25,
        entropy: NonNegativeFloat = 0.1,
        temperature: PositiveFloat = 0.01,
    ) -> None:
        super().__init__(2**code_dim, code_dim)
        self.commitment, self.entropy, self.temperature = commitment, entropy, temperature
        self.register_buffer("places", 2 ** torch.arange(code_dim), persistent=False)

    def quantize(self, z: Float[Tensor, "b n d"]) -> Quantized:
        """Signs; terms `commitment` and, in train mode, `entropy`."""
        indices = ((z > 0) * self.places).sum(-1)
        q = self.codes(indices)
        losses = {"commitment": self.commitment * mean_square(z, q)}
        if self.training and self.entropy:
            losses["entropy"] = self.entropy * self._entropy(z.flatten(0, 1))
        return Quantized(straight_through(z, q), indices, losses)

    def codes(self, indices: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape d"]:
        """The code of each index in [0, k), channels -1 or 1; the first channel is the lowest bit."""
        return (2 * (indices.long().unsqueeze(-1) // self.places % 2) - 1).float()

    def _entropy(self, z: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
        # softmax of -|z - c|^2 / temperature over codes is a product over bits of sigmoid(4 z / temperature)
        logits = 4 * z / self.temperature
        p = torch.sigmoid(logits)
        each = (p * F.softplus(-logits) + (1 - p) * F.softplus(logits)).sum() / max(len(z), 1)
        mean = distributed.mean_over_ranks(p.sum(0), len(z))
        both = torch.stack([mean, 1 - mean])
        # cut off where a bit is always the same: at 0 the logarithm's gradient would be no number
        return each + (both * both.clamp_min(1e-12).log()).sum()
