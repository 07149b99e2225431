"""The objective of pixels: weighted reconstruction losses and, where the recipe has a GAN, the adversary's term."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokcli.models import ConvDecoder, MaskGITDecoder, ViTDecoder
from tokcli.training.adversary import Adversary


class PixelLoss:
    """Terms between decoded and real images; no module, so that frozen networks are no part of the trained state.

    Args:
        losses: (name, weight, frozen module) of each reconstruction term.
        adversary: the discriminator's side; None: without a GAN.
    """

    def __init__(self, losses: list[tuple[str, float, nn.Module]], adversary: Adversary | None) -> None:
        self.losses, self.adversary = tuple(losses), adversary

    def __call__(
        self, decoded: Float[Tensor, "b 3 h w"], images: Float[Tensor, "b 3 h w"], last_layer: Tensor
    ) -> dict[str, Tensor]:
        """Terms by name, each with its weight applied; "decoded" are the images, for the discriminator.

        Args:
            decoded: in about [0, 1], with a gradient.
            images: in [0, 1].
            last_layer: the weight of the decoder's last layer.
        """
        terms = {name: weight * loss(decoded, images) for name, weight, loss in self.losses}
        total = torch.stack(list(terms.values())).sum()
        if self.adversary is not None:
            told = self.adversary.term(decoded, total, last_layer)
            terms |= told
            total = total + told["gan"] if told else total
        return {"loss": total, **terms, "decoded": decoded.detach()}


class Reconstruction(nn.Module):
    """What `tok train-decoder` minimises: a decoder of frozen codes under a `PixelLoss`."""

    decoder: ConvDecoder | MaskGITDecoder | ViTDecoder

    def __init__(self, decoder: ConvDecoder | MaskGITDecoder | ViTDecoder, loss: PixelLoss) -> None:
        super().__init__()
        self.decoder, self.loss = decoder, loss

    def forward(self, codes: Float[Tensor, "b n d"], images: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        """Terms of a batch; images in [0, 1]."""
        return self.loss(self.decoder(codes), images, self.decoder.last_layer)
