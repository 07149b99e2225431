"""`tok train-proposal`: a prior over tokens, autoregressive or masked, conditional on class, caption or nothing."""

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tokcli import assemble, distributed, loop, measure, plan, workspace
from tokcli.artifact import Artifact, check_lineage, open_artifact
from tokcli.data import evenly
from tokcli.data.tokens import TokenBatch, TokenBatches, TokenStore
from tokcli.errors import Misuse, TokError
from tokcli.models.transformer import Grid
from tokcli.networks.sources import Source, find_weights
from tokcli.networks.text import build_text_tower
from tokcli.networks.text_cache import BytePairTable, FeatureTable
from tokcli.optim import Updater
from tokcli.proposals import CONDITIONS, PROPOSALS, ClassCondition, Proposal, TextCondition
from tokcli.proposals.gpt2 import GPT2Proposal
from tokcli.recipe import resolved, to_yaml
from tokcli.schema import Component, Expects, MeasuredTrain, Optim, Recipe
from tokcli.weights import load_strict, load_tensors, save_tensors, write_text
from tokcli.workspace import Options

log = logging.getLogger("tok")
FAMILIES: dict[str, Mapping[str, Callable[..., Any]]] = {"proposal": PROPOSALS, "condition": CONDITIONS}


class ProposalRecipe(Recipe):
    """Recipe of stage proposal."""

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
) -> Artifact | str:
    """Train a proposal network; see `tok train-proposal --help`."""
    name = f"proposal-{mode or 'ar'}"
    if options.dry_run and tokens is None:
        return _plan(options, _recipe(options, name, workspace.data_spec(options)), None)
    made_by = workspace.choose(options, "--tokens", tokens, ["tokens"], maker="tok tokenize")
    recipe = _recipe(options, name, made_by.inputs["data"]["path"])
    if mode not in (None, PROPOSALS[recipe.proposal.name].mode):
        raise TokError(
            f"--mode {mode}", "the recipe is of a network of another mode", got=f"proposal.name: {recipe.proposal.name}"
        )
    if init is not None and "language" in options.weights:
        raise Misuse("--language-weights", "--init says where the weights come from", next="give one of the two")
    held_out = _held_out(val, recipe, made_by)
    if options.dry_run:
        return _plan(options, recipe, made_by)
    with workspace.session(options) as device:
        return _train(options, recipe, made_by, held_out, init, device)


def _held_out(val: Path | None, recipe: ProposalRecipe, tokens: Artifact) -> Artifact | None:
    """The tokens to measure on, which must be of the tokenizer whose tokens the network learns."""
    if val is None:
        if recipe.train.eval_every:
            raise TokError("train.eval_every", "there is nothing to measure on", got=str(recipe.train.eval_every), next=(
                "give --val, tokens of held-out images: tok tokenize --data SET/val"))  # fmt: skip
        return None
    found = open_artifact(val, "--val", ["tokens"])
    ours, theirs = (a.input_id("tokenizer") for a in (tokens, found))
    if ours != theirs:
        raise TokError(f"--val {val}", "its tokens are another tokenizer's", got=f"{theirs}, not {ours}", next=(
            f"tok tokenize --tokenizer {tokens.inputs['tokenizer']['path']} --data SET/val"))  # fmt: skip
    if found.id == tokens.id:
        log.warning("--val %s: these are the tokens that it is trained on", val)
    return found


def _recipe(options: Options, name: str, spec: str) -> ProposalRecipe:
    recipe = workspace.load_recipe(options, ProposalRecipe, name, workspace.recipe_folder(spec), FAMILIES)
    workspace.check_weights(options, assemble.weights_read(resolved(recipe)))
    return recipe


