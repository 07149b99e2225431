"""Joint tokenizers: one training that reconstructs a teacher's features and pixels through the same codes.

The road of VFMTok (arXiv 2507.08441) and IDEAL: a student, or a pretrained encoder with a learned projection to narrow codes, a
feature decoder and a pixel decoder. With `objective.pixels: 0` it is VQ-KD, with `objective.features: 0` VQGAN. A pixel tokenizer
whose codes are aligned to a teacher is the same with `feature_decoder: {name: linear}` (VA-VAE, arXiv 2501.01423).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, UInt8
from pydantic import Field, model_validator
from torch import Tensor, nn

from tokcli import build
from tokcli.data.batches import Batch
from tokcli.data.sources import ImageSource
from tokcli.data.transforms import TRANSFORMS, Transform
from tokcli.errors import TokError
from tokcli.losses import ALIGNMENTS, LOSSES
from tokcli.measure.decoding import Judges, measure_decoder
from tokcli.measure.previews import decoder_preview, tokenizer_preview
from tokcli.measure.tokenizing import measure_tokenizer
from tokcli.methods.distillation import FeatureData, TeacherFeatures, check_blank, filled_patches, short, teacher_facts
from tokcli.methods.method import Families, Method, PixelLoss, ReconstructingRecipe, TokenizerLoss
from tokcli.models import DECODERS, DISCRIMINATORS, ENCODERS
from tokcli.pretrained.teacher import TEACHERS, build_teacher, teacher_weights
from tokcli.quantizers import QUANTIZERS
from tokcli.recipe.check import resolved
from tokcli.recipe.sections import GAN, Component, ReconstructedTrain, Section
from tokcli.training.adversary import Adversary


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


class Joint(Method):
    """Encoder, codebook, feature decoder and pixel decoder, trained together; see `Method`."""

    recipe_model = JointRecipe
    families: ClassVar[Families] = {
        "data.transform": TRANSFORMS,
        "teacher": TEACHERS,
        "encoder": ENCODERS,
        "quantizer": QUANTIZERS,
        "alignment": ALIGNMENTS,
        "feature_decoder": build.FEATURE_DECODERS,
        "decoder": DECODERS,
        "loss": LOSSES,
        "gan.discriminator": DISCRIMINATORS,
    }

    def __init__(self, recipe: JointRecipe, weights: Mapping[str, Path] | None, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        teacher = recipe.teacher
        file, learns = teacher_weights(weights, teacher.name), recipe.objective.features > 0
        self.teacher = build_teacher(teacher.name, teacher.keys, file).to(device) if learns else None
        width = self.teacher.feature_dim if self.teacher else None
        self.tokenizer = build.build_tokenizer(resolved(recipe), width, weights).to(device)
        check_blank(recipe.learn_from_blank, self.tokenizer.quantizer)
        grid, precision = self.tokenizer.grid(recipe.data.size), recipe.train.precision
        self.targets = TeacherFeatures(self.teacher, grid, precision, device) if self.teacher else None
        seen = recipe.objective.pixels > 0
        self.losses = build.build_losses(recipe.loss, weights, device) if seen else []
        if not seen and (judges := recipe.train.eval_extractors):
            how = "Leave it out, or set objective.pixels over 0"
            raise TokError(
                "train.eval_extractors", "nothing makes pixels that they could see", got=str(judges), next=how
            )
        self.judges = Judges.of(recipe.train.eval_extractors, weights, device)
        gan = recipe.gan if seen else None
        self.adversary = Adversary(gan, recipe.train, device, recipe.seed, weights) if gan else None
        alignment = build.component("alignment", ALIGNMENTS, recipe.alignment.model_dump())
        self.objective = TokenizerLoss(
            self.tokenizer,
            PixelLoss(self.losses, self.adversary),
            alignment,
            feature_weight=recipe.objective.features,
            pixel_weight=recipe.objective.pixels,
        )

    @staticmethod
    def label(recipe: JointRecipe) -> str:
        """The method and its teacher."""
        return f"joint-{short(recipe.teacher.name)}" if recipe.objective.features else "joint"

    def begin(self, source: ImageSource, transform: Transform) -> None:
        """Compute the teacher's features once where the recipe asks for it."""
        if self.recipe.data.cache_features and self.targets:
            self.targets.fill(source, transform)

    def counted(self, images: UInt8[Tensor, "b 3 s s"]) -> Bool[Tensor, "b n"] | None:
        """The patches of more than one colour, where the recipe leaves out the others."""
        return filled_patches(self, images)

    def inputs(self, batch: Batch, images: Float[Tensor, "b 3 s s"]) -> list[Tensor]:
        """Images, the teacher's features of them where they are learned, and the patches that the codebook learns from."""
        counted = self.counted(batch.images)
        targets = self.targets(batch, images) if self.targets else images.new_empty(len(images), 0, 0)
        return [images, targets, *([] if counted is None else [counted])]

    def trial(self, images: Float[Tensor, "b 3 s s"]) -> list[Tensor]:
        """The same for images of no data set."""
        return [images, *([self.targets.trial(images, self.recipe.data.cache_features)] if self.targets else [])]

    def measure(self, source: ImageSource, size: int) -> dict[str, float]:
        """Codebook use, feature loss, and how close reconstructions are."""
        found = measure_tokenizer(self.tokenizer, source, self.device, size=size, teacher=self.teacher)
        if (decoder := self.tokenizer.pixel_decoder) is not None:
            found |= measure_decoder(self.tokenizer, decoder, source, self.device, size=size, judges=self.judges)
        return found

    def preview(self, source: ImageSource, size: int, path: Path) -> None:
        """Images and their reconstructions; without a pixel decoder, the teacher's features and what the codes keep of them."""
        if (decoder := self.tokenizer.pixel_decoder) is not None:
            decoder_preview(self.tokenizer, decoder, source, self.device, size, path)
        else:
            assert self.teacher is not None
            tokenizer_preview(self.tokenizer, source, self.device, size, self.teacher, path)

    def facts(self) -> dict[str, Any]:
        """The teacher and the losses; whether the artifact holds a pixel decoder."""
        recipe = resolved(self.recipe)
        found: dict[str, Any] = {"has_decoder": self.tokenizer.pixel_decoder is not None}
        found["teacher"] = teacher_facts(self.teacher) if self.teacher else None
        if found["has_decoder"]:
            found |= {"losses": recipe["loss"], "gan": recipe["gan"]}
        return found

    def modules(self) -> dict[str, nn.Module | None]:
        """The tokenizer's parts, the teacher, the losses' networks and the discriminator."""
        teacher = {"teacher": self.teacher} if self.teacher else {}
        return super().modules() | teacher | {name: loss for name, _, loss in self.losses}
