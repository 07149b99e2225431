"""Cluster: a frozen teacher is the encoder, and its features are clustered into the codebook (arXiv 2411.04406, section 3).

Codes start from spherical mini-batch k-means and then follow the features by gradient, with CVQ-VAE's anchors for those
that nothing falls to. The artifact holds the teacher, so that it reads images by itself.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from tokcli import build
from tokcli.data.batches import Batch
from tokcli.data.sources import ImageSource
from tokcli.data.transforms import TRANSFORMS, unit
from tokcli.device import on_meta
from tokcli.errors import TokError
from tokcli.measure.previews import tokenizer_preview
from tokcli.measure.tokenizing import measure_tokenizer
from tokcli.methods.method import Families, FeatureData, Method, TeacherFeatures, TokenizerRecipe, teacher_facts
from tokcli.models import TeacherEncoder
from tokcli.pretrained.teacher import TEACHERS, teacher_weights
from tokcli.progress import passing
from tokcli.quantizers import Quantizer
from tokcli.quantizers.vq import VQ
from tokcli.recipe.check import leaving_out, resolved
from tokcli.recipe.sections import Component


class ClusterRecipe(TokenizerRecipe):
    """Recipe of Cluster.

    Args:
        grid: rows and columns of tokens, to which the teacher's maps are resized; null: those of its largest map.
        init_batches: batches whose features start the codebook by k-means.
    """

    method: Literal["cluster"]
    data: FeatureData
    teacher: Component
    quantizer: Component
    grid: tuple[PositiveInt, PositiveInt] | None = None
    init_batches: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _check(self) -> "ClusterRecipe":
        if self.init_batches > 1 and self.quantizer.keys.get("init", "kmeans") != "kmeans":
            raise ValueError(
                "init_batches goes with quantizer.init: kmeans."
                f" Got {self.init_batches} and {self.quantizer.keys['init']}. --set init_batches=1"
            )
        return self


class ClusterLoss(nn.Module):
    """The quantizer's own terms on a teacher's features."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, features: Float[Tensor, "b n d"]) -> dict[str, Tensor]:
        """Terms of a batch of features."""
        terms = self.quantizer(features).losses
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}


class Clustering(Method):
    """A codebook over a frozen teacher's features; see `Method`."""

    recipe_model = ClusterRecipe
    targets: TeacherFeatures
    families: ClassVar[Families] = {
        "data.transform": TRANSFORMS,
        "teacher": TEACHERS,
        "quantizer": {"vq": leaving_out(VQ, "code_dim")},
    }

    def __init__(self, recipe: ClusterRecipe, weights: Mapping[str, Path] | None, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        file = teacher_weights(weights, recipe.teacher.name)
        self.tokenizer = build.build_clustering(resolved(recipe), file).to(device)
        if not any(p.requires_grad for p in self.tokenizer.quantizer.parameters()):
            raise TokError("quantizer", "nothing to train by gradient", next="Set quantizer.learning to gradient")
        encoder = self.tokenizer.encoder
        assert isinstance(encoder, TeacherEncoder)
        self.teacher = encoder.teacher
        self.objective = ClusterLoss(self.tokenizer.quantizer)
        grid = self.tokenizer.grid(recipe.data.size)
        self.targets = TeacherFeatures(self.teacher, grid, recipe.train.precision, device)

    @staticmethod
    def settled(recipe: ClusterRecipe) -> ClusterRecipe:
        """With the width of the codes, which is that of the teacher's features."""
        with on_meta():
            width = build.build_clustering(resolved(recipe), "random").quantizer.code_dim
        codes = recipe.quantizer.model_copy(update={"code_dim": width})
        return recipe.model_copy(update={"quantizer": codes})

    def initialise(self, batches: Iterator[Batch]) -> None:
        """k-means of the first batch, then mini-batch k-means over `init_batches` batches."""
        quantizer = self.tokenizer.quantizer
        assert isinstance(quantizer, VQ)
        seen = torch.zeros(quantizer.codebook_size, dtype=torch.int64, device=self.device)
        first = islice(batches, self.recipe.init_batches)
        for batch in passing(first, self.recipe.init_batches, unit="batch", desc="k-means of batches"):
            features = self.targets(batch, unit(batch.images, self.device))
            quantizer.initialise(features)
            quantizer.refine(features, seen)

    def inputs(self, batch: Batch, images: Float[Tensor, "b 3 s s"]) -> list[Tensor]:
        """The teacher's features."""
        return [self.targets(batch, images)]

    def trial(self, images: Float[Tensor, "b 3 s s"]) -> list[Tensor]:
        """The teacher's features."""
        return [self.targets.trial(images, self.recipe.data.cache_features)]

    def measure(self, source: ImageSource, size: int) -> dict[str, float]:
        """Codebook use, and the cosine distance of features to their codes."""
        return measure_tokenizer(self.tokenizer, source, self.device, size=size, teacher=self.teacher)

    def preview(self, source: ImageSource, size: int, path: Path) -> None:
        """Images, the teacher's features, and what the codes keep of them."""
        tokenizer_preview(self.tokenizer, source, self.device, size, self.teacher, path)

    def facts(self) -> dict[str, Any]:
        """The teacher, which is the encoder."""
        return {"has_decoder": False, "teacher": teacher_facts(self.teacher)}
