"""`tok sample`: tokens from a proposal network, pixels from a decoder, one seed per image.

A picture depends on (recipe, seed, its number) alone. Networks always run on `sample.rows` rows, image i in row i % rows, so
that neither the batch size nor the number of processes changes which kernels run or what they see.
"""

import dataclasses
import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from tokcli import artifact, assemble, distributed, loop, measure, pictures, plan, workspace
from tokcli.artifact import Artifact
from tokcli.data.prompts import read_prompts
from tokcli.data.randomness import generator, seed_of
from tokcli.draft import Draft, locked, write_listing
from tokcli.errors import Misuse, TokError
from tokcli.models import Tokenizer
from tokcli.proposals import PROPOSALS, Proposal, Sampling
from tokcli.recipe import resolved
from tokcli.registry import nearest
from tokcli.schema import Recipe, Section
from tokcli.weights import atomic_write, disk_error
from tokcli.workspace import Options

log = logging.getLogger("tok")


class Sample(Section):
    """How many images of what, and how their tokens are drawn. Keys that a mode does not read stay null."""

    number: int = Field(64, ge=1, le=10_000_000)
    classes: list[int | str] | Literal["data"] | None = (
        None  # names or numbers, in turn; "data": as in training; None: all
    )
    prompts: list[str] | None = None  # captions, in turn, for a text-conditional network
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    cfg_scale: float = 1.0
    cfg_schedule: Literal["constant", "linear", "power-cosine"] = (
        "constant"  # over steps, or over an AR network's positions
    )
    cfg_power: float | None = None  # of power-cosine
    cfg_interval: tuple[float, float] = (0.0, 1.0)  # shares of the way between which guidance acts
    steps: int | None = None
    order: Literal["confidence", "halton"] | None = None  # which tokens a masked network finds first
    choice_temperature: float | None = None  # of order confidence
    rows: int = Field(16, ge=1)  # rows of one run of the network
    shard_size: int = Field(256, ge=1)  # images between two points of resuming, rounded up to whole runs


class SampleRecipe(Recipe):
    """Recipe of stage sample."""

    stage: Literal["sample"]
    sample: Sample


