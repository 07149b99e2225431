"""Two plain ImageNet classifiers: SqueezeNet 1.1 (arXiv 1602.07360) and VGG16 (arXiv 1409.1556)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokcli.pretrained.network import Network
from tokcli.pretrained.published_weights import Source


class _Sequential(Network):
    """Layers "features.N" are the outputs of modules of torchvision's `features`: of ReLUs and Fires only.

    ReLUs work in place, so that what precedes one cannot be handed out. `pooled` is the last map's mean.
    """

    block_name = "features.{}"
    channels_last = True
    body: Any

    def _maps(self, x: Tensor, names: list[str], norm: bool) -> dict[str, Tensor]:
        found = {}
        for i, module in enumerate(self.body.features):
            x = module(x)
            if f"features.{i}" in names:
                found[f"features.{i}"] = x
            if len(found) == len(set(names)):
                break
        return found

    def _pooled(self, x: Tensor) -> Tensor:
        last = self.layer_names[-1]
        return F.adaptive_avg_pool2d(self._maps(x, [last], True)[last], 1).flatten(1)


class SqueezeNet(_Sequential):
    """SqueezeNet 1.1 with weights converted from Caffe's: BGR in 0..255 minus the mean, which torchvision's
    are not.

    Layers: "features.1" (first ReLU, 64 wide, stride 2), then the Fire modules 3, 4, 6, 7, 9, 10, 11, 12 (512
    wide, stride 16). Torchvision's own weights have the same names but expect other inputs: give only what
    `scripts/fetch_embedded.py` made.
    """

    layer_names = tuple(f"features.{i}" for i in (1, 3, 4, 6, 7, 9, 10, 11, 12))
    default_layers = ("features.12",)
    perceptual_layers = tuple(f"features.{i}" for i in (1, 4, 7, 9, 10, 11, 12))

    def __init__(self, name: str = "squeezenet") -> None:
        from torchvision.models import squeezenet1_1

        # mean of BGR 0..255 as RGB in [0, 1]; `prepare` turns the channels round
        mean = (122.7 / 255, 116.7 / 255, 104.0 / 255)
        super().__init__(name, squeezenet1_1(weights=None), mean=mean, std=(1 / 255,) * 3)

    @classmethod
    def source(cls, name: str) -> Source:
        """The cache, filled by the script."""
        return Source(command="python scripts/fetch_embedded.py squeezenet")

    def prepare(self, images: Tensor, size: int | None = None) -> Tensor:
        """As every network's, with the channels in BGR order."""
        return super().prepare(images, size).flip(1).contiguous(memory_format=torch.channels_last)

    def logits(self, x: Tensor) -> Tensor:
        """ImageNet-1k logits of prepared images."""
        return self.body(x)


class VGG16(_Sequential):
    """VGG16 with torchvision's IMAGENET1K_V1; layers 3, 8, 15, 22, 29: the ReLUs before poolings."""

    layer_names = tuple(f"features.{i}" for i in (3, 8, 15, 22, 29))
    default_layers = ("features.29",)
    perceptual_layers = layer_names

    def __init__(self, name: str = "vgg16") -> None:
        from torchvision.models.vgg import cfgs, make_layers

        # without the classifier: 124 of 138 million parameters that no feature map needs
        super().__init__(name, nn.ModuleDict({"features": make_layers(cfgs["D"])}))

    @classmethod
    def source(cls, name: str) -> Source:
        """Torchvision's file."""
        return Source(url="https://download.pytorch.org/models/vgg16-397923af.pth")

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Leave the classifier out; a file of `features` alone may lack the prefix."""
        kept = {k: t for k, t in state.items() if not k.startswith("classifier.")}
        return {k if k.startswith("features.") else f"features.{k}": t for k, t in kept.items()}
