"""`tok train-tokenizer`: learn to turn images into tokens, by any of the methods of `tokcli.methods`."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tokcli import build, distributed, loading
from tokcli.artifact.opening import Artifact
from tokcli.artifact.plans import Plan
from tokcli.artifact.weights import load_tensors, save_tensors
from tokcli.command import compute, plan
from tokcli.command.data import data_spec, held_out_beside
from tokcli.command.inputs import check_expected, load_recipe, method_of, open_input, with_preset
from tokcli.command.options import Options
from tokcli.command.session import begin, reference, session
from tokcli.command.weight_files import check_weights, weights_inputs, weights_read
from tokcli.data.batches import Batch, TrainBatches
from tokcli.data.sources import ImageSource, open_source, padded
from tokcli.data.transforms import unit
from tokcli.device import on_meta
from tokcli.errors import TokError
from tokcli.files import write_text
from tokcli.methods import Method, TokenizerRecipe, method_class, resolve
from tokcli.methods.method import FeatureData
from tokcli.models import Tokenizer
from tokcli.quantizers import QUANTIZERS
from tokcli.quantizers.perturbing import Perturber
from tokcli.recipe.check import resolved
from tokcli.recipe.yaml import to_yaml
from tokcli.training import loop
from tokcli.training.optimizers import muon_matrices
from tokcli.training.state import complete
from tokcli.training.updater import Updater

log = logging.getLogger("tok")
USAGE_FLOOR = 0.5  # share of codes in use below which a run warns
QUICK = 3.0  # seconds: a slower step is not run for its time before a training
COLLAPSE = 0.1  # held-out perplexity over training's below which a run warns


def main(options: Options, *, method: str | None, init: Path | None) -> Artifact | Plan:
    """Train a tokenizer; see `tok train-tokenizer --help`."""
    spec = data_spec(options)
    options, source = with_preset(options, spec)
    chosen = method_of(options, method)
    kind = method_class(chosen)
    recipe = load_recipe(options, kind.recipe_model, f"tokenizer-{chosen}", kind.families, resolve)
    if source is not None:
        source.max_pixels = recipe.data.max_pixels
        _settle_cache(options, recipe, len(source))
    recipe = kind.settled(recipe)
    _check_perturb(recipe)
    check_weights(options, weights_read(resolved(recipe)))
    start = open_input(options, "--init", init, ["tokenizer"]) if init else None
    if options.dry_run:
        return _plan(options, kind, recipe, spec, source, start)
    with session(options) as device:
        return _train(options, kind, recipe, spec, source, start, device)


def _settle_cache(options: Options, recipe: TokenizerRecipe, images: int) -> None:
    """Where a preset was chosen: keep no features of images of which fewer are seen than there are."""
    seen = recipe.train.steps * recipe.train.batch_size
    if getattr(recipe.data, "cache_features", False) and "data.cache_features" not in options.sets and images > seen:
        log.info("recipe: data.cache_features=false, for %s of %s images are seen", f"{seen:,}", f"{images:,}")
        recipe.data.cache_features = False  # type: ignore[attr-defined]


def rehearse(
    kind: type[Method], recipe: TokenizerRecipe, classes: list[str] | None = None
) -> tuple[Method, dict[str, Any]]:
    """The networks of a settled recipe, without numbers, and the facts of the tokenizer; classes: None where nobody knows them.

    Raises:
        TokError: what training would refuse before its first step.
    """
    _check_perturb(recipe)
    with on_meta() as device:
        method = kind(recipe, None, device)
    muon_matrices(method.objective, recipe.optim)
    return method, _facts(kind, recipe, method, classes)


def _plan(
    options: Options,
    kind: type[Method],
    recipe: TokenizerRecipe,
    spec: str,
    source: ImageSource | None,
    start: Artifact | None,
) -> Plan:
    images = plan.find_training_images(options, spec, recipe.data, recipe.train.eval_images, source)
    method, facts = rehearse(kind, recipe, images.classes)
    if facts["teacher"]:
        facts["teacher"]["sha256"] = None  # no weights were read
    computed, activations = _compute(recipe, method, len(images.source) if images.source else None)

    def seconds() -> str:
        with session(options) as device:
            return plan.step_time(recipe.train, device, trial(kind(recipe, None, device), recipe, device))

    return plan.describe(
        options,
        recipe,
        method.modules(),
        reads={"data": spec} | ({"init": start} if start else {}),
        writes="tokenizer",
        facts=facts,
        inputs=_inputs(images.entry, start) | weights_inputs(resolved(recipe), options.weights, planned=True),
        compute=computed,
        activations=activations,
        seconds=seconds if options.data is not None and images.source is not None else str,
    )


def _compute(recipe: TokenizerRecipe, method: Method, images: int | None) -> tuple[compute.Compute, float]:
    """What the training computes, see `compute.training`; the method's networks are on the meta device."""
    cached = isinstance(recipe.data, FeatureData) and recipe.data.cache_features
    size, quantizer = recipe.data.size, method.tokenizer.quantizer
    with compute.quantizer_aside(quantizer, resolved(recipe)["quantizer"]):
        return compute.training(
            recipe.train,
            recipe.optim,
            method.objective,
            lambda: method.trial(torch.empty(compute.MICRO, 3, size, size)),
            gan=getattr(recipe, "gan", None),
            adversary=method.adversary,
            once="the teacher's features" if cached else "",
            images=images,
        )


