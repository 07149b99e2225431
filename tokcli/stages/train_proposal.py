"""`tok train-proposal`: a prior over tokens, autoregressive or masked, conditional on class, caption or nothing."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tokcli import build, distributed, loading
from tokcli.artifact.opening import Artifact, check_lineage
from tokcli.artifact.plans import Plan, Planned
from tokcli.artifact.weights import load_strict, load_tensors, save_tensors
from tokcli.command import compute, plan
from tokcli.command.data import data_spec
from tokcli.command.inputs import check_expected, choose, load_recipe, open_input, with_preset
from tokcli.command.options import Options
from tokcli.command.session import begin, reference, session, tokenizer_reference
from tokcli.command.weight_files import check_weights, weights_inputs, weights_read
from tokcli.data.token_batches import TokenBatch, TokenBatches
from tokcli.data.transforms import padding_kept
from tokcli.device import on_meta
from tokcli.errors import Misuse, TokError
from tokcli.files import write_text
from tokcli.measure.predicting import MASK_RATIO, class_numbers, measure_proposal, stored_tokens
from tokcli.models.blocks import Grid
from tokcli.pretrained.feature_cache import FeatureTable
from tokcli.proposals import CONDITIONS, PROPOSALS, ClassCondition, Condition, NoCondition, Proposal, TextCondition
from tokcli.proposals.training_tokens import CaptionTables, captioned, check_captions, open_store, say_unread
from tokcli.recipe.check import resolved
from tokcli.recipe.sections import Component, Expects, MeasuredTrain, Optim, Recipe
from tokcli.recipe.yaml import to_yaml
from tokcli.training import loop
from tokcli.training.optimizers import muon_matrices
from tokcli.training.parallel import built_on
from tokcli.training.state import complete, started
from tokcli.training.updater import Updater

log = logging.getLogger("tok")
FAMILIES: dict[str, Mapping[str, Callable[..., Any]]] = {"proposal": PROPOSALS, "condition": CONDITIONS}


class ProposalRecipe(Recipe):
    """Recipe of stage proposal.

    Args:
        proposal: the network that predicts tokens.
        condition: what it is conditioned on: `class`, `text` or `none`.
        optim: see `optim`.
        train: see `train`.
        expects: see `expects`.
    """

    stage: Literal["proposal"]
    proposal: Component
    condition: Component = Component(name="class")
    optim: Optim
    train: MeasuredTrain
    expects: Expects = Expects()


class Likelihood(nn.Module):
    """The training objective: the proposal network's own loss, as a forward pass that DDP can wrap."""

    def __init__(self, proposal: Proposal) -> None:
        super().__init__()
        self.proposal = proposal

    def forward(self, indices: Tensor, condition: Tensor, seeds: Tensor, progress: Tensor) -> dict[str, Tensor]:
        """Terms of a batch: tokens (b, n), conditions (b, ...), a seed of each sample, the share of training done (b,)."""
        return self.proposal.loss(indices, condition, seeds, progress)


def main(
    options: Options, *, mode: str | None, tokens: Path | None, val: Path | None, init: Path | None
) -> Artifact | Plan:
    """Train a proposal network; see `tok train-proposal --help`."""
    made_by = None
    if tokens is not None or not options.dry_run:
        made_by = choose(options, "--tokens", tokens, ["tokens"], maker="tok tokenize")
    options, _ = with_preset(options, made_by.inputs["data"]["path"] if made_by else data_spec(options), made_by)
    recipe = load_recipe(options, ProposalRecipe, f"proposal-{mode or 'ar'}", FAMILIES)
    check_weights(options, weights_read(resolved(recipe)))
    start = _check(options, recipe, made_by, mode, init)
    held_out = _held_out(options, val, recipe, made_by) if made_by else None
    if options.dry_run:
        return _plan(options, recipe, made_by, start)
    assert made_by is not None, "no dry run"
    with session(options) as device:
        return _train(options, recipe, made_by, held_out, start, device)


