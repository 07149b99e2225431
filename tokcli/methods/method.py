"""What a method of training a tokenizer is, its recipe, and the teacher's features that it may learn from."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, UInt8
from pydantic import Field, model_validator
from torch import Tensor, nn

from tokcli import build
from tokcli.data.batches import Batch
from tokcli.data.sources import ImageSource
from tokcli.data.transforms import TRANSFORMS, Transform, unit
from tokcli.device import autocast
from tokcli.models import Tokenizer
from tokcli.pretrained.feature_cache import TeacherCache
from tokcli.pretrained.teacher import Teacher
from tokcli.recipe.sections import Data, Expects, MeasuredTrain, Optim, Recipe
from tokcli.training.adversary import Adversary, update
from tokcli.training.updater import Updater

Families = Mapping[str, Mapping[str, Callable[..., Any]]]
TRIED = 8  # images by which the time of features is reckoned


class TokenizerData(Data):
    """How images become training samples, and the size at which the trained tokenizer is used.

    Args:
        use_size: (tokenizers) side in pixels of the images that later commands tokenize; null: `size`.
    """

    use_size: int | None = Field(None, ge=1)


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
    targets: TeacherFeatures | None = None  # what it learns of a teacher
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
        """The tokenizer's name, such as `vqkd-clip`: the method, and its teacher where it has one."""
        teacher = getattr(recipe, "teacher", None)
        return f"{recipe.method}-{teacher.name.replace(':', '-').replace('/', '-')}" if teacher else str(recipe.method)

    def once(self, images: int) -> float:
        """Seconds that `begin` takes for so many images, reckoned from a few."""
        if self.targets and self.recipe.data.cache_features:
            return self.targets.seconds(images, self.recipe.data.size)
        return 0.0

    def begin(self, source: ImageSource, transform: Transform) -> None:
        """Prepare training on a data set: compute the teacher's features once where the recipe asks for it; all ranks call it."""
        if self.targets and self.recipe.data.cache_features:
            self.targets.fill(source, transform)

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
