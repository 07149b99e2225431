"""What a training of a pixel decoder is told: its recipe, the decoder that it starts from, the network that draws some of its tokens."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tokcli import build, loading
from tokcli.artifact.manifest import differing_keys
from tokcli.artifact.opening import Artifact, check_lineage
from tokcli.command import plan
from tokcli.command.inputs import (
    DECODING,
    check_decodes,
    check_expected,
    choose,
    load_recipe,
    names_no_recipe,
    open_input,
)
from tokcli.command.options import Options
from tokcli.command.weight_files import check_weights, weights_read
from tokcli.data.transforms import TRANSFORMS
from tokcli.device import on_meta
from tokcli.errors import TokError
from tokcli.losses import LOSSES
from tokcli.measure.extractors import check_extractors
from tokcli.models import DECODERS, DISCRIMINATORS
from tokcli.recipe.check import resolved
from tokcli.recipe.sections import GAN, Component, Data, Drawn, Expects, Optim, Perturb, Recipe, ReconstructedTrain
from tokcli.training.drawn_tokens import sampling_of

log = logging.getLogger("tok")
FAMILIES: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "data.transform": TRANSFORMS,
    "decoder": DECODERS,
    "loss": LOSSES,
    "gan.discriminator": DISCRIMINATORS,
}


class DecoderRecipe(Recipe):
    """Recipe of stage decoder.

    Args:
        data: see `data`.
        decoder: the network that turns codes into images.
        loss: terms between images and reconstructions, each with its weight.
        gan: see `gan`; null: no discriminator.
        perturb: see `perturb`; null: tokens stay as they are.
        drawn: see `drawn`; null: a proposal network draws none.
        optim: see `optim`.
        train: see `train`.
        expects: see `expects`.
    """

    stage: Literal["decoder"]
    data: Data
    decoder: Component
    loss: dict[str, dict[str, Any]] = Field(min_length=1)
    gan: GAN | None = None
    perturb: Perturb | None = None
    drawn: Drawn | None = None
    optim: Optim
    train: ReconstructedTrain
    expects: Expects = Expects()


def read_recipe(options: Options, tokenizer: Artifact | None) -> DecoderRecipe:
    """The recipe; where `--recipe` names none, at the sizes of the tokenizer."""
    recipe = load_recipe(options, DecoderRecipe, "decoder-conv", FAMILIES)
    if tokenizer is not None and names_no_recipe(options):
        fitted = build.decoder_sizes(recipe.data, recipe.decoder, tokenizer.facts)
        if changed := {key: value for key, value in fitted.items() if key not in options.sets}:
            log.info("recipe: %s, for the tokenizer", ", ".join(f"{key}={value}" for key, value in changed.items()))
            options = replace(options, sets={**changed, **options.sets})
            recipe = load_recipe(options, DecoderRecipe, "decoder-conv", FAMILIES, say=log.debug)
    check_extractors(recipe.train.eval_extractors, None)
    if tokenizer is not None:
        _check(recipe, tokenizer)
    return recipe


def _check(recipe: DecoderRecipe, tokenizer: Artifact) -> None:
    """Refuse a tokenizer that the recipe is not for."""
    facts, size = tokenizer.facts, recipe.data.size
    loading.check_discrete(tokenizer)
    if size != facts["use_size"]:
        hint = f"Use it: --set data.size={facts['use_size']}"
        raise TokError("data.size", f"the tokenizer is used at {facts['use_size']} px", got=str(size), next=hint)
    seen = {"codebook_size": facts["codebook_size"], "code_dim": facts["code_dim"], "grid": tuple(facts["grid"])}
    check_expected(recipe.expects, **plan.known(seen | {"classes": tokenizer.class_count}))


def open_start(
    options: Options, init: Path | None, recipe: DecoderRecipe, tokenizer: Artifact | None
) -> Artifact | None:
    """The decoder to start from, or the tokenizer whose own decoder it is; None where `--init` is not given.

    Raises:
        TokError: its network is not the one that the recipe describes.
    """
    if init is None:
        return None
    start = open_input(options, "--init", init, DECODING)
    check_decodes(start, "--init", init)
    if tokenizer is not None:
        _check_start(start, recipe, tokenizer)
    return start


def _check_start(start: Artifact, recipe: DecoderRecipe, tokenizer: Artifact) -> None:
    ours, theirs = resolved(recipe)["decoder"], start.recipe.get("decoder") or {}
    facts = tokenizer.facts
    with on_meta():
        built = build.build_decoder(resolved(recipe), facts["code_dim"], tuple(facts["grid"]), recipe.data.size)
        shapes = [{k: t.shape for k, t in n.state_dict().items()} for n in (loading.decoder_of(start), built)]
    both = [key for key in ours if key in theirs]  # an older recipe lacks newer keys
    different = differing_keys({key: theirs[key] for key in both}, {key: ours[key] for key in both}, "decoder.")
    if different or shapes[0] != shapes[1]:
        sizes = f"one for codes of {start.facts['code_dim']} channels on a grid of {start.facts['grid']}"
        raise TokError(
            f"--init {start.path}",
            "is another network than the recipe describes",
            got="; ".join(different) or sizes,
            next="Set the recipe's section decoder as it is in the recipe.yaml of that artifact",
        )
    if start.input_id("tokenizer") != tokenizer.id:
        log.warning("--init %s: it learned the codes of another tokenizer", start.path)


def open_drawer(
    options: Options, proposal: Path | None, recipe: DecoderRecipe, tokenizer: Artifact | None
) -> Artifact | None:
    """The proposal network of the recipe's section `drawn`; None where there is no such section, or in a plan without inputs.

    Raises:
        TokError: `--proposal` is given and the recipe has no such section; or the network is one over another tokenizer's tokens,
            or cannot do what the section asks for.
    """
    if recipe.drawn is None:
        if proposal is not None:
            how = "Add one: --set drawn.share=0.3, or use --recipe openmoji/decoder-drawn"
            raise TokError(f"--proposal {proposal}", "the recipe has no section drawn, which would use it", next=how)
        return None
    if proposal is None and tokenizer is None:
        return None
    ours = tokenizer.id if tokenizer else None
    found = choose(
        options, "--proposal", proposal, ["proposal"], lambda a: a.input_id("tokenizer") == ours, "tok train-proposal"
    )
    if tokenizer is not None:
        check_lineage(found, "--proposal", tokenizer, "--tokenizer")
    with on_meta():
        loading.proposal_of(found).check_redraw(sampling_of(recipe.drawn))
    if "text" in options.weights:
        loading.check_text_weights(found, options.weights["text"])
    return found


def check_files(options: Options, recipe: DecoderRecipe, drawer: Artifact | None) -> None:
    """Refuse a file of weights that neither the training nor the network that draws reads."""
    texts = weights_read(drawer.recipe) & {"text"} if drawer else set()
    check_weights(options, weights_read(resolved(recipe)) | texts)
