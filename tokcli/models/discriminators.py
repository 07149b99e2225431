"""Discriminators: images to logits, high where they look real.

A discriminator has no state besides its weights (GroupNorm, not the published BatchNorm, whose parameters are as many), so
that it is the same function of an image whatever else is in the batch and on however many ranks it is trained.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from tokcli.errors import TokError
from tokcli.models.conv import group_norm, training_layout


@runtime_checkable
class Discriminator(Protocol):
    """What adversarial training needs of a discriminator."""

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b m"]:
        """Logits of an image's parts; images in about [0, 1]."""
        ...


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al., arXiv 1611.07004, appendix 6.1.2), with GroupNorm: a logit per overlapping patch.

    At width 64, depth 2 has 663,361 parameters and sees patches of 34 px, depth 3 has 2,765,633 and sees 70 px.

    Args:
        depth: stages that halve the image.
        width: channels of the first stage; doubled by each one after it, up to eight times.

    Raises:
        TokError: depth below 1.
    """

    def __init__(self, *, depth: int = 3, width: int = 64) -> None:
        super().__init__()
        if depth < 1:
            raise TokError("gan.discriminator.depth", "must be at least 1", got=str(depth))
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        before = width
        for stage in range(1, depth + 1):
            after = width * min(2**stage, 8)
            stride = 2 if stage < depth else 1
            layers += [nn.Conv2d(before, after, 4, stride, padding=1, bias=False), group_norm(after), nn.LeakyReLU(0.2)]
            before = after
        self.layers = nn.Sequential(*layers, nn.Conv2d(before, 1, 4, padding=1))
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b m"]:
        """Logits of patches; images in about [0, 1]."""
        return self.layers(training_layout(2 * images - 1)).flatten(1)


DISCRIMINATORS: dict[str, type[PatchDiscriminator]] = {"patch": PatchDiscriminator}
