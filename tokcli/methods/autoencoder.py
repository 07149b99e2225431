"""Tokenizers that reconstruct pixels: encoder, quantizer and pixel decoder trained together.

VQGAN (Esser et al., arXiv 2012.09841) and those that share its networks and losses: FSQ (arXiv 2309.15505), CVQ-VAE (arXiv
2307.15139), LlamaGen's tokenizer (arXiv 2406.06525). They differ in their recipes' quantizer and weights, not in code.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from tokcli import build
from tokcli.data.batches import Batch
from tokcli.data.sources import ImageSource
from tokcli.data.transforms import TRANSFORMS
from tokcli.errors import TokError
from tokcli.losses import LOSSES
from tokcli.measure.decoding import Judges, measure_decoder
from tokcli.measure.previews import decoder_preview
from tokcli.measure.tokenizing import measure_tokenizer
from tokcli.methods.method import Families, Method, PixelLoss, ReconstructingRecipe, TokenizerLoss
from tokcli.models import DECODERS, DISCRIMINATORS, ENCODERS
from tokcli.quantizers import QUANTIZERS
from tokcli.recipe.check import resolved
from tokcli.recipe.sections import GAN, Component, ReconstructedTrain
from tokcli.training.adversary import Adversary


class PixelRecipe(ReconstructingRecipe):
    """Recipe of the methods that reconstruct pixels: vqgan, fsq, cvq and llamagen.

    Args:
        loss: terms between images and reconstructions, each with its weight.
        gan: see `gan`; null: no discriminator.
        train: see `train`.
    """

    method: Literal["vqgan", "fsq", "cvq", "llamagen"]
    encoder: Component
    quantizer: Component
    decoder: Component
    loss: dict[str, dict[str, Any]] = Field(min_length=1)
    gan: GAN | None = None
    train: ReconstructedTrain


class Pixels(Method):
    """Encoder, quantizer and pixel decoder under reconstruction, perceptual and adversarial losses; see `Method`."""

    recipe_model = PixelRecipe
    families: ClassVar[Families] = {
        "data.transform": TRANSFORMS,
        "encoder": ENCODERS,
        "quantizer": QUANTIZERS,
        "decoder": DECODERS,
        "loss": LOSSES,
        "gan.discriminator": DISCRIMINATORS,
    }

    def __init__(self, recipe: PixelRecipe, weights: Mapping[str, Path] | None, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.tokenizer = build.build_tokenizer(resolved(recipe), None, weights).to(device)
        if not self.tokenizer.quantizer.discrete:
            raise TokError(
                "quantizer none",
                f"{recipe.method} needs codes",
                next="Choose another quantizer; vqkd can do without one, as a yardstick",
            )
        self.losses = build.build_losses(recipe.loss, weights, device)
        self.adversary = Adversary(recipe.gan, recipe.train, device, recipe.seed, weights) if recipe.gan else None
        self.objective = TokenizerLoss(self.tokenizer, PixelLoss(self.losses, self.adversary))
        self.judges = Judges.of(recipe.train.eval_extractors, weights, device)

    def inputs(self, batch: Batch, images: Float[Tensor, "b 3 s s"]) -> list[Tensor]:
        """The images."""
        return [images]

    def trial(self, images: Float[Tensor, "b 3 s s"]) -> list[Tensor]:
        """The images."""
        return [images]

    def measure(self, source: ImageSource, size: int) -> dict[str, float]:
        """Codebook use, and how close reconstructions are."""
        found = measure_tokenizer(self.tokenizer, source, self.device, size=size)
        decoder = self.tokenizer.pixel_decoder
        assert decoder is not None
        found |= measure_decoder(self.tokenizer, decoder, source, self.device, size=size, judges=self.judges)
        return found

    def preview(self, source: ImageSource, size: int, path: Path) -> None:
        """Images and their reconstructions."""
        assert self.tokenizer.pixel_decoder is not None
        decoder_preview(self.tokenizer, self.tokenizer.pixel_decoder, source, self.device, size, path)

    def facts(self) -> dict[str, Any]:
        """The losses; the artifact holds its pixel decoder."""
        recipe = resolved(self.recipe)
        return {"has_decoder": True, "teacher": None, "losses": recipe["loss"], "gan": recipe["gan"]}

    def modules(self) -> dict[str, nn.Module | None]:
        """The tokenizer's parts, the losses' networks and the discriminator."""
        return super().modules() | {name: loss for name, _, loss in self.losses}