def _plan(options: Options, recipe: ProposalRecipe, tokens: Artifact | None) -> str:
    expected = recipe.expects.planned()
    if tokens:
        _check_expected(recipe.expects, tokens)
        size, grid, classes = tokens.facts["codebook_size"], tuple(tokens.facts["grid"]), len(tokens.facts["classes"])
    elif expected["codebook_size"] and expected["grid"] and expected["classes"] is not None:
        size, grid, classes = expected["codebook_size"], expected["grid"], expected["classes"]
    else:
        raise TokError("--dry-run", "needs --tokens, or expects.codebook_size, .grid and .classes in the recipe")
    with torch.device("meta"):
        network = assemble.build_proposal(resolved(recipe), size, grid, classes)
    reads = {"tokens": str(tokens.path) if tokens else "(as the recipe expects)"}
    seconds = ""
    if tokens:
        with workspace.session(options) as device:
            seconds = plan.step_time(recipe.train, device, _trial(recipe, size, grid, classes, device))
    return plan.describe(options, recipe, {"proposal": network}, reads=reads, writes="proposal", seconds=seconds)


def _check_expected(expected: Expects, tokens: Artifact) -> None:
    facts = tokens.facts
    measure.check_expected(
        expected, codebook_size=facts["codebook_size"], code_dim=facts["code_dim"], grid=tuple(facts["grid"]),
        classes=len(facts["classes"]),
    )  # fmt: skip


def _trial(
    recipe: ProposalRecipe, codebook_size: int, grid: Grid, classes: int, device: torch.device
) -> Callable[[int], Callable[[], Any]]:
    """Training steps on random tokens, for their time: all that a step does but reading."""
    proposal = assemble.build_proposal(resolved(recipe), codebook_size, grid, classes).to(device)
    updater = Updater(Likelihood(proposal), recipe.optim, recipe.train, device)

    def step(samples: int) -> Callable[[], Any]:
        tokens = torch.randint(codebook_size, (samples, grid[0] * grid[1]), device=device)
        seeds = torch.arange(samples, device=device)
        return lambda: updater.update(0, [tokens, proposal.null(samples), seeds, torch.zeros(samples, device=device)])

    return step


def _train(
    options: Options, recipe: ProposalRecipe, made_by: Artifact, held_out: Artifact | None, init: Path | None,
    device: torch.device,
) -> Artifact:  # fmt: skip
    facts = made_by.facts
    grid, classes = tuple(facts["grid"]), len(facts["classes"])
    _check_expected(recipe.expects, made_by)
    inputs = {
        "tokens": workspace.reference(made_by),
        "tokenizer": workspace.tokenizer_reference(made_by),
        "data": dict(made_by.inputs["data"]),
    }
    start = open_artifact(init, "--init", ["proposal"]) if init else None
    if start:
        check_lineage(start, "--init", made_by, "--tokens")
        if start.facts["classes"] and start.facts["classes"] != facts["classes"]:
            log.warning("--init %s: its classes are others, and stay under their numbers", init)
        inputs["init"] = workspace.reference(start)
    mode = PROPOSALS[recipe.proposal.name].mode
    draft = workspace.begin(options, "proposal", f"{mode}-{facts['name']}", resolved(recipe), inputs, device)
    if isinstance(draft, Artifact):
        measured_on = draft.manifest["provenance"].get("val", {}).get("id")
        if held_out and measured_on != held_out.id:
            log.warning(
                "--val %s: it was measured on %s; tok eval measures it", held_out.path, measured_on or "nothing"
            )
        return draft

    store = _store(made_by)
    proposal = assemble.build_proposal(resolved(recipe), facts["codebook_size"], grid, classes).to(device)
    if start:
        load_strict(proposal, load_tensors(start.file(assemble.WEIGHTS)), str(start.path))
    elif isinstance(proposal, GPT2Proposal) and proposal.language and not loop.started(draft.path):
        _start_from_language(proposal, options.weights.get("language"))
    tables = _caption_tables(options, recipe, device)
    captions = tables(store, f"--tokens {made_by.path}") if tables else None
    by_class = isinstance(assemble.condition_of(resolved(recipe)), ClassCondition)
    judged = _store(held_out) if held_out else store
    judged_captions = tables(judged, f"--val {judged.folder}") if tables and held_out else captions
    theirs = measure.class_numbers(facts["classes"] if by_class else [], (held_out or made_by).facts["classes"])
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
        tensors = (batch.indices, condition, batch.seeds, progress)
        return updater.update(number, [t.to(device, non_blocking=True) for t in tensors])

    def evaluate(_: int) -> dict[str, float]:
        with updater.weights():
            tokens = _read(judged, recipe.train.eval_images, theirs, judged_captions)
            return measure.proposal(proposal, tokens, device, mask_ratio=measure.MASK_RATIO)

    seconds = loop.run(
        draft.path, recipe.train, recipe.seed, batches=batches.from_step, step=step, parts={"updater": updater},
        evaluate=evaluate, epoch=batches.epoch, rates={"tokens_per_second": proposal.tokens, "flop_per_second": proposal.flops()},
    )  # fmt: skip
    if not distributed.is_main():
        return Artifact(draft.path, draft.manifest)
    with updater.weights():
        save_tensors(draft.path / assemble.WEIGHTS, proposal.state_dict())
    write_text(draft.path / "recipe.yaml", to_yaml(recipe))
    measured = {}
    if held_out:
        measured = evaluate(recipe.train.steps)
        draft.manifest["provenance"]["val"] = workspace.reference(held_out)
    made = {
        **{key: facts[key] for key in ("name", "codebook_size", "code_dim", "grid", "use_size")},
        "mode": mode,
        "condition": recipe.condition.name if classes or not by_class else "none",
        "text_sha256": captions.tower.sha256 if isinstance(captions, FeatureTable) else None,
        "classes": facts["classes"] if by_class else [],
        "class_counts": np.bincount(store.labels[store.labels >= 0], minlength=classes).tolist() if by_class else [],
        "parameters": plan.parameter_count(proposal),
    }
    return loop.complete(draft, made, measured, [], seconds)


