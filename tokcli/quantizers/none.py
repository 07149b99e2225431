"""No quantization: the yardstick "same network without quantizer", trained by the same stage and recipe.

It has no codes, so it is no tokenizer: `discrete` is False, its only index is 0, and `codes` refuses.
Whatever reads indices checks `discrete` first.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import PositiveInt
from torch import Tensor

from tokcli.errors import TokError
from tokcli.quantizers.quantizer import Quantized, Quantizer


class NoQuantizer(Quantizer):
    """No quantization: passes `z_e` through.

    Args:
        code_dim: width d of `z_e`.
        metric: "cosine" normalises features to unit length, as VQ does with the same key; "euclidean" leaves
            them.
    """

    discrete = False

    def __init__(self, *, code_dim: PositiveInt, metric: Literal["cosine", "euclidean"] = "cosine") -> None:
        super().__init__(1, code_dim)
        self.metric = metric

    def quantize(self, z: Float[Tensor, "b n d"]) -> Quantized:
        """The features themselves and index 0 everywhere."""
        z = F.normalize(z, dim=-1) if self.metric == "cosine" else z
        return Quantized(z, torch.zeros(z.shape[:2], dtype=torch.int64, device=z.device), {})

    def codes(self, indices: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape d"]:
        """Refuses.

        Raises:
            TokError: always.
        """
        raise TokError("quantizer none", "has no codes", next="Train a tokenizer with another quantizer")
