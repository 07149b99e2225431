"""What trainings minimise that reconstruct: pixels, a teacher's features, or both, through codes that are frozen or learned too."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tokcli.losses import cosine
from tokcli.losses.alignment import Alignment
from tokcli.models import ConvDecoder, MaskGITDecoder, Tokenizer, ViTDecoder
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


class TokenizerLoss(nn.Module):
    """What the methods minimise whose decoders are trained with the tokenizer: its reconstructions, and the quantizer's own terms.

    Args:
        tokenizer: with a feature decoder, a pixel decoder, or both.
        pixels: distance of images; needed where there is a pixel decoder.
        alignment: distance of features.
        feature_weight, pixel_weight: of the two distances.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        pixels: PixelLoss | None = None,
        alignment: Alignment = cosine,
        *,
        feature_weight: float = 1.0,
        pixel_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.tokenizer, self.pixels, self.alignment = tokenizer, pixels, alignment
        self.feature_weight, self.pixel_weight = feature_weight, pixel_weight

    def forward(
        self,
        images: Float[Tensor, "b 3 s s"],
        targets: Float[Tensor, "b n d"] | None = None,
        counted: Bool[Tensor, "b n"] | None = None,
    ) -> dict[str, Tensor]:
        """Terms of a batch: images in [0, 1], the teacher's features, the patches that the codebook learns from."""
        quantized = self.tokenizer(images, counted)
        terms: dict[str, Tensor] = {}
        total: list[Tensor] = []
        if self.tokenizer.feature_decoder is not None:
            assert targets is not None
            predicted = self.tokenizer.feature_decoder(quantized.z_q)
            terms["feature_loss"] = self.alignment(predicted.float(), targets)
            total.append(self.feature_weight * terms["feature_loss"])
        if (decoder := self.tokenizer.pixel_decoder) is not None:
            assert self.pixels is not None
            found = self.pixels(decoder(quantized.z_q), images, decoder.last_layer)
            total.append(self.pixel_weight * found.pop("loss"))
            terms |= found
        return {"loss": torch.stack([*total, *quantized.losses.values()]).sum(), **terms, **quantized.losses}
