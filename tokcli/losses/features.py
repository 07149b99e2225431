"""Distances between predicted features and a teacher's: the cosine of feature distillation, and those that recipes name."""

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tokcli.recipe.sections import Share


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


class Alignment(Protocol):
    """What an alignment offers; gradients flow to the prediction only."""

    def __call__(self, predicted: Float[Tensor, "b n d"], target: Float[Tensor, "b n d"]) -> Float[Tensor, ""]:
        """A scalar in float32."""
        ...


class Cosine(nn.Module):
    """Mean of 1 - cos over patches, the loss of VQ-KD."""

    def forward(self, predicted: Float[Tensor, "b n d"], target: Float[Tensor, "b n d"]) -> Float[Tensor, ""]:
        """In [0, 2]."""
        return cosine(predicted, target)


class Margin(nn.Module):
    """The two terms of VA-VAE (arXiv 2501.01423, section 3.2), added: they stop pulling where the student is near enough.

    Mean over patches of relu(1 - cosine_margin - cos(p, t)), and mean over pairs of an image's patches of
    relu(|cos(p_i, p_j) - cos(t_i, t_j)| - distance_margin).

    Args:
        cosine_margin: what the cosine may lack of 1.
        distance_margin: what the similarity of two patches may differ by.
    """

    def __init__(self, *, cosine_margin: Share = 0.5, distance_margin: Share = 0.25) -> None:
        super().__init__()
        self.cosine_margin, self.distance_margin = cosine_margin, distance_margin

    def forward(self, predicted: Float[Tensor, "b n d"], target: Float[Tensor, "b n d"]) -> Float[Tensor, ""]:
        """At least 0."""
        with torch.autocast(predicted.device.type, enabled=False):
            p, t = F.normalize(predicted.float(), dim=-1), F.normalize(target.detach().float(), dim=-1)
            near = F.relu(1 - self.cosine_margin - (p * t).sum(-1)).mean()
            alike = (p @ p.mT - t @ t.mT).abs()
            return near + F.relu(alike - self.distance_margin).mean()


ALIGNMENTS: dict[str, type[Cosine] | type[Margin]] = {"cosine": Cosine, "margin": Margin}