def _inputs(data: dict[str, str], start: Artifact | None) -> dict[str, dict[str, str]]:
    return {"data": data} | ({"init": reference(start)} if start else {})


def _facts(kind: type[Method], recipe: TokenizerRecipe, method: Method, classes: list[str] | None) -> dict[str, Any]:
    """The facts of the tokenizer, before hours of training; classes: None where a plan does not know them.

    Raises:
        TokError: the network cannot take images of `use_size`, or what the recipe expects is not so.
    """
    size, tokenizer = recipe.data.size, method.tokenizer
    use_size = recipe.data.use_size or size
    grid, quantizer = tokenizer.grid(use_size), tokenizer.quantizer
    expected = {"codebook_size": quantizer.codebook_size, "code_dim": quantizer.code_dim, "grid": tokenizer.grid(size)}
    expected |= {} if classes is None else {"classes": len(classes)}
    check_expected(recipe.expects, **expected)
    return {
        "method": recipe.method,
        "name": kind.label(recipe),
        "codebook_size": quantizer.codebook_size,
        "code_dim": quantizer.code_dim,
        "train_size": size,
        "use_size": use_size,
        "grid": list(grid),
        "classes": classes,
        "transform": build.build_transform(recipe.data).describe(),
        **build.padding_fact(recipe.data),
        **method.facts(),
        "parameters": {name: build.parameter_count(part) for name, part in method.modules().items()},
    }


def trial(method: Method, recipe: TokenizerRecipe, device: torch.device) -> Callable[[int], Callable[[], Any]]:
    """Training steps on random images, for their time: all that a step does but reading."""
    updater = Updater(method.objective, recipe.optim, recipe.train, device)
    method.tokenizer.quantizer.initialised.fill_(True)

    def step(samples: int) -> Callable[[], Any]:
        images = torch.rand(samples, 3, recipe.data.size, recipe.data.size, device=device)

        def update() -> None:
            method.update(updater, recipe.train.steps - 1, method.trial(images), images)
            method.tokenizer.quantizer.after_step(0)

        return update

    return step


def _say_time(kind: type[Method], recipe: TokenizerRecipe, images: int, device: torch.device) -> None:
    """How long a training will take by a preset that tok has chosen, so that a user can choose another."""
    with torch.random.fork_rng():
        rehearsed = kind(recipe, None, device)
        once = rehearsed.once(images)
        said = plan.step_time(recipe.train, device, trial(rehearsed, recipe, device), cheap=QUICK)
    log.info("time: %s%s", said, f"; before it {plan.in_words(once)} for the teacher's features" if once else "")


