"""What a method of training a tokenizer is, and what trainings minimise that reconstruct pixels, a teacher's features, or both."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, UInt8
from pydantic import Field
from torch import Tensor, nn

from tokcli.data.batches import Batch
from tokcli.data.sources import ImageSource
from tokcli.data.transforms import TRANSFORMS, Transform, unit
from tokcli.device import autocast
from tokcli.losses import cosine
from tokcli.losses.features import Alignment
from tokcli.models import ConvDecoder, MaskGITDecoder, Tokenizer, ViTDecoder
from tokcli.recipe.sections import Data, Expects, MeasuredTrain, Optim, Perturb, Recipe
from tokcli.training.adversary import Adversary, update
from tokcli.training.updater import Updater

Families = Mapping[str, Mapping[str, Callable[..., Any]]]


class TokenizerData(Data):
    """How images become training samples, and the size at which the trained tokenizer is used.

    Args:
        use_size: (tokenizers) side in pixels of the images that later commands tokenize; null: `size`.
    """

    use_size: int | None = Field(None, ge=1)


class TokenizerRecipe(Recipe):
    """What recipes of stage tokenizer share, whatever their method.

    Args:
        method: how the tokenizer learns.
        data: see `data`.
        encoder: the network that turns images into features.
        quantizer: what turns features into codes.
        decoder: the network that turns codes into features or images.
        teacher: the frozen network whose features are learned.
        optim: see `optim`.
        train: see `train`.
        expects: see `expects`.
    """

    stage: Literal["tokenizer"]
    method: str
    data: TokenizerData
    optim: Optim
    train: MeasuredTrain
    expects: Expects = Expects()


class ReconstructingRecipe(TokenizerRecipe):
    """What recipes share whose decoder is trained with the tokenizer.

    Args:
        perturb: see `perturb`; null: tokens stay as they are.
    """

    perturb: Perturb | None = None


class Method(ABC):
    """A way to learn a tokenizer; its constructor builds the networks.

    Args:
        recipe: of the class `recipe_model`.
        weights: files given by flags, by network ("teacher", "vgg"); None: random ones, for plans.
        device: where the networks are; "meta" for parameter counts.
    """

    recipe_model: ClassVar[type[TokenizerRecipe]]
    families: ClassVar[Families] = {"data.transform": TRANSFORMS}
    live: ClassVar[tuple[str, ...]] = ("loss", "codebook_usage", "codebook_perplexity")  # beside the progress bar

    recipe: Any
    device: torch.device
    tokenizer: Tokenizer
    objective: nn.Module  # forward(*inputs) -> terms; see `Updater`
    adversary: Adversary | None = None

    @abstractmethod
    def __init__(self, recipe: Any, weights: Mapping[str, Path] | None, device: torch.device) -> None: ...

    @staticmethod
    def settled(recipe: Any) -> Any:
        """The recipe with what it leaves out and other keys decide, so that it is recorded as a value."""
        return recipe

    @staticmethod
    def label(recipe: Any) -> str:
        """The tokenizer's name, such as `vqkd-clip`."""
        return str(recipe.method)

    def once(self, images: int) -> float:
        """Seconds that `begin` takes for so many images, reckoned from a few."""
        return 0.0

    def begin(self, source: ImageSource, transform: Transform) -> None:  # noqa: B027  most have nothing to prepare
        """Prepare training on a data set; all ranks call it."""

    @abstractmethod
    def inputs(self, batch: Batch, images: Float[Tensor, "b 3 s s"]) -> list[Tensor]:
        """What the objective's forward takes for a batch; images in [0, 1] on the device."""

    @abstractmethod
    def trial(self, images: Float[Tensor, "b 3 s s"]) -> list[Tensor]:
        """`inputs` of images that belong to no data set, for the time of a step; cached features count as read."""

    @torch.no_grad()
    def initialise(self, batches: Iterator[Batch]) -> None:
        """Start the codebook, from the features of the next batch; all ranks call it, each with its part."""
        batch = next(batches)
        images = unit(batch.images, self.device)
        with autocast(self.device, self.recipe.train.precision):
            features = self.tokenizer.encoder(images)
        self.tokenizer.quantizer.initialise(features.float(), self.counted(batch.images))

    def counted(self, images: UInt8[Tensor, "b 3 s s"]) -> Bool[Tensor, "b n"] | None:
        """Which patches the codebook's running means learn from; None: all."""
        return None

    def update(self, updater: Updater, step: int, inputs: list[Tensor], images: Tensor) -> dict[str, Tensor]:
        """One update of everything that learns; see `adversary.update`."""
        return update(updater, self.adversary, step, inputs, images)

    @abstractmethod
    def measure(self, source: ImageSource, size: int) -> dict[str, float]:
        """What the tokenizer does on held-out images at `size` pixels; it is put into eval mode meanwhile."""

    @abstractmethod
    def preview(self, source: ImageSource, size: int, path: Path) -> None:
        """A sheet of images and what becomes of them, as a PNG; called by the main rank."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """For the manifest: `teacher`, `losses`, `has_decoder` and what else the method knows."""

    def modules(self) -> dict[str, nn.Module | None]:
        """Networks by name, for parameter counts."""
        found: dict[str, nn.Module | None] = dict(self.tokenizer.named_children())
        if self.adversary is not None:
            found["discriminator"] = self.adversary.discriminator
        return {name.replace("_", " "): part for name, part in found.items()}


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