def _check(
    options: Options, recipe: ProposalRecipe, made_by: Artifact | None, mode: str | None, init: Path | None
) -> Artifact | None:
    """Refuse what does not go together; the network to start from, where there is one."""
    if mode not in (None, PROPOSALS[recipe.proposal.name].mode):
        got, step = f"proposal.name: {recipe.proposal.name}", "Give a recipe of this mode, or leave --mode out"
        raise TokError(f"--mode {mode}", "the recipe is of a network of another mode", got=got, next=step)
    if init is not None and "language" in options.weights:
        raise Misuse("--language-weights", "--init says where the weights come from", next="Give one of the two")
    start = open_input(options, "--init", init, ["proposal"]) if init else None
    if made_by is None:
        return start
    facts = made_by.facts
    seen = {"codebook_size": facts["codebook_size"], "code_dim": facts["code_dim"], "grid": tuple(facts["grid"])}
    check_expected(recipe.expects, **plan.known(seen | {"classes": made_by.class_count}))
    say_unread(_condition(recipe), made_by)
    if start:
        check_lineage(start, "--init", made_by, "--tokens")
        if start.facts["classes"] and start.facts["classes"] != facts["classes"]:
            log.warning("--init %s: its classes are others, and stay under their numbers", init)
    return start


def _held_out(options: Options, val: Path | None, recipe: ProposalRecipe, tokens: Artifact) -> Artifact | None:
    """The tokens to measure on, which must be of the tokenizer whose tokens the network learns."""
    if val is None:
        every = recipe.train.eval_every
        if every:
            how = "Give --val, tokens of held-out images: tok tokenize --data SET/val"
            raise TokError("train.eval_every", "there is nothing to measure on", got=str(every), next=how)
        return None
    found = open_input(options, "--val", val, ["tokens"])
    ours, theirs = (a.input_id("tokenizer") for a in (tokens, found))
    if ours != theirs:
        how = f"Make others: tok tokenize --tokenizer {tokens.inputs['tokenizer']['path']} --data SET/val"
        raise TokError(f"--val {val}", "its tokens are another tokenizer's", got=f"{theirs}, not {ours}", next=how)
    if found.id == tokens.id:
        log.warning("--val %s: these are the tokens that it is trained on", val)
    return found


def rehearse(recipe: ProposalRecipe) -> None:
    """Build the network of a recipe, without numbers, for one token, code and class where it expects nothing else.

    Raises:
        TokError: what training would refuse before its first step, whatever the tokens.
    """
    expected = recipe.expects.planned()
    sizes = expected["codebook_size"] or 1, expected["grid"] or (1, 1), expected["classes"] or 1
    with on_meta():
        muon_matrices(build.build_proposal(resolved(recipe), *sizes), recipe.optim)


def _planned(recipe: ProposalRecipe, tokens: Artifact | None) -> dict[str, Any]:
    """The facts of the tokens, where they are at hand, or else those that the recipe expects."""
    expected = recipe.expects.planned()
    facts = expected | {"name": None, "use_size": None}
    facts = {key: tokens.facts[key] for key in facts} if tokens else facts
    if facts["classes"] is None:
        facts["classes"] = expected["classes"]
    if isinstance(_condition(recipe), NoCondition | TextCondition) and facts["classes"] is None:
        facts["classes"] = []  # whatever they are, the network does not read them
    missing = [key for key in ("codebook_size", "grid", "classes") if facts[key] is None]
    if missing:
        how = "Give --tokens of data on this machine, or --set expects." + "=N --set expects.".join(missing) + "=N"
        raise TokError("--dry-run", f"nobody knows {' and '.join(missing)}", next=how)
    return facts


