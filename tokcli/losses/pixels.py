"""Pixel-wise distances."""

from jaxtyping import Float
from torch import Tensor, nn


class L1Loss(nn.Module):
    """Mean absolute difference of pixel values."""

    def forward(self, prediction: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
        """A float32 scalar; gradients flow to the prediction only."""
        return (prediction.float() - target.detach().float()).abs().mean()


class L2Loss(nn.Module):
    """Mean squared difference of pixel values."""

    def forward(self, prediction: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
        """A float32 scalar; gradients flow to the prediction only."""
        return (prediction.float() - target.detach().float()).square().mean()
