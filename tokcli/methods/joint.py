"""Joint tokenizers: one training that reconstructs a teacher's features and pixels through the same codes.

The road of VFMTok (arXiv 2507.08441) and IDEAL: a student, or a pretrained encoder with a learned projection to narrow codes, a
feature decoder and a pixel decoder. With `objective.pixels: 0` it is VQ-KD, with `objective.features: 0` VQGAN. A pixel tokenizer
whose codes are aligned to a teacher is the same with `feature_decoder: {name: linear}` (VA-VAE, arXiv 2501.01423).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from tokcli.build import FEATURE_DECODERS
from tokcli.data.transforms import TRANSFORMS
from tokcli.errors import TokError
from tokcli.losses import ALIGNMENTS, LOSSES
from tokcli.methods.method import Families, FeatureData
from tokcli.methods.reconstruction import Reconstructing, ReconstructingRecipe
from tokcli.models import DECODERS, DISCRIMINATORS, ENCODERS
from tokcli.pretrained.teacher import TEACHERS
from tokcli.quantizers import QUANTIZERS
from tokcli.recipe.sections import GAN, Component, ReconstructedTrain, Section


class Objective(Section):
    """How much each of the two reconstructions weighs.

    Args:
        features: weight of the distance to the teacher's features; 0: no teacher and no feature decoder.
        pixels: weight of all terms of pixels together; 0: no pixel decoder.
    """

    features: float = Field(1.0, ge=0)
    pixels: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "Objective":
        if not self.features and not self.pixels:
            raise ValueError("features and pixels cannot both be 0")
        return self


class JointRecipe(ReconstructingRecipe):
    """Recipe of joint tokenizers.

    Args:
        objective: see `objective`.
        alignment: distance between predicted features and the teacher's.
        feature_decoder: the network that turns codes into features.
        loss: terms between images and reconstructions, each with its weight.
        gan: see `gan`; null: no discriminator.
        learn_from_blank: whether the codebook also learns from patches of one flat colour; see `vqkd`.
        train: see `train`.
    """

    method: Literal["joint"]
    data: FeatureData
    teacher: Component
    encoder: Component
    quantizer: Component
    objective: Objective = Objective(features=1.0, pixels=1.0)
    alignment: Component = Component(name="cosine")
    feature_decoder: Component
    decoder: Component
    loss: dict[str, dict[str, Any]] = Field(min_length=1)
    gan: GAN | None = None
    learn_from_blank: bool = True
    train: ReconstructedTrain

    @property
    def reconstructed(self) -> tuple[float, float]:  # type: ignore[override]
        """As the objective says."""
        return self.objective.features, self.objective.pixels


class Joint(Reconstructing):
    """Encoder, codebook, feature decoder and pixel decoder, trained together; see `Reconstructing`."""

    recipe_model = JointRecipe
    families: ClassVar[Families] = {
        "data.transform": TRANSFORMS,
        "teacher": TEACHERS,
        "encoder": ENCODERS,
        "quantizer": QUANTIZERS,
        "alignment": ALIGNMENTS,
        "feature_decoder": FEATURE_DECODERS,
        "decoder": DECODERS,
        "loss": LOSSES,
        "gan.discriminator": DISCRIMINATORS,
    }

    def __init__(self, recipe: JointRecipe, weights: Mapping[str, Path] | None, device: torch.device) -> None:
        if not recipe.objective.pixels and (judges := recipe.train.eval_extractors):
            how = "Leave it out, or set objective.pixels over 0"
            raise TokError(
                "train.eval_extractors", "nothing makes pixels that they could see", got=str(judges), next=how
            )
        super().__init__(recipe, weights, device)

    @staticmethod
    def label(recipe: JointRecipe) -> str:
        """The method, and its teacher where features are learned."""
        return Reconstructing.label(recipe) if recipe.objective.features else recipe.method
