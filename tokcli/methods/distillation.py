"""VQ-KD: a student encoder and a codebook learn to reconstruct a teacher's features.

BEiT v2 (arXiv 2208.06366, section 2.1), as used by "Image Understanding Makes for A Good Tokenizer for Image Generation"
(arXiv 2411.04406): student from scratch, l2-normalised codes learnt by EMA, one block of feature decoder, cosine loss.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, UInt8
from pydantic import model_validator
from torch import Tensor, nn

from tokcli import build
from tokcli.data.batches import Batch
from tokcli.data.sources import ImageSource
from tokcli.data.transforms import TRANSFORMS, Transform, filled
from tokcli.device import autocast
from tokcli.errors import TokError
from tokcli.measure.previews import tokenizer_preview
from tokcli.measure.tokenizing import measure_tokenizer
from tokcli.methods.method import Families, Method, ReconstructingRecipe, TokenizerData, TokenizerLoss
from tokcli.models import ENCODERS
from tokcli.pretrained.feature_cache import TeacherCache
from tokcli.pretrained.teacher import TEACHERS, Teacher, build_teacher, teacher_weights
from tokcli.quantizers import QUANTIZERS, Quantizer
from tokcli.recipe.check import resolved
from tokcli.recipe.sections import Component

TRIED = 8  # images by which the time of features is reckoned


class FeatureData(TokenizerData):
    """How images become training samples, where a teacher reads them too.

    Args:
        cache_features: (methods with a teacher) compute its features once an image and keep them; only where the transform is
            not random.
    """

    cache_features: bool = False

    @model_validator(mode="after")
    def _check(self) -> "FeatureData":
        known = self.transform.name in TRANSFORMS  # an unknown one is a fault of its own
        if known and self.cache_features and not build.build_transform(self).deterministic:
            raise ValueError("cache_features needs a transform that is not random (such as center-crop without flip)")
        return self


class DistillationRecipe(ReconstructingRecipe):
    """Recipe of VQ-KD.

    Args:
        learn_from_blank: whether the codebook also learns from patches of one flat colour; if not, they take codes that it
            learned from the others.
    """

    method: Literal["vqkd"]
    data: FeatureData
    teacher: Component
    encoder: Component
    quantizer: Component
    decoder: Component
    learn_from_blank: bool = True


class TeacherFeatures:
    """A teacher's features of training batches on one grid, read from a cache where the recipe asks for one."""

    def __init__(self, teacher: Teacher, grid: tuple[int, int], precision: str, device: torch.device) -> None:
        self.teacher, self.grid, self.precision, self.device = teacher, grid, precision, device
        self.cache: TeacherCache | None = None
        self._read: Tensor | None = None

    def fill(self, source: ImageSource, transform: Transform) -> None:
        """Compute the features of a whole data set once."""
        self.cache = TeacherCache(self.teacher, source, transform, self.grid, self.precision)
        self.cache.fill(self.device)

    def of(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b n d"]:
        """Features of images in [0, 1]."""
        with autocast(self.device, self.precision):
            return self.teacher(images, self.grid)

    def seconds(self, images: int, size: int) -> float:
        """How long the features of so many images of `size` pixels take, reckoned from a few."""
        some = torch.rand(TRIED, 3, size, size, device=self.device)
        self.of(some).cpu()  # picks kernels
        started = time.perf_counter()
        self.of(some).cpu()
        return (time.perf_counter() - started) / TRIED * images

    def trial(self, images: Float[Tensor, "b 3 s s"], cached: bool) -> Float[Tensor, "b n d"]:
        """Features of images that belong to no data set; with `cached` computed at the first call alone, as if read after it."""
        if self._read is None or len(self._read) != len(images) or not cached:
            self._read = self.of(images)
        return self._read

    def __call__(self, batch: Batch, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b n d"]:
        """Features of a batch."""
        return self.cache.rows(batch.indices).to(self.device) if self.cache else self.of(images)


def teacher_facts(teacher: Teacher) -> dict[str, Any]:
    """What a manifest says of a teacher."""
    return {
        "name": teacher.name,
        "sha256": teacher.sha256,
        "image_size": teacher.image_size,
        "layers": teacher.layers,
        "norm": teacher.norm,
        "projection": teacher.projection,
        "feature_dim": teacher.feature_dim,
    }


def short(teacher: str) -> str:
    """A teacher's name as part of a folder's name."""
    return teacher.replace(":", "-").replace("/", "-")


def check_blank(learn_from_blank: bool, quantizer: Quantizer) -> None:
    """Refuse to leave blank patches out of a codebook that learns by gradients, which cannot."""
    if not learn_from_blank and getattr(quantizer, "learning", "") == "gradient":
        raise TokError(
            "learn_from_blank",
            "false needs a codebook of running means",
            got="quantizer.learning: gradient",
            next="Set learn_from_blank to true, or quantizer.learning to ema",
        )


def filled_patches(method: Method, images: UInt8[Tensor, "b 3 s s"]) -> Bool[Tensor, "b n"] | None:
    """The patches of more than one colour, where the recipe's `learn_from_blank` is false; None: all patches count."""
    if method.recipe.learn_from_blank:
        return None
    return filled(images, method.tokenizer.grid(images.shape[-1])).to(method.device)


class Distillation(Method):
    """Student, codebook and feature decoder under a frozen teacher; see `Method`."""

    recipe_model = DistillationRecipe
    families: ClassVar[Families] = {
        "data.transform": TRANSFORMS,
        "teacher": TEACHERS,
        "encoder": ENCODERS,
        "quantizer": QUANTIZERS,
        "decoder": build.FEATURE_DECODERS,
    }

    def __init__(self, recipe: DistillationRecipe, weights: Mapping[str, Path] | None, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        file = teacher_weights(weights, recipe.teacher.name)
        self.teacher = build_teacher(recipe.teacher.name, recipe.teacher.keys, file).to(device)
        self.tokenizer = build.build_tokenizer(resolved(recipe), self.teacher.feature_dim, weights).to(device)
        check_blank(recipe.learn_from_blank, self.tokenizer.quantizer)
        self.objective = TokenizerLoss(self.tokenizer)
        grid = self.tokenizer.grid(recipe.data.size)
        self.targets = TeacherFeatures(self.teacher, grid, recipe.train.precision, device)

    @staticmethod
    def label(recipe: DistillationRecipe) -> str:
        """The method and its teacher."""
        return f"{recipe.method}-{short(recipe.teacher.name)}"

    def once(self, images: int) -> float:
        """Seconds that the teacher's features take where they are kept."""
        return self.targets.seconds(images, self.recipe.data.size) if self.recipe.data.cache_features else 0.0

    def begin(self, source: ImageSource, transform: Transform) -> None:
        """Compute the teacher's features once where the recipe asks for it."""
        if self.recipe.data.cache_features:
            self.targets.fill(source, transform)

    def inputs(self, batch: Batch, images: Float[Tensor, "b 3 s s"]) -> list[Tensor]:
        """Images, the teacher's features of them, and the patches that the codebook learns from."""
        counted = self.counted(batch.images)
        return [images, self.targets(batch, images), *([] if counted is None else [counted])]

    def counted(self, images: UInt8[Tensor, "b 3 s s"]) -> Bool[Tensor, "b n"] | None:
        """The patches of more than one colour, where the recipe leaves out the others."""
        return filled_patches(self, images)

    def trial(self, images: Float[Tensor, "b 3 s s"]) -> list[Tensor]:
        """The same for images of no data set."""
        return [images, self.targets.trial(images, self.recipe.data.cache_features)]

    def measure(self, source: ImageSource, size: int) -> dict[str, float]:
        """Codebook use and feature loss."""
        return measure_tokenizer(self.tokenizer, source, self.device, size=size, teacher=self.teacher)

    def preview(self, source: ImageSource, size: int, path: Path) -> None:
        """Images, the teacher's features, and what the codes keep of them."""
        tokenizer_preview(self.tokenizer, source, self.device, size, self.teacher, path)

    def facts(self) -> dict[str, Any]:
        """The teacher; there is no pixel decoder."""
        return {"has_decoder": False, "teacher": teacher_facts(self.teacher)}

    def modules(self) -> dict[str, nn.Module | None]:
        """The tokenizer's parts and the teacher."""
        return super().modules() | {"teacher": self.teacher}
