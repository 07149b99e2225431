"""Finite scalar quantization: each channel is rounded to a few levels; nothing is learnt and nothing can die."""

import math
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from tokcli.quantizers.quantizer import Quantized, Quantizer, straight_through

Levels = Annotated[
    list[Annotated[int, Field(ge=3)]], Field(min_length=1)
]  # the paper's bounding function has no second level for 2
EPS = 1e-3  # keeps the outermost levels within reach of tanh


class FSQ(Quantizer):
    """Mentzer et al., arXiv 2309.15505, section 3 and appendix A.1; the shift is atanh, where its listing prints tan.

    A code's index is its levels read as digits, the first channel least significant. There are no loss terms.

    Args:
        levels: of each channel, at least 3 (LFQ has 2); code_dim is their number and codebook_size their product. The paper's for 1,000,
            4,375, 16,000 and 64,000 codes: [8, 5, 5, 5], [7, 5, 5, 5, 5], [8, 8, 8, 6, 5] (15,360), [8, 8, 8, 5, 5, 5].
    """

    sizes: Tensor
    places: Tensor
    reach: Tensor
    offset: Tensor
    shift: Tensor

    def __init__(self, *, levels: Levels) -> None:
        super().__init__(math.prod(levels), len(levels))
        sizes = torch.tensor(levels, device="cpu")
        half = (sizes - 1) * (1 - EPS) / 2
        offset = torch.where(sizes % 2 == 0, 0.5, 0.0)
        constants = {
            "sizes": sizes,
            "places": torch.tensor([math.prod(levels[:i]) for i in range(len(levels))], device="cpu"),
            "reach": half,
            "offset": offset,
            "shift": torch.atanh(offset / half),
        }
        for name, value in constants.items():
            self.register_buffer(name, value.to(self.initialised.device), persistent=False)

    def quantize(self, z: Float[Tensor, "b n d"]) -> Quantized:
        """Bound each channel, round it, and count in mixed radix."""
        bounded = torch.tanh(z + self.shift) * self.reach - self.offset
        rounded = bounded.round()
        middle = self.sizes // 2
        indices = ((rounded.long() + middle) * self.places).sum(-1)
        return Quantized(straight_through(bounded / middle, rounded / middle), indices, {})

    def codes(self, indices: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape d"]:
        """The code of each index in [0, k): levels in [-1, 1]."""
        middle = self.sizes // 2
        digits = indices.long().unsqueeze(-1) // self.places % self.sizes
        return (digits - middle).float() / middle