def _start_from_language(proposal: GPT2Proposal, given: Path | None) -> None:
    name = str(proposal.language)
    source = Source(hub=(f"openai-community/{name}", "model.safetensors"))
    path = given or find_weights(name, source, where=f"language model {name}", flag="--language-weights")
    proposal.load_language(load_tensors(path), f"language model {name}: {path}")


def _store(tokens: Artifact) -> TokenStore:
    """The tokens of an artifact, after a look at every file of it."""
    if distributed.is_main():
        for name in tokens.manifest["files"]:
            tokens.file(name)
    return TokenStore(tokens.path)


def _read(store: TokenStore, most: int, classes: Tensor, captions: "Table | None") -> Iterator[measure.HeldOut]:
    """The first view of at most `most` images, evenly spread, as a network whose classes have other numbers reads them."""
    chosen = np.array(evenly(store.rows, most))
    for numbers in torch.arange(len(chosen)).split(measure.BATCH):
        rows = chosen[numbers]
        if captions:
            first, stop = store.caption_ends[rows], store.caption_ends[rows + 1]
            condition = captions.rows(torch.from_numpy(np.where(first < stop, first, -1)))
        else:
            condition = classes[torch.from_numpy(store.labels[rows].astype(np.int64))]
        yield measure.HeldOut(numbers, store.batch(rows, np.zeros_like(rows)), condition)


Table = BytePairTable | FeatureTable
Tables = Callable[[TokenStore, str], Table]


def _caption_tables(options: Options, recipe: ProposalRecipe, device: torch.device) -> Tables | None:
    """For a text-conditional network, what makes the captions of a store conditions by number; the tower is built once."""
    condition = assemble.condition_of(resolved(recipe))
    if not isinstance(condition, TextCondition):
        return None
    tower = build_text_tower(condition.tower, options.weights.get("text")).to(device) if condition.tower else None

    def table(store: TokenStore, where: str) -> Table:
        texts = [text for row in store.captions for text in row]
        if not texts:
            raise TokError(
                where, "its images have no captions", got="condition.name: text",
                next="tokenize a data set with captions, or set condition.name=none",
            )  # fmt: skip
        if tower is None:
            return BytePairTable(texts, condition.length)
        found = FeatureTable(tower, texts, condition.length)
        found.fill()
        return found

    return table
