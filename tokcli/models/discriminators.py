"""Discriminators: images to logits, high where they look real.

A discriminator has no state besides its weights (GroupNorm, not the published BatchNorm, whose parameters are as many), so
that it is the same function of an image whatever else is in the batch and on however many ranks it is trained.
"""

from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from tokcli.errors import TokError
from tokcli.models.conv import group_norm, training_layout
from tokcli.pretrained import build_network, usual
from tokcli.recipe.sections import Blocks, Layers


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
    """

    def __init__(self, *, depth: Blocks = 3, width: PositiveInt = 64) -> None:
        super().__init__()
        self.depth = depth
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
        """Logits of patches; images in about [0, 1].

        Raises:
            TokError: the images are too small for so many stages.
        """
        if min(images.shape[2:]) < 3 * 2**self.depth:
            got = f"{images.shape[2]}x{images.shape[3]} px"
            raise TokError(
                "gan.discriminator.depth",
                f"{self.depth} stages need images of {3 * 2**self.depth} px",
                got=got,
                next="Set gan.discriminator.depth lower, or data.size higher",
            )
        return self.layers(training_layout(2 * images - 1)).flatten(1)


class FeatureDiscriminator(nn.Module):
    """Small heads on the feature maps of a frozen pretrained network (Projected GANs, Sauer et al., arXiv 2111.01007).

    It knows from the start what images are made of, and so needs fewer of them; but what it was trained on leaks into what
    the decoder draws, and distances measured in the same network flatter it.

    Args:
        weights: the network's file; "random" for tests and for plans; None: cache, package or hub.
        network: the pretrained network, such as `squeezenet` or `efflite0`.
        layers: layers whose feature maps get a head; None: those of the network's perceptual loss.
        width: channels of each head.

    Raises:
        TokError: no such network or layer, or no weights.
    """

    def __init__(
        self,
        weights: Path | Literal["random"] | None = None,
        *,
        network: str = "squeezenet",
        layers: Layers | None = None,
        width: PositiveInt = 64,
    ) -> None:
        super().__init__()
        flag = "--vgg-weights" if network == "vgg16" else None
        frozen = build_network(network, weights, role="discriminator", weights_flag=flag).requires_grad_(False)
        self._network = (frozen,)  # in a tuple: no part of the trained state
        self.layers = frozen.resolve(list(frozen.perceptual_layers) if layers is None else layers)
        # one group: a deep map of a small image is a single place
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, width, 1),
                nn.GroupNorm(1, width),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, 1, 3, padding=1),
            )
            for channels, _, _ in frozen.shapes(frozen.image_size, [*self.layers])
        )

    @staticmethod
    def settled(name: str, keys: dict[str, Any]) -> dict[str, Any]:
        """With the network's own layers, where the recipe says no others."""
        return keys if keys["layers"] else keys | {"layers": usual(keys["network"], "discriminator").perceptual_layers}

    def _apply(self, fn: Any, recurse: bool = True) -> "FeatureDiscriminator":
        self._network[0]._apply(fn)  # the network goes where the heads go
        return super()._apply(fn, recurse)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b m"]:
        """Logits of all places of all layers; images in about [0, 1]."""
        maps = self._network[0].maps(images, self.layers)
        return torch.cat([head(m).flatten(1) for head, m in zip(self.heads, maps, strict=True)], dim=1)


DISCRIMINATORS: dict[str, type[PatchDiscriminator] | type[FeatureDiscriminator]] = {
    "patch": PatchDiscriminator,
    "features": FeatureDiscriminator,
}
