"""Lookup-free quantization: one bit per channel, with an entropy term that keeps all codes in use."""

from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from tokcli import distributed
from tokcli.errors import TokError
from tokcli.quantizers.quantizer import Quantized, Quantizer, mean_square, straight_through

LARGEST = 30  # bits: indices are counted per code
JOINT = 12  # bits: a distribution over their combinations is held for every feature


class LFQ(Quantizer):
    """Yu et al., MAGVIT-v2, arXiv 2310.05737, section 3.1; weights and temperature are Open-MAGVIT2's (arXiv 2409.04410).

    Differs from its code: by default the entropy of the mean code distribution is that of independent bits, an upper bound which
    costs n d instead of n 2^d (Zhao et al., arXiv 2406.07548, section 3.2), and the mean runs over the images of all ranks.

    Args:
        code_dim: bits of a code, 1 to 30; codes are in {-1, 1}^d.
        commitment: weight of the MSE of features to their (constant) codes.
        entropy: weight of the entropy term: mean entropy of each feature's bits, minus entropy of their mean.
        temperature: temperature of the soft assignment to codes, the softmax of -|z - c|^2 / temperature.
        joint_bits: bits whose mean distribution is taken jointly, in groups of so many: 1 to 12, of code_dim at most. With 1, codes whose bits
            are all equal look well used; with code_dim the entropy is that of the codes, as in MAGVIT-v2, at n 2^joint_bits a group.
    """

    places: Tensor

    def __init__(
        self,
        *,
        code_dim: Annotated[int, Field(ge=1, le=LARGEST)],
        commitment: NonNegativeFloat = 0.25,
        entropy: NonNegativeFloat = 0.1,
        temperature: PositiveFloat = 0.01,
        joint_bits: Annotated[int, Field(ge=1, le=JOINT)] = 1,
    ) -> None:
        super().__init__(2**code_dim, code_dim)
        if joint_bits > code_dim:
            raise TokError(
                "quantizer.joint_bits",
                f"a code has {code_dim} bits",
                got=str(joint_bits),
                next=f"Set at most {code_dim}",
            )
        self.joint_bits = joint_bits
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
        mixed = [self._mixed(group) for group in p.split(self.joint_bits, dim=1)]
        # cut off where a combination never occurs: at 0 the logarithm's gradient would be no number
        return each + torch.stack([(mean * mean.clamp_min(1e-12).log()).sum() for mean in mixed]).sum()

    def _mixed(self, p: Float[Tensor, "m g"]) -> Float[Tensor, " combinations"]:
        """The mean over all ranks of the distribution over the combinations of some bits, each of which is 1 with probability p."""
        joint = p.new_ones(len(p), 1)
        for bit in p.unbind(1):
            joint = torch.cat([joint * (1 - bit)[:, None], joint * bit[:, None]], dim=1)
        return distributed.mean_over_ranks(joint.sum(0), len(p))