def main(
    options: Options, *, mode: str | None, proposal: Path | None, decoder: Path | None, batch_size: int | None,
    share: tuple[int, int] | None, prompts: str | None = None,
) -> Artifact | str:  # fmt: skip
    """Generate images; see `tok sample --help`."""
    number = options.sets.get("sample.number")
    if isinstance(number, int) and number < 1:
        raise TokError("-n", "at least 1 image must be asked for", got=str(number))
    proposal_artifact = workspace.choose(
        options, "--proposal", proposal, ["proposal"], lambda a: mode in (None, a.facts["mode"]), "tok train-proposal"
    )
    facts = proposal_artifact.facts
    if mode not in (None, facts["mode"]):
        raise TokError(f"--proposal {proposal}", f"is of mode {facts['mode']}", got=f"--mode {mode}")
    tokenizer_id = proposal_artifact.input_id("tokenizer")
    decoder_artifact = workspace.choose_decoder(options, decoder, tokenizer_id)
    artifact.check_lineage(decoder_artifact, "--decoder", proposal_artifact, "--proposal")
    folder = workspace.recipe_folder(proposal_artifact.inputs["data"]["path"])
    if options.sets.get("sample.order", "confidence") != "confidence":  # the recipe's own is of order confidence
        options = dataclasses.replace(options, sets={"sample.choice_temperature": None, **options.sets})
    if not facts["classes"] and facts.get("condition") != "text" and "sample.cfg_scale" not in options.sets:
        log.info("the proposal network has no classes: guidance is off")
        options = dataclasses.replace(options, sets={**options.sets, "sample.cfg_scale": 1.0})
    options = with_prompts(options, prompts)
    recipe = workspace.load_recipe(options, SampleRecipe, f"sample-{facts['mode']}", folder, {})
    labels = image_labels(recipe, facts["classes"], facts["class_counts"])
    check_prompts(recipe, facts)
    if options.dry_run:
        reads = {"proposal": str(proposal_artifact.path), "decoder": str(decoder_artifact.path)}
        return plan.describe(options, recipe, {}, reads=reads, writes="samples")
    with workspace.session(options) as device:
        settings = sampling_of(recipe.sample, facts["mode"])
        inputs = {
            "proposal": workspace.reference(proposal_artifact),
            "decoder": workspace.reference(decoder_artifact),
            "tokenizer": workspace.tokenizer_reference(proposal_artifact),
            "data": dict(proposal_artifact.inputs["data"]),
        }
        name = f"{facts['mode']}-{facts['name']}"
        draft = workspace.begin(options, "samples", name, resolved(recipe), inputs, device, exclusive=False)
        if isinstance(draft, Artifact):
            return draft
        size = -(-recipe.sample.shard_size // recipe.sample.rows) * recipe.sample.rows
        shards = -(-recipe.sample.number // size)
        index, jobs = share or (distributed.rank(), distributed.world_size())
        machine: _Machine | None = None
        present = lambda: _present(draft.path)  # noqa: E731
        for shard in loop.claimed(
            draft.path, range(index, shards, jobs), present, size=size, unit="image", desc="sample"
        ):
            machine = machine or _Machine(
                proposal_artifact, decoder_artifact, settings, recipe, labels, batch_size, device,
                options.weights.get("text"),
            )  # fmt: skip
            machine.write_shard(draft.path, shard, range(shard * size, min((shard + 1) * size, recipe.sample.number)))
        missing = shards - len(present())
        if missing:
            log.info("%s: %d of %d shards are still to come from other jobs", draft.path, missing, shards)
            return Artifact(draft.path, draft.manifest)
        return _finish(draft, proposal_artifact, recipe, labels, shards)


def with_prompts(options: Options, source: str | None) -> Options:
    """The options with the captions of `--prompts` in them; as many images, unless -n says how many.

    Raises:
        TokError: see `read_prompts`, or several processes that cannot all read standard input.
    """
    if source is None:
        return options
    if source == "-" and distributed.world_size() > 1:
        raise Misuse("--prompts -", "several processes cannot share standard input", next="give a file")
    prompts = read_prompts(source)
    return dataclasses.replace(options, sets={"sample.number": len(prompts), **options.sets, "sample.prompts": prompts})


def check_prompts(recipe: SampleRecipe, facts: Mapping[str, Any]) -> None:
    """Refuse captions for a network that reads none, and none for one that does."""
    prompts, by_text = recipe.sample.prompts, facts.get("condition") == "text"
    if prompts is not None and not by_text:
        kind = "classes" if facts["classes"] else "nothing"
        raise TokError("--prompts", f"the proposal network is conditioned on {kind}, not on captions",
                       next="--classes picks classes" if facts["classes"] else "leave it out")  # fmt: skip
    if by_text and not prompts:
        raise TokError("--prompts", "the proposal network draws what captions say, and there are none",
                       next="give --prompts FILE, or - for standard input, one caption a line")  # fmt: skip
    if prompts and not all(prompt.strip() for prompt in prompts):
        raise TokError("sample.prompts", "an empty caption", next="leave it out")


def class_numbers(asked: list[int | str] | None, names: list[str]) -> list[int]:
    """The classes that images take in turn, as numbers; [-1] where the network knows no classes.

    Raises:
        TokError: a class that does not exist.
    """
    if not names:
        if asked:
            raise TokError("--classes", "the proposal network was trained without classes", got=str(asked))
        return [-1]
    if asked is None:
        return list(range(len(names)))
    found = []
    for given in asked:
        text = str(given).strip()
        if text in names:
            found.append(names.index(text))
        elif text.isdecimal() and int(text) < len(names):
            found.append(int(text))
        else:
            known = f"numbers 0 to {len(names) - 1}" if text.lstrip("-").isdecimal() else nearest(text, names)
            raise TokError("--classes", f"no such class '{text}'", next=known)
    return found


def image_labels(recipe: SampleRecipe, names: list[str], counts: list[int]) -> list[int]:
    """The class of every image: those asked for in turn, or drawn at the training frequencies; -1 without classes.

    Raises:
        TokError: a class that does not exist.
    """
    asked, number = recipe.sample.classes, recipe.sample.number
    if asked == "data" and names:
        weights = torch.tensor(counts, dtype=torch.float64)
        return [int(torch.multinomial(weights, 1, generator=generator(recipe.seed, "class", i))) for i in range(number)]
    numbers = class_numbers(None if asked == "data" else asked, names)
    return [numbers[i % len(numbers)] for i in range(number)]


def sampling_of(section: Sample, mode: str) -> Sampling:
    """The sampler's settings.

    Raises:
        TokError: a value out of range, or a key that this mode, order or schedule does not read.
    """
    names = {field.name for field in dataclasses.fields(Sampling)}
    given = {k: v for k, v in section if k in names and v is not None}
    unread = [k for k in given if k not in PROPOSALS[mode].sampling_keys]
    why = "an autoregressive network decodes token by token and does not read it"
    if not unread and section.cfg_power is not None and section.cfg_schedule != "power-cosine":
        unread, why = ["cfg_power"], f"schedule {section.cfg_schedule} does not read it"
    if not unread and section.choice_temperature is not None and section.order not in (None, "confidence"):
        unread, why = ["choice_temperature"], f"order {section.order} does not read it"
    if unread:
        raise TokError(f"sample.{unread[0]}", why, next=f"leave it out, or --set sample.{unread[0]}=null")
    return Sampling(**given)


class _Machine:
    """The loaded networks, and one run of them."""

    def __init__(
        self, proposal: Artifact, decoder: Artifact, settings: Sampling, recipe: SampleRecipe, labels: list[int],
        batch_size: int | None, device: torch.device, text_weights: Path | None,
    ) -> None:  # fmt: skip
        tokenizer = artifact.locate(
            str(proposal.input_id("tokenizer")), proposal.inputs["tokenizer"]["path"], proposal.path.parent
        )
        self.proposal: Proposal = assemble.load_proposal(proposal, device)
        self.tokenizer: Tokenizer = assemble.load_tokenizer(tokenizer, device)
        self.decoder: nn.Module = assemble.load_decoder(decoder, device)
        self.settings, self.recipe, self.device = settings, recipe, device
        encode = assemble.load_caption_encoder(proposal, text_weights, device)
        self.conditions = (
            encode(recipe.sample.prompts or []) if encode else torch.tensor(labels)
        )  # images take them in turn
        self.batch_size = batch_size or recipe.sample.rows

    def write_shard(self, folder: Path, shard: int, numbers: range) -> None:
        """Sample, decode and write images; the indices come last and say that the shard is whole."""
        (folder / "images").mkdir(exist_ok=True)
        rows, found = self.recipe.sample.rows, []
        with ThreadPoolExecutor(2) as writers:  # PNG compression overlaps with the next run
            waiting: list[Future[None]] = []
            for first in range(numbers.start, numbers.stop, rows):
                run = range(first, min(first + rows, numbers.stop))
                for start in range(0, len(run), self.batch_size):
                    part = run[start : start + self.batch_size]
                    indices, images = self.run(part)
                    found.append(indices)
                    waiting += [
                        writers.submit(_write_png, measure.sample_path(folder, i), im)
                        for i, im in zip(part, images, strict=True)
                    ]
            for future in waiting:
                future.result()
        codes = torch.cat(found).numpy()
        dtype = np.uint16 if self.tokenizer.quantizer.codebook_size <= 1 << 16 else np.uint32
        with atomic_write(folder / f"indices-{shard:05d}.npy") as tmp, open(tmp, "wb") as file:
            np.save(file, codes.astype(dtype))

    @torch.no_grad()
    def run(self, numbers: range) -> tuple[Tensor, Tensor]:
        """Indices (b, n) and uint8 images (b, 3, s, s) of those image numbers, which lie in one group of rows."""
        rows = self.recipe.sample.rows
        condition = self.proposal.null(rows).cpu()
        seeds = torch.zeros(rows, dtype=torch.int64)
        at = [number % rows for number in numbers]
        for row, number in zip(at, numbers, strict=True):
            condition[row] = self.conditions[number % len(self.conditions)]
            seeds[row] = seed_of(self.recipe.seed, "image", number)
        indices = self.proposal.generate(condition.to(self.device), seeds.to(self.device), self.settings)
        images = pictures.to_uint8(self.decoder(self.tokenizer.codes(indices)))
        return indices[at].cpu(), images[at].cpu()


def _write_png(path: Path, image: Tensor) -> None:
    try:
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(path, compress_level=1)
    except OSError as error:
        raise disk_error(path, error) from error


def _present(folder: Path) -> set[int]:
    return {int(p.stem.removeprefix("indices-")) for p in folder.glob("indices-*.npy")}


def _finish(draft: Draft, proposal: Artifact, recipe: SampleRecipe, labels: list[int], shards: int) -> Artifact:
    with locked(draft.path, ".finish.lock") as got:
        if not got:
            log.info("%s: another job completes it", draft.path)
            return Artifact(draft.path, draft.manifest)
        number = recipe.sample.number
        facts: Mapping[str, Any] = {
            **{key: proposal.facts[key] for key in ("name", "mode", "codebook_size", "grid", "use_size", "classes")},
            "number": number,
            "labels": labels,
            "shards": shards,
        }
        write_listing(draft.path, "images.sha256", [f"images/{i:06d}.png" for i in range(number)])
        shown = range(min(number, 256))
        images = measure.read_samples(Artifact(draft.path, {"facts": facts}), shown)
        prompts = recipe.sample.prompts or []
        of = torch.tensor([i % len(prompts) for i in shown] if prompts else labels[: len(shown)])
        pictures.save_png(pictures.class_sheet(images, of, prompts or facts["classes"]), draft.path / "sheet.png")
        payload = ["images.sha256", *(f"indices-{s:05d}.npy" for s in range(shards))]
        return draft.finish(facts, payload=payload, extras=["sheet.png"])
