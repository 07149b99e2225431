"""What every tokenizer method is to `tok train-tokenizer`: networks, an objective, and what it can show and measure."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, UInt8
from pydantic import Field
from torch import Tensor, nn

from tokcli.data.batches import Batch
from tokcli.data.pixels import unit
from tokcli.data.sources import ImageSource
from tokcli.data.transforms import TRANSFORMS, Transform
from tokcli.device.precision import autocast
from tokcli.models import Tokenizer
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
