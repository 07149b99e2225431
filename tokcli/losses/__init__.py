"""Losses by name: `loss(prediction, target) -> scalar`, images in [0, 1]."""

from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from tokcli.losses.features import ALIGNMENTS, cosine
from tokcli.losses.perceptual import PerceptualLoss
from tokcli.losses.pixelwise import L1Loss, L2Loss

__all__ = ["ALIGNMENTS", "LOSSES", "L1Loss", "L2Loss", "Loss", "PerceptualLoss", "cosine"]


class Loss(Protocol):
    """What a loss offers; the caller weighs it."""

    def __call__(self, prediction: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
        """A scalar in float32; gradients flow to the prediction only."""
        ...


LOSSES: dict[str, type[L1Loss | L2Loss | PerceptualLoss]] = {"l1": L1Loss, "l2": L2Loss, "perceptual": PerceptualLoss}