def _plan(options: Options, recipe: ProposalRecipe, tokens: Artifact | None, start: Artifact | None) -> Plan:
    facts, train = _planned(recipe, tokens), recipe.train
    size, grid = facts["codebook_size"], tuple(facts["grid"])
    classes = facts["classes"] if isinstance(facts["classes"], int) else len(facts["classes"])
    with on_meta():
        network = build.build_proposal(resolved(recipe), size, grid, classes)
    if tokens and captioned(tokens) is False:
        check_captions(_condition(recipe), f"--tokens {tokens.path}", captioned=False)
    step = compute.training_step(Likelihood(network), lambda: _random(network, compute.MICRO))
    texts = ["features of captions"] if isinstance(_condition(recipe), TextCondition) else []
    flop = network.flops() * train.batch_size + compute.updating(network, recipe.optim)
    precision, uncounted = compute.ON_GPUS[train.precision], [*texts, *compute.BESIDES]
    computed = compute.Compute("step", flop, train.steps, flop * train.steps, precision, uncounted=uncounted)

    def seconds() -> str:
        with session(options) as device:
            return plan.step_time(train, device, _trial(recipe, size, grid, classes, device))

    return plan.describe(
        options,
        recipe,
        {"proposal": network},
        writes="proposal",
        reads={"tokens": tokens or "(as the recipe expects)"} | ({"init": start} if start else {}),
        facts=_facts(recipe, facts, network),
        inputs=_inputs(tokens, start)
        | weights_inputs(resolved(recipe), options.weights, planned=True, unread=["language"] if start else []),
        seconds=str if tokens is None or isinstance(tokens, Planned) else seconds,
        compute=computed,
        activations=step.activations,
    )


def _inputs(made_by: Artifact | None, start: Artifact | None) -> dict[str, dict[str, str]]:
    found = {"init": reference(start)} if start else {}
    if made_by is None:
        return found
    return {
        "tokens": reference(made_by),
        "tokenizer": tokenizer_reference(made_by),
        "data": dict(made_by.inputs["data"]),
        **found,
    }


def _facts(recipe: ProposalRecipe, facts: Mapping[str, Any], network: Proposal) -> dict[str, Any]:
    """The facts of the network over tokens of those facts; None for what is known with the tokens alone."""
    by_class = isinstance(_condition(recipe), ClassCondition)
    return {
        **{key: facts[key] for key in ("name", "codebook_size", "code_dim", "grid", "use_size")},
        **padding_kept(facts),
        "mode": network.mode,
        "condition": recipe.condition.name if facts["classes"] or not by_class else "none",
        "text_sha256": None,
        "classes": facts["classes"] if by_class else [],
        "class_counts": None if by_class else [],
        "parameters": build.parameter_count(network),
    }


def _condition(recipe: ProposalRecipe) -> Condition:
    """What the recipe's network is conditioned on."""
    return build.condition_of(resolved(recipe))


def _trial(
    recipe: ProposalRecipe, codebook_size: int, grid: Grid, classes: int, device: torch.device
) -> Callable[[int], Callable[[], Any]]:
    """Training steps on random tokens, for their time: all that a step does but reading."""
    proposal = build.build_proposal(resolved(recipe), codebook_size, grid, classes)
    updater = Updater(Likelihood(proposal.to(built_on(recipe.train, device))), recipe.optim, recipe.train, device)

    def step(samples: int) -> Callable[[], Any]:
        given = _random(proposal, samples)
        return lambda: updater.update(0, given)

    return step


def _random(proposal: Proposal, samples: int) -> list[Tensor]:
    """What `Likelihood` takes, of images that nobody tokenized."""
    device = proposal.device
    tokens = torch.randint(proposal.codebook_size, (samples, proposal.tokens), device=device)
    return [tokens, proposal.null(samples), torch.arange(samples, device=device), torch.zeros(samples, device=device)]


