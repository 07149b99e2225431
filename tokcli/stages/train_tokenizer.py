"""`tok train-tokenizer`: a student encoder and a codebook learn to reconstruct a teacher's features (VQ-KD).

BEiT v2 (arXiv 2208.06366, section 2.1), as used by "Image Understanding Makes for A Good Tokenizer for Image Generation"
(arXiv 2411.04406): student from scratch, l2-normalised codes learnt by EMA, one block of feature decoder, cosine loss.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from tokcli import assemble, distributed, loop, measure, plan, workspace
from tokcli.artifact import Artifact, open_artifact
from tokcli.data import ImageSource, open_source, sibling
from tokcli.data.batches import Batch, TrainBatches
from tokcli.data.transforms import TRANSFORMS
from tokcli.losses import cosine
from tokcli.models import ENCODERS, Tokenizer
from tokcli.optim import Updater, autocast
from tokcli.quantizers import QUANTIZERS
from tokcli.recipe import resolved, to_yaml
from tokcli.schema import Component, Data, Expects, Optim, Recipe, Train
from tokcli.teachers import TEACHERS, Teacher, build_teacher, teacher_class
from tokcli.teachers.cache import FeatureCache
from tokcli.weights import save_tensors, write_text
from tokcli.workspace import Options

log = logging.getLogger("tok")
FAMILIES: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "data.transform": TRANSFORMS,
    "teacher": TEACHERS,
    "encoder": ENCODERS,
    "quantizer": QUANTIZERS,
    "decoder": assemble.FEATURE_DECODERS,
}


class TokenizerData(Data):
    """How images become training samples, and the size at which the trained tokenizer is used."""

    use_size: int | None = Field(None, ge=1)  # None: the training size
    cache_features: bool = False  # compute the teacher's features once; only where the transform is not random

    @model_validator(mode="after")
    def _check(self) -> "TokenizerData":
        known = self.transform.name in TRANSFORMS  # an unknown one is a fault of its own
        if known and self.cache_features and not assemble.build_transform(self).deterministic:
            raise ValueError("cache_features needs a transform that is not random (such as center-crop without flip)")
        return self


class TokenizerRecipe(Recipe):
    """Recipe of stage tokenizer."""

    stage: Literal["tokenizer"]
    method: Literal["vqkd"]
    data: TokenizerData
    teacher: Component
    encoder: Component
    quantizer: Component
    decoder: Component
    optim: Optim
    train: Train
    expects: Expects = Expects()


class Distillation(nn.Module):
    """The training objective: cosine loss of the predicted features plus the quantizer's own terms."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Terms of a batch: images (b, 3, s, s) in [0, 1], the teacher's features (b, n, d)."""
        quantized = self.tokenizer(images)
        assert self.tokenizer.feature_decoder is not None
        predicted = self.tokenizer.feature_decoder(quantized.z_q)
        terms = {"feature_loss": cosine(predicted.float(), targets), **quantized.losses}
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}


def _resolve(name: str) -> Any:
    return teacher_class(name) if ":" in name else None


def main(options: Options, *, method: str, init: Path | None) -> Artifact | str:
    """Train a tokenizer; see `tok train-tokenizer --help`."""
    spec = workspace.data_spec(options)
    recipe = workspace.load_recipe(
        options, TokenizerRecipe, f"tokenizer-{method}", workspace.recipe_folder(spec), FAMILIES, _resolve
    )
    if options.dry_run:
        return _plan(options, recipe, spec)
    with workspace.session(options) as device:
        return _train(options, recipe, spec, init, device)


def _plan(options: Options, recipe: TokenizerRecipe, spec: str) -> str:
    with torch.device("meta"):
        teacher = build_teacher(recipe.teacher.name, recipe.teacher.keys, "random")
        tokenizer = assemble.build_tokenizer(resolved(recipe), teacher.feature_dim)
    modules: dict[str, Any] = {
        "encoder": tokenizer.encoder,
        "quantizer": tokenizer.quantizer,
        "feature decoder": tokenizer.feature_decoder,
        "teacher": teacher,
    }
    seconds = ""
    if options.data is not None:
        with workspace.session(options) as device:
            seconds = plan.step_time(recipe.train, device, _trial(recipe, device))
    return plan.describe(options, recipe, modules, reads={"data": spec}, writes="tokenizer", seconds=seconds)


def _trial(recipe: TokenizerRecipe, device: torch.device) -> Callable[[int], Callable[[], Any]]:
    """Training steps on random images, for their time: all that a step does but reading; cached features count as read."""
    teacher = build_teacher(recipe.teacher.name, recipe.teacher.keys, "random").to(device)
    tokenizer = assemble.build_tokenizer(resolved(recipe), teacher.feature_dim).to(device)
    size = recipe.data.size
    grid = tokenizer.grid(size)
    updater = Updater(Distillation(tokenizer), recipe.optim, recipe.train, device)
    tokenizer.quantizer.initialised.fill_(True)

    def step(samples: int) -> Callable[[], Any]:
        images = torch.rand(samples, 3, size, size, device=device)

        def features() -> Tensor:
            with autocast(device, recipe.train.precision):
                return teacher(images, grid)  # type: ignore[no-any-return]

        read = features()

        def update() -> None:
            updater.update(0, [images, read if recipe.data.cache_features else features()])
            tokenizer.quantizer.after_step(0)

        return update

    return step


def _train(options: Options, recipe: TokenizerRecipe, spec: str, init: Path | None, device: torch.device) -> Artifact:
    size = recipe.data.size
    source = open_source(spec, size=size, labels=options.labels)
    inputs = {"data": {"id": source.id, "path": source.name}}
    start = open_artifact(init, "--init", ["tokenizer"]) if init else None
    if start:
        inputs["init"] = workspace.reference(start)
    name = f"{recipe.method}-{recipe.teacher.name.replace(':', '-').replace('/', '-')}"
    draft = workspace.begin(options, "tokenizer", name, resolved(recipe), inputs, device)
    if isinstance(draft, Artifact):
        return draft

    teacher = build_teacher(recipe.teacher.name, recipe.teacher.keys, options.weights.get("teacher")).to(device)
    tokenizer = assemble.build_tokenizer(resolved(recipe), teacher.feature_dim).to(device)
    if start:
        tokenizer.load_exported(assemble.load_tensors(start.file(assemble.WEIGHTS)), str(start.path))
    grid = tokenizer.grid(size)
    measure.check_expected(
        recipe.expects, codebook_size=tokenizer.quantizer.codebook_size, code_dim=tokenizer.quantizer.code_dim,
        grid=grid, classes=len(source.classes),
    )  # fmt: skip
    transform = assemble.build_transform(recipe.data)
    targets = _Targets(teacher, source, transform, grid, recipe, device)
    updater = Updater(Distillation(tokenizer), recipe.optim, recipe.train, device)
    batches = TrainBatches(
        source, transform, batch_size=recipe.train.batch_size, seed=recipe.seed, workers=recipe.data.workers,
        max_bad=recipe.data.max_bad, rank=distributed.rank(), world=distributed.world_size(),
    )  # fmt: skip

    def step(number: int, batch: Batch) -> dict[str, Any]:
        images = batch.images.to(device, non_blocking=True).float() / 255
        quantizer = tokenizer.quantizer
        if not quantizer.initialised and number >= quantizer.init_after:
            with torch.no_grad(), autocast(device, recipe.train.precision):
                features = tokenizer.encoder(images)
            quantizer.initialise(features.float())
        terms = updater.update(number, [images, targets(batch, images)])
        quantizer.after_step(number)
        due = (number + 1) % recipe.train.log_every == 0 or number + 1 == recipe.train.steps
        return terms | (quantizer.health() if due else {})

    held_out = _held_out(source, options, size)

    def evaluate(_: int) -> dict[str, float]:
        with updater.weights():
            return measure.tokenizer(tokenizer, held_out or source, device, size=size, teacher=teacher)

    distributed_parts: dict[str, loop.Stateful] = {"updater": updater}
    seconds = loop.run(
        draft.path, recipe.train, recipe.seed, batches=batches.from_step, step=step, parts=distributed_parts,
        evaluate=evaluate, epoch=batches.epoch, live=("loss", "codebook_usage", "codebook_perplexity"),
    )  # fmt: skip
    measured = {}
    with updater.weights():
        if distributed.is_main():
            save_tensors(draft.path / assemble.WEIGHTS, tokenizer.export_state())
            write_text(draft.path / "recipe.yaml", to_yaml(recipe))
        use_size = recipe.data.use_size or size
        if held_out is not None:
            measured = measure.tokenizer(tokenizer, held_out, device, size=use_size, teacher=teacher)
        if distributed.is_main():
            measure.tokenizer_preview(
                tokenizer, held_out or source, device, use_size, teacher, draft.path / "preview.png"
            )
    if not distributed.is_main():
        return Artifact(draft.path, draft.manifest)
    facts = {
        "method": recipe.method,
        "name": name,
        "codebook_size": tokenizer.quantizer.codebook_size,
        "code_dim": tokenizer.quantizer.code_dim,
        "train_size": size,
        "use_size": use_size,
        "grid": list(tokenizer.grid(use_size)),
        "has_decoder": False,
        "classes": source.classes,
        "transform": transform.describe(),
        "teacher": {
            "name": recipe.teacher.name, "sha256": teacher.sha256, "image_size": teacher.image_size,
            "layers": teacher.layers, "feature_dim": teacher.feature_dim,
        },
        "parameters": {name: plan.parameter_count(part) for name, part in tokenizer.named_children()},
    }  # fmt: skip
    return loop.complete(draft, facts, measured, batches.skipped, seconds)


def _held_out(source: ImageSource, options: Options, size: int) -> ImageSource | None:
    spec = sibling(source.name, "val")
    if spec is None:
        log.info("no held-out images beside %s: metrics are left to `tok eval --data`", source.name)
        return None
    return open_source(spec, size=size)


class _Targets:
    """The teacher's features of a batch, on the student's grid; read from the cache where the recipe asks for one."""

    def __init__(
        self, teacher: Teacher, source: ImageSource, transform: Any, grid: tuple[int, int], recipe: TokenizerRecipe,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.teacher, self.grid, self.device, self.precision = teacher, grid, device, recipe.train.precision
        self.cache: FeatureCache | None = None
        if recipe.data.cache_features:
            self.cache = FeatureCache(teacher, source, transform, grid)
            self.cache.fill(device, self.precision)

    def __call__(self, batch: Batch, images: Tensor) -> Tensor:
        if self.cache:
            return self.cache.rows(batch.indices).to(self.device)
        with autocast(self.device, self.precision):
            return self.teacher(images, self.grid)
