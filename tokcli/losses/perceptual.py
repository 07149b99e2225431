"""Distances between images in the feature maps of a frozen classifier.

LPIPS (R. Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv
1801.03924): features of several layers, each pixel's vector normalised, squared differences, spatial mean.
With `vgg16` the channels are weighted by the heads that the paper learned; with any other network they are
not, and layers are averaged instead of summed.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokcli.artifact.weights import load_tensors
from tokcli.errors import TokError
from tokcli.pretrained import build_network, usual
from tokcli.pretrained.published_weights import package_folder
from tokcli.recipe.sections import Layers, Side

# Beside the squared norm: the package lpips and our metric have its root, 1e-10, beside the norm. Inside the root, so that the
# gradient of an all-zero feature is not NaN.
TINY = 1e-20


def lpips_file() -> Path:
    """The learned weights of VGG16's channels, version 0.1, in the package `lpips`.

    Raises:
        TokError: the package is not installed.
    """
    folder = package_folder("lpips")
    file = folder / "weights" / "v0.1" / "vgg.pth" if folder else None
    if file is None or not file.is_file():
        raise TokError("perceptual loss vgg16", "LPIPS's linear heads not found", next="Run pip install lpips")
    return file


def lpips_heads(names: list[str], known: tuple[str, ...]) -> list[Tensor]:
    """The learned channel weights (1, c, 1, 1) of VGG16's layers; raises as `lpips_file`."""
    heads = load_tensors(lpips_file())
    return [heads[f"lin{known.index(name)}.model.1.weight"] for name in names]


class PerceptualLoss(nn.Module):
    """A distance that tolerates what people overlook and punishes blur; 0 for equal images.

    Args:
        weights: the network's file; "random" for tests and for the meta device; None: cache, package or hub.
        network: `squeezenet`, `efflite0`, `vgg16` (this one is LPIPS), or any other by name.
        layers: which maps are compared; None: the network's usual ones. VGG16's heads fit its own five only.
        image_size: pixels that both images are resized to; None: compared as they are.

    Raises:
        TokError: no such network or layer, no weights, or a file that does not fit.
    """

    def __init__(
        self,
        weights: Path | Literal["random"] | None = None,
        *,
        network: str = "squeezenet",
        layers: Layers | None = None,
        image_size: Side | None = None,
    ) -> None:
        super().__init__()
        flag = "--vgg-weights" if network == "vgg16" else None
        self.network = build_network(network, weights, role="perceptual loss", weights_flag=flag)
        self.layers = self.network.resolve(list(self.network.perceptual_layers) if layers is None else layers)
        self.image_size = image_size
        self.heads: list[str] = []
        if network == "vgg16":
            for name, head in zip(self.layers, lpips_heads(self.layers, self.network.layer_names), strict=True):
                self.heads.append(f"head_{name.replace('.', '_')}")
                self.register_buffer(self.heads[-1], head, persistent=False)

    @staticmethod
    def settled(name: str, keys: dict[str, Any]) -> dict[str, Any]:
        """With the network's own layers, where the recipe says no others."""
        return (
            keys if keys["layers"] else keys | {"layers": usual(keys["network"], "perceptual loss").perceptual_layers}
        )

    def train(self, mode: bool = True) -> "PerceptualLoss":
        """Stay in eval mode: a perceptual loss has nothing to learn and no dropout to wake."""
        return super().train(False)

    def _features(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c gh gw"]]:
        maps = self.network.maps(images, self.layers, size=self.image_size)
        return [m * (m.square().sum(1, keepdim=True) + TINY).rsqrt() for m in maps]

    def forward(self, prediction: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
        """The batch's mean distance, float32; images in [0, 1]; gradients flow to the prediction only."""
        with torch.no_grad():
            wanted = self._features(target)
        squares = [(p - w).square() for p, w in zip(self._features(prediction), wanted, strict=True)]
        if self.heads:
            weighted = [(s * self.get_buffer(h)).sum(1).mean() for s, h in zip(squares, self.heads, strict=True)]
            return torch.stack(weighted).sum()
        return torch.stack([s.sum(1).mean() for s in squares]).mean()
