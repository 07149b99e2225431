"""ViT-B/16 supervised on ImageNet-1k (arXiv 2010.11929) with torchvision's weights."""

from typing import Any

import torch
from torch import Tensor, nn

from tokcli.pretrained.network import Network, resampled
from tokcli.pretrained.published_weights import Source


class SupervisedViT(Network):
    """Torchvision's `vit_b_16`, IMAGENET1K_V1; layers "blocks.0" to "blocks.11"; `pooled`: the class token.

    Torchvision's forward accepts 224 pixels only; here positions are interpolated at other sizes.
    """

    multiple = 16
    has_final_norm = True
    layer_names = tuple(f"blocks.{i}" for i in range(12))
    default_layers = ("blocks.11",)
    perceptual_layers = layer_names[1::2]
    body: Any

    def __init__(self, name: str = "vit") -> None:
        from torchvision.models import vit_b_16

        body = vit_b_16(weights=None)
        body.heads = nn.Identity()  # type: ignore[assignment]
        super().__init__(name, body)

    @classmethod
    def source(cls, name: str) -> Source:
        """Torchvision's file."""
        return Source(url="https://download.pytorch.org/models/vit_b_16-c867db91.pth")

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Leave the classifier out."""
        return {k: t for k, t in state.items() if not k.startswith("heads.")}

    def _tokens(self, x: Tensor, last: int) -> list[Tensor]:
        """Outputs of blocks 0 to `last`, class token first."""
        encoder, patches = self.body.encoder, self.body.conv_proj(x)
        positions = resampled(encoder.pos_embedding, (14, 14), (patches.shape[2], patches.shape[3]))
        x = torch.cat([self.body.class_token.expand(len(x), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
        x, outputs = x + positions, []
        for block in encoder.layers[: last + 1]:
            x = block(x)
            outputs.append(x)
        return outputs

    def _maps(self, x: Tensor, names: list[str], norm: bool) -> dict[str, Tensor]:
        numbers = {name: self.layer_names.index(name) for name in names}
        outputs, grid = self._tokens(x, max(numbers.values())), (x.shape[2] // 16, x.shape[3] // 16)
        tokens = {name: self.body.encoder.ln(outputs[n]) if norm else outputs[n] for name, n in numbers.items()}
        # the class token is the first one; the last patch stays
        return {name: t[:, 1:].transpose(1, 2).unflatten(2, grid) for name, t in tokens.items()}

    def _pooled(self, x: Tensor) -> Tensor:
        return self.body.encoder.ln(self._tokens(x, 11)[-1])[:, 0]
