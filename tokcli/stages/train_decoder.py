"""`tok train-decoder`: pixels from a frozen tokenizer's codes, by reconstruction, perceptual and adversarial losses."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokcli import build, distributed, loading
from tokcli.artifact.opening import Artifact
from tokcli.artifact.plans import Plan, Planned
from tokcli.artifact.weights import load_strict, save_tensors
from tokcli.command import compute, plan
from tokcli.command.data import data_spec, held_out_beside
from tokcli.command.inputs import choose, with_preset
from tokcli.command.options import Options
from tokcli.command.session import begin, reference, session
from tokcli.command.weight_files import weights_inputs
from tokcli.data.batches import Batch, TrainBatches
from tokcli.data.sources import open_source, padded
from tokcli.data.transforms import padding_kept, unit
from tokcli.device import on_meta
from tokcli.errors import TokError
from tokcli.files import write_text
from tokcli.measure.decoding import Judges, measure_decoder
from tokcli.measure.extractors import check_extractors
from tokcli.measure.previews import decoder_preview
from tokcli.methods.pixel_decoder import DecoderRecipe, check_files, open_drawer, open_start, read_recipe
from tokcli.methods.reconstruction import PixelLoss, Reconstruction
from tokcli.models import Tokenizer
from tokcli.proposals import Proposal
from tokcli.quantizers.perturbing import Perturber, all_codes
from tokcli.recipe.check import resolved
from tokcli.recipe.yaml import to_yaml
from tokcli.training import encoding, loop
from tokcli.training.adversary import Adversary, update
from tokcli.training.drawn_tokens import DrawnTokens, open_drawn, sampling_of
from tokcli.training.optimizers import muon_matrices
from tokcli.training.parallel import built_on
from tokcli.training.state import complete
from tokcli.training.updater import Updater

Losses = list[tuple[str, float, nn.Module]]


def main(options: Options, *, tokenizer: Path | None, init: Path | None, proposal: Path | None) -> Artifact | Plan:
    """Train a pixel decoder; see `tok train-decoder --help`."""
    made_by = None
    if tokenizer is not None or not options.dry_run:
        made_by = choose(options, "--tokenizer", tokenizer, ["tokenizer"], maker="tok train-tokenizer")
    spec = data_spec(options, made_by)
    options, _ = with_preset(options, spec, made_by)
    recipe = read_recipe(options, made_by)
    drawer = open_drawer(options, proposal, recipe, made_by)
    check_files(options, recipe, drawer)
    others = {"init": open_start(options, init, recipe, made_by), "proposal": drawer}
    beside = {role: a for role, a in others.items() if a is not None}
    if options.dry_run or made_by is None:
        return _plan(options, recipe, spec, made_by, beside)
    with session(options) as device:
        return _train(options, recipe, made_by, spec, beside, device)


def _inputs(
    data: dict[str, str], tokenizer: Artifact | None, beside: Mapping[str, Artifact]
) -> dict[str, dict[str, str]]:
    made_by = {"tokenizer": tokenizer} if tokenizer else {}
    return {"data": data, **{role: reference(a) for role, a in (made_by | dict(beside)).items()}}


def _facts(
    recipe: DecoderRecipe,
    facts: Mapping[str, Any],
    decoder: nn.Module,
    tokenizer: nn.Module | None,
    drawer: Artifact | None,
    without: int | None = None,
) -> dict[str, Any]:
    """The facts of the decoder of a tokenizer's facts, None for those that a plan without one does not know.

    Args:
        drawer: the proposal network whose tokens it met.
        without: images whose tokens that drew without a condition.
    """
    drawn = {"mode": drawer.facts["mode"] if drawer else None, "images_without_condition": without}
    copied = ("name", "codebook_size", "code_dim", "grid", "use_size", "classes")
    return {
        **{key: facts[key] for key in copied},
        **padding_kept(facts),
        "transform": build.build_transform(recipe.data).describe(),
        "losses": {name: dict(section) for name, section in recipe.loss.items()},
        "gan": recipe.gan.model_dump(mode="json") if recipe.gan else None,
        **({"drawn": drawn} if recipe.drawn else {}),
        "trainable_parameters": build.parameter_count(decoder),
        "frozen_parameters": build.parameter_count(tokenizer) if tokenizer else None,
    }


def rehearse(recipe: DecoderRecipe) -> None:
    """Build what a recipe trains, without numbers; codes that it expects nothing of are 1 wide, on a grid that its stages lead from.

    Raises:
        TokError: what training would refuse before its first step, whatever the tokenizer.
    """
    expected, size = recipe.expects.planned(), recipe.data.size
    side = max(1, size // 2 ** (len(recipe.decoder.keys.get("widths", [1])) - 1))
    build.build_transform(recipe.data)
    check_extractors(recipe.train.eval_extractors, None)
    with on_meta() as device:
        grid = expected["grid"] or (side, side)
        muon_matrices(build.build_decoder(resolved(recipe), expected["code_dim"] or 1, grid, size), recipe.optim)
        build.build_losses(recipe.loss, None, device)
        _adversary(recipe, None, device)


def _plan(
    options: Options, recipe: DecoderRecipe, spec: str, tokenizer: Artifact | None, beside: Mapping[str, Artifact]
) -> Plan:
    size, drawer = recipe.data.size, beside.get("proposal")
    facts = tokenizer.facts if tokenizer else recipe.expects.planned() | {"name": None, "use_size": size}
    if facts["code_dim"] is None or facts["grid"] is None:
        what = "needs --tokenizer, or expects.code_dim and expects.grid in the recipe"
        raise TokError("--dry-run", what, next="Give --tokenizer a tokenizer or a plan")
    images = plan.find_training_images(options, spec, recipe.data, recipe.train.eval_images)
    with on_meta() as device:
        frozen = loading.tokenizer_of(tokenizer) if tokenizer else None
        decoder = build.build_decoder(resolved(recipe), facts["code_dim"], tuple(facts["grid"]), size)
        losses = build.build_losses(recipe.loss, None, device)
        adversary = _adversary(recipe, None, device)
        network = loading.proposal_of(drawer).eval().requires_grad_(False) if drawer else None
    modules = {"decoder": decoder, **{name: loss for name, _, loss in losses}}
    modules |= {"discriminator": adversary.discriminator} if adversary else {}
    modules |= {"proposal": network} if network else {}
    unnamed = {"proposal": "(not named, and not counted)"} if recipe.drawn and not drawer else {}
    counted = None
    if tokenizer and frozen:
        modules["tokenizer"] = frozen.eval().requires_grad_(False)
        counted = _compute(recipe, tokenizer, frozen, decoder, losses, adversary, images, network)

    def seconds() -> str:
        assert tokenizer is not None
        with session(options) as device:
            return plan.step_time(recipe.train, device, trial(options, recipe, tokenizer, device, drawer))

    return plan.describe(
        options,
        recipe,
        modules,
        writes="decoder",
        reads={"data": spec, "tokenizer": tokenizer or "(as the recipe expects)", **unnamed, **beside},
        facts=_facts(recipe, facts, decoder, frozen, drawer),
        inputs=_inputs(images.entry, tokenizer, beside)
        | weights_inputs(resolved(recipe), options.weights, planned=True),
        seconds=seconds if tokenizer and not any(isinstance(a, Planned) for a in (tokenizer, drawer)) else str,
        compute=counted[0] if counted else None,
        activations=counted[1] if counted else None,
    )


def _compute(
    recipe: DecoderRecipe,
    made_by: Artifact,
    tokenizer: Tokenizer,
    decoder: Any,
    losses: Losses,
    adversary: Adversary | None,
    images: plan.Images,
    network: Proposal | None,
) -> tuple[compute.Compute, float]:
    """What the training computes, see `compute.training`; all networks are on the meta device."""
    size, number = recipe.data.size, len(images.source) if images.source else None
    kept = build.build_transform(recipe.data).deterministic and encoding.fits(
        number or 0, math.prod(made_by.facts["grid"])
    )

    def inputs() -> list[Tensor]:
        some = torch.empty(compute.MICRO, 3, size, size)
        return [tokenizer.codes(tokenizer.encode(some)), some]

    with compute.quantizer_aside(tokenizer.quantizer, dict(made_by.recipe["quantizer"])):
        return compute.training(
            recipe.train,
            recipe.optim,
            Reconstruction(decoder, PixelLoss(losses, adversary)),
            inputs,
            gan=recipe.gan,
            adversary=adversary,
            once="the images' tokens" if kept else "",
            images=number,
            beside=network.redrawing_flops(sampling_of(recipe.drawn), recipe.drawn.context)
            if network and recipe.drawn
            else 0.0,
        )


def trial(
    options: Options, recipe: DecoderRecipe, made_by: Artifact, device: torch.device, drawer: Artifact | None = None
) -> Callable[[int], Callable[[], Any]]:
    """Training steps on random images, for their time: all that a step does but reading."""
    tokenizer = loading.load_tokenizer(made_by, device)
    size = recipe.data.size
    decoder = build.build_decoder(resolved(recipe), made_by.facts["code_dim"], tuple(made_by.facts["grid"]), size)
    losses = build.build_losses(recipe.loss, options.weights, device)
    adversary = _adversary(recipe, options.weights, device)
    updater = _updater(recipe, decoder.to(built_on(recipe.train, device)), losses, adversary, device)
    drawn = None
    if drawer and recipe.drawn:
        drawn = DrawnTokens(loading.load_proposal(drawer, device), recipe.drawn, recipe.train, recipe.seed)

    def step(samples: int) -> Callable[[], Any]:
        images, unlabelled = torch.rand(samples, 3, size, size, device=device), torch.full((samples,), -1)
        last = recipe.train.steps - 1  # with the discriminator at work

        def once() -> Any:
            indices = tokenizer.encode(images)
            if drawn is not None:
                indices = drawn(last, Batch(images, unlabelled, torch.arange(samples)), indices)
            return update(updater, adversary, last, [tokenizer.codes(indices), images], images)

        return once

    return step


def _adversary(recipe: DecoderRecipe, weights: Mapping[str, Path] | None, device: torch.device) -> Adversary | None:
    return Adversary(recipe.gan, recipe.train, device, recipe.seed, weights) if recipe.gan else None


def _updater(
    recipe: DecoderRecipe, decoder: Any, losses: Losses, adversary: Adversary | None, device: torch.device
) -> Updater:
    return Updater(Reconstruction(decoder, PixelLoss(losses, adversary)), recipe.optim, recipe.train, device)


def _train(
    options: Options,
    recipe: DecoderRecipe,
    tokenizer_artifact: Artifact,
    spec: str,
    beside: Mapping[str, Artifact],
    device: torch.device,
) -> Artifact:
    start, drawer = beside.get("init"), beside.get("proposal")
    facts = tokenizer_artifact.facts
    size, grid = recipe.data.size, tuple(facts["grid"])
    source = open_source(spec, size=size, labels=options.labels, max_pixels=recipe.data.max_pixels)
    inputs = _inputs({"id": source.id, "path": source.name}, tokenizer_artifact, beside)
    inputs |= weights_inputs(resolved(recipe), options.weights)
    draft = begin(options, "decoder", facts["name"], resolved(recipe), inputs, device, settled=recipe.settled)
    if isinstance(draft, Artifact):
        return draft

    tokenizer = loading.load_tokenizer(tokenizer_artifact, device)
    home = built_on(recipe.train, device)
    decoder = build.build_decoder(resolved(recipe), facts["code_dim"], grid, size).to(home)
    if start:
        load_strict(decoder, loading.load_decoder(start, home).state_dict(), str(start.path))
    losses = build.build_losses(recipe.loss, options.weights, device)
    transform = build.build_transform(recipe.data)
    adversary = _adversary(recipe, options.weights, device)
    updater = _updater(recipe, decoder, losses, adversary, device)
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

    encode = encoding.Encoding(tokenizer, len(source) if transform.deterministic else 0, grid[0] * grid[1])

    drawn = None
    if drawer and recipe.drawn:
        weights = options.weights.get("text")
        drawn = open_drawn(drawer, recipe.drawn, recipe.train, source, weights, device, recipe.seed)
    perturb = Perturber(**recipe.perturb.keys(), steps=recipe.train.steps) if recipe.perturb else None
    codes = all_codes(tokenizer.quantizer) if perturb else None

    def step(number: int, batch: Batch) -> dict[str, Any]:
        images = unit(batch.images, device)
        indices = encode(batch, images)
        if drawn is not None:
            indices = drawn(number, batch, indices)
        if perturb is not None and codes is not None:
            perturb.begin(number)
            indices = perturb.indices(indices, codes)
        return update(updater, adversary, number, [tokenizer.codes(indices), images], images)

    held_out = held_out_beside(source, size, recipe.train.eval_images)
    shown = padded(held_out or source, size, facts.get("padding"))
    judges = Judges.of(recipe.train.eval_extractors, options.weights, device)

    def evaluate(_: int) -> dict[str, float]:
        with updater.weights():
            return measure_decoder(tokenizer, decoder, shown, device, size=size, judges=judges)

    parts = {"updater": updater} | ({"adversary": adversary.updater} if adversary else {})
    seconds = loop.run(
        draft.path,
        recipe.train,
        recipe.seed,
        batches=batches.from_step,
        step=step,
        parts=parts,
        evaluate=evaluate,
        epoch=batches.epoch,
        live=("loss", *recipe.loss),
    )
    measured = {}
    with updater.weights():
        if distributed.is_main():
            save_tensors(draft.path / loading.WEIGHTS, decoder.state_dict())
            write_text(draft.path / "recipe.yaml", to_yaml(recipe))
            measured = measure_decoder(tokenizer, decoder, shown, device, size=size, judges=judges) if held_out else {}
            decoder_preview(tokenizer, decoder, shown, device, size, draft.path / "preview.png")
    if distributed.is_main():
        without = drawn.without if drawn else None
        return complete(
            draft, _facts(recipe, facts, decoder, tokenizer, drawer, without), measured, batches.skipped, seconds
        )
    return Artifact(draft.path, draft.manifest)