def _train(
    options: Options,
    kind: type[Method],
    recipe: TokenizerRecipe,
    spec: str,
    source: ImageSource | None,
    start: Artifact | None,
    device: torch.device,
) -> Artifact:
    size, chosen = recipe.data.size, source is not None
    source = source or open_source(spec, size=size, labels=options.labels, max_pixels=recipe.data.max_pixels)
    inputs = _inputs({"id": source.id, "path": source.name}, start)
    inputs |= weights_inputs(resolved(recipe), options.weights)
    draft = begin(options, "tokenizer", kind.label(recipe), resolved(recipe), inputs, device, settled=recipe.settled)
    if isinstance(draft, Artifact):
        return draft

    if chosen and not draft.resumed:
        _say_time(kind, recipe, len(source), device)
    method = kind(recipe, options.weights, device)
    tokenizer = method.tokenizer
    if (perturb := getattr(recipe, "perturb", None)) is not None:
        tokenizer.perturb = Perturber(**perturb.keys(), steps=recipe.train.steps)
    if start:
        tokenizer.load_exported(load_tensors(start.file(loading.WEIGHTS)), str(start.path))
    facts = _facts(kind, recipe, method, source.classes)
    use_size = facts["use_size"]
    transform = build.build_transform(recipe.data)
    method.begin(source, transform)
    updater = Updater(method.objective, recipe.optim, recipe.train, device)
    batches = TrainBatches(
        source,
        transform,
        batch_size=recipe.train.batch_size,
        seed=recipe.seed,
        workers=recipe.data.workers,
        max_bad=recipe.data.max_bad,
        rank=distributed.rank(),
        world=distributed.world_size(),
    )
    held_out = held_out_beside(source, size, recipe.train.eval_images)

    def evaluate(_: int) -> dict[str, float]:
        with updater.weights():
            return method.measure(padded(held_out or source, size, facts.get("padding")), size)

    parts = {"updater": updater}
    if method.adversary is not None:
        parts["adversary"] = method.adversary.updater
    seconds = loop.run(
        draft.path,
        recipe.train,
        recipe.seed,
        batches=batches.from_step,
        step=_step(method, recipe, updater, batches),
        parts=parts,
        evaluate=evaluate,
        epoch=batches.epoch,
        live=method.live,
    )
    measured = {}
    with updater.weights():
        if distributed.is_main():
            save_tensors(draft.path / loading.WEIGHTS, tokenizer.export_state())
            write_text(draft.path / "recipe.yaml", to_yaml(recipe))
        if held_out is not None:
            measured = method.measure(padded(held_out, use_size, facts.get("padding")), use_size)
            _warn_of_collapse(tokenizer, measured, len(held_out) * facts["grid"][0] * facts["grid"][1])
        if distributed.is_main():
            shown = padded(held_out or source, use_size, facts.get("padding"))
            method.preview(shown, use_size, draft.path / "preview.png")
    if not distributed.is_main():
        return Artifact(draft.path, draft.manifest)
    return complete(draft, facts, measured, batches.skipped, seconds)


def _step(
    method: Method, recipe: TokenizerRecipe, updater: Updater, batches: TrainBatches
) -> Callable[[int, Batch], dict[str, Any]]:
    quantizer, warned, ready = method.tokenizer.quantizer, False, False

    def step(number: int, batch: Batch) -> dict[str, Any]:
        nonlocal warned, ready
        images = unit(batch.images, method.device)
        if not ready and not quantizer.initialised and number >= quantizer.init_after:
            with updater.whole():
                method.initialise(batches.from_step(number))
        # asked once: the answer is on the device
        ready = ready or (quantizer.starts_once and bool(quantizer.initialised))
        if method.tokenizer.perturb is not None:
            method.tokenizer.perturb.begin(number)
        terms = method.update(updater, number, method.inputs(batch, images), images)
        with updater.guarding(quantizer):
            quantizer.after_step(number)
        if (number + 1) % recipe.train.log_every and number + 1 < recipe.train.steps:
            return terms
        health = quantizer.health()
        settled = number >= quantizer.init_after + 2 * quantizer.usage_window
        if quantizer.discrete and settled and health["codebook_usage"] < USAGE_FLOOR and not warned:
            warned = True
            log.warning("step %d: %s", number + 1, _advice(health["codebook_usage"], recipe))
        return terms | health

    return step


def _advice(usage: float, recipe: TokenizerRecipe) -> str:
    """What to do about codes that nothing falls to."""
    keys = resolved(recipe)["quantizer"]
    ways = ["a smaller quantizer.codebook_size"]
    if "rescue" in keys and keys["rescue"] is None:
        known = ("revive", "anchors") if keys["learning"] == "gradient" else ("revive",)
        ways = [*(f"quantizer.rescue={name}" for name in known), *ways]
    return f"only {usage:.0%} of the codes were used lately. Try {' or '.join(ways)}."


def _check_perturb(recipe: TokenizerRecipe) -> None:
    if getattr(recipe, "perturb", None) is not None and not QUANTIZERS[recipe.quantizer.name].discrete:  # type: ignore[attr-defined]
        raise TokError(
            "perturb",
            "the quantizer has no codes to replace",
            next="Leave perturb out, or choose a quantizer with codes",
        )


def _warn_of_collapse(tokenizer: Tokenizer, measured: Mapping[str, float], tokens: int) -> None:
    """Say where held-out images get few of the codes that training images get: the one or the other is measured wrongly, or noise.

    Args:
        measured: on held-out images of so many tokens.
    """
    found = measured.get("codebook_perplexity")
    if found is None or not tokenizer.quantizer.discrete:
        return
    usual = min(tokenizer.quantizer.health()["codebook_perplexity"], tokens)
    if found < COLLAPSE * usual and distributed.is_main():
        log.warning(
            "held-out images have a codebook perplexity of %.3g, training images %.3g: the tokenizer tells the former hardly "
            "apart. Look at preview.png, and at what differs between the two sets",
            found,
            usual,
        )
