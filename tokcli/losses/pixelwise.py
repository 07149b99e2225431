"""Pixel-wise distances, of the range of values that published weights are for.

Images come in [0, 1]. VQGAN (arXiv 2012.09841), LlamaGen (arXiv 2406.06525) and the networks that share their losses read
pixels as x / 127.5 - 1: their weights mean differences on [-1, 1], where L1 is twice as large as on [0, 1] and L2 four times.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

WIDTHS = {"signed": 2.0, "unit": 1.0}  # of the range, by its name


class PixelDistance(nn.Module):
    """What pixel-wise distances share: on which range of values they are taken.

    Args:
        range: "signed": [-1, 1], as published weights are meant; "unit": [0, 1], which repeats recipes that were resolved without this key.
    """

    def __init__(self, *, range: Literal["signed", "unit"] = "signed") -> None:
        super().__init__()
        self.width = WIDTHS[range]

    def difference(
        self, prediction: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b 3 h w"]:
        """Prediction minus target on the range, in float32, of images in [0, 1]; gradients flow to the prediction only."""
        return self.width * (prediction.float() - target.detach().float())


class L1Loss(PixelDistance):
    """Mean absolute difference of pixel values."""

    def forward(self, prediction: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
        """A float32 scalar, in [0, 2] of images in [0, 1]; gradients flow to the prediction only."""
        return self.difference(prediction, target).abs().mean()


class L2Loss(PixelDistance):
    """Mean squared difference of pixel values."""

    def forward(self, prediction: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
        """A float32 scalar, in [0, 4] of images in [0, 1]; gradients flow to the prediction only."""
        return self.difference(prediction, target).square().mean()
