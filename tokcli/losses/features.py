"""The distance of feature distillation."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def cosine(predicted: Float[Tensor, "... d"], target: Float[Tensor, "... d"]) -> Float[Tensor, ""]:
    """Mean of 1 - cos over feature vectors, in [0, 2]; gradients flow to the prediction only.

    The objective of VQ-KD (BEiT v2, arXiv 2208.06366, equation 2, plus one). A zero vector counts as
    orthogonal to all.
    """
    # bf16 rounds cosines near 1 to steps of 1/256: compute in float32 also under autocast
    with torch.autocast(predicted.device.type, enabled=False):
        p = F.normalize(predicted.float(), dim=-1)
        t = F.normalize(target.detach().float(), dim=-1)
        return 1 - (p * t).sum(-1).mean()
