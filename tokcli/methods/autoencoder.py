"""Tokenizers that reconstruct pixels: encoder, quantizer and pixel decoder trained together.

VQGAN (Esser et al., arXiv 2012.09841) and those that share its networks and losses: FSQ (arXiv 2309.15505), CVQ-VAE (arXiv
2307.15139), LlamaGen's tokenizer (arXiv 2406.06525). They differ in their recipes' quantizer and weights, not in code.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from tokcli.data.transforms import TRANSFORMS
from tokcli.errors import TokError
from tokcli.losses import LOSSES
from tokcli.methods.method import Families
from tokcli.methods.reconstruction import Reconstructing, ReconstructingRecipe
from tokcli.models import DECODERS, DISCRIMINATORS, ENCODERS
from tokcli.quantizers import QUANTIZERS
from tokcli.recipe.sections import GAN, Component, ReconstructedTrain


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
    reconstructed: ClassVar[Any] = (0.0, 1.0)


class Pixels(Reconstructing):
    """Encoder, quantizer and pixel decoder under reconstruction, perceptual and adversarial losses; see `Reconstructing`."""

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
        super().__init__(recipe, weights, device)
        if not self.tokenizer.quantizer.discrete:
            raise TokError(
                "quantizer none",
                f"{recipe.method} needs codes",
                next="Choose another quantizer; vqkd can do without one, as a yardstick",
            )