def _train(
    options: Options,
    recipe: ProposalRecipe,
    made_by: Artifact,
    held_out: Artifact | None,
    start: Artifact | None,
    device: torch.device,
) -> Artifact:
    facts = made_by.facts
    grid, classes = tuple(facts["grid"]), len(facts["classes"])
    inputs = _inputs(made_by, start) | weights_inputs(
        resolved(recipe), options.weights, unread=["language"] if start else []
    )
    mode = PROPOSALS[recipe.proposal.name].mode
    draft = begin(options, "proposal", f"{mode}-{facts['name']}", resolved(recipe), inputs, device)
    if isinstance(draft, Artifact):
        measured_on = draft.manifest["provenance"].get("val", {}).get("id")
        if held_out and measured_on != held_out.id:
            log.warning(
                "--val %s: it was measured on %s; tok eval measures it", held_out.path, measured_on or "nothing"
            )
        return draft

    store = open_store(made_by)
    proposal = build.build_proposal(resolved(recipe), facts["codebook_size"], grid, classes)
    proposal.to(built_on(recipe.train, device))
    if start:
        load_strict(proposal, load_tensors(start.file(loading.WEIGHTS)), str(start.path))
    elif not started(draft.path):
        proposal.load_published(options.weights.get("language"))
    condition = _condition(recipe)
    by_class = isinstance(condition, ClassCondition)
    tables = None
    if isinstance(condition, TextCondition):
        tables = CaptionTables(condition, options.weights.get("text"), device)
    captions = tables.of(store, f"--tokens {made_by.path}") if tables else None
    judged = open_store(held_out) if held_out else store
    judged_captions = tables.of(judged, f"--val {judged.folder}") if tables and held_out else captions
    theirs = class_numbers(facts["classes"] if by_class else [], (held_out or made_by).facts["classes"])
    if recipe.train.compile:
        proposal.prepare_compile()
    updater = Updater(Likelihood(proposal), recipe.optim, recipe.train, device)
    batches = TokenBatches(
        store,
        batch_size=recipe.train.batch_size,
        seed=recipe.seed,
        rank=distributed.rank(),
        world=distributed.world_size(),
        captions=captions is not None,
    )

    def step(number: int, batch: TokenBatch) -> dict[str, Any]:
        if captions:
            condition = captions.rows(batch.captions)
        else:
            condition = batch.labels if proposal.classes else torch.full_like(batch.labels, -1)
        progress = torch.full((len(batch.seeds),), number / recipe.train.steps)
        given = (batch.indices, condition, batch.seeds, progress)
        return updater.update(number, [t.to(device, non_blocking=True) for t in given])

    def measure() -> dict[str, float]:
        tokens = stored_tokens(judged, recipe.train.eval_images, theirs, judged_captions)
        return measure_proposal(proposal, tokens, device, mask_ratio=MASK_RATIO)

    def evaluate(_: int) -> dict[str, float]:
        with updater.weights():
            return measure()

    seconds = loop.run(
        draft.path,
        recipe.train,
        recipe.seed,
        batches=batches.from_step,
        step=step,
        parts={"updater": updater},
        evaluate=evaluate,
        epoch=batches.epoch,
        rates={"tokens_per_second": proposal.tokens, "flop_per_second": proposal.flops()},
    )
    measured = {}
    with updater.weights():
        if distributed.is_main():
            save_tensors(draft.path / loading.WEIGHTS, proposal.state_dict())
            measured = measure() if held_out else {}
            write_text(draft.path / "recipe.yaml", to_yaml(recipe))
    if not distributed.is_main():
        return Artifact(draft.path, draft.manifest)
    draft.manifest["provenance"] |= {"val": reference(held_out)} if held_out else {}
    made = _facts(recipe, facts, proposal)
    made["text_sha256"] = captions.tower.sha256 if isinstance(captions, FeatureTable) else None
    if by_class:
        made["class_counts"] = np.bincount(store.labels[store.labels >= 0], minlength=classes).tolist()
    return complete(draft, made, measured, [], seconds)
