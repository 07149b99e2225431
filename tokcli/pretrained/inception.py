"""The Inception-v3 of FID: TensorFlow's 2015-12-05 graph, from the blocks and weights that the package pytorch-fid publishes.

It differs from torchvision's in its 1008 classes and its pooling branches: averages leave the padding out,
and the last block takes the maximum, as the original graph does (arXiv 1706.08500 is measured with it).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tokcli.pretrained.network import Network
from tokcli.pretrained.published_weights import Source

POOLED, SPATIAL, LOGITS = 2048, 7 * 17 * 17, 1008  # widths of what it is judged by
BLOCKS = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")


def _body() -> nn.Module:
    """The network that `pytorch_fid.inception.fid_inception_v3` builds, without the weights that it would fetch."""
    from pytorch_fid.inception import FIDInceptionA, FIDInceptionC, FIDInceptionE_1, FIDInceptionE_2
    from torchvision.models import inception_v3

    body = inception_v3(weights=None, num_classes=LOGITS, aux_logits=False, init_weights=False)
    for name, width, pooled in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        setattr(body, f"Mixed_{name}", FIDInceptionA(width, pool_features=pooled))
    for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        setattr(body, f"Mixed_{name}", FIDInceptionC(768, channels_7x7=width))
    body.Mixed_7b, body.Mixed_7c = FIDInceptionE_1(1280), FIDInceptionE_2(2048)
    return body


class FIDInception(Network):
    """Layers "Mixed_5b" to "Mixed_7c"; `pooled` is the 2048-wide global average of FID; images bilinear to
    299 without antialiasing.

    sFID's spatial features are the first 7 channels of "Mixed_6d", 17 x 17 (ADM, arXiv 2105.05233).
    """

    judged_widths = (POOLED, SPATIAL, LOGITS)

    image_size = extractor_size = 299
    resize = "bilinear"
    channels_last = True
    block_name = "Mixed_{}"
    layer_names = tuple(f"Mixed_{b}" for b in BLOCKS)
    default_layers = ("Mixed_7c",)
    perceptual_layers = ("Mixed_5d", "Mixed_6e", "Mixed_7c")
    body: Any

    def __init__(self, name: str = "inception") -> None:
        super().__init__(name, _body(), mean=(0.5,) * 3, std=(0.5,) * 3)

    @classmethod
    def source(cls, name: str) -> Source:
        """The release of pytorch-fid."""
        from pytorch_fid.inception import FID_WEIGHTS_URL

        return Source(url=FID_WEIGHTS_URL)

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Files made before BatchNorm counted its batches lack a number that inference does not use."""
        counters = {k: t for k, t in self.body.state_dict().items() if k.endswith("num_batches_tracked")}
        return counters | state

    def _maps(self, x: Tensor, names: list[str], norm: bool) -> dict[str, Tensor]:
        b = self.body
        x = b.maxpool1(b.Conv2d_2b_3x3(b.Conv2d_2a_3x3(b.Conv2d_1a_3x3(x))))
        x = b.maxpool2(b.Conv2d_4a_3x3(b.Conv2d_3b_1x1(x)))
        found = {}
        for name in self.layer_names:
            x = found[name] = b.get_submodule(name)(x)
            if len(names) == len(found.keys() & set(names)):
                break
        return found

    def _pooled(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self._maps(x, ["Mixed_7c"], True)["Mixed_7c"], 1).flatten(1)

    def logits(self, x: Tensor) -> Tensor:
        """The 1008 logits of prepared images without the bias, as torch-fidelity scores them."""
        return F.linear(self._pooled(x), self.body.fc.weight)

    @torch.no_grad()
    def judged(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b 2048"], Float[Tensor, "b 2023"], Float[Tensor, "b 1008"]]:
        """Pooled features, spatial features and logits without bias, of images in [0, 1], in one pass."""
        maps = self._maps(self.prepare(images, self.extractor_size), ["Mixed_6d", "Mixed_7c"], True)
        pooled = F.adaptive_avg_pool2d(maps["Mixed_7c"], 1).flatten(1).float()
        return pooled, maps["Mixed_6d"][:, :7].flatten(1).float(), F.linear(pooled, self.body.fc.weight)
