"""`tok sample`: tokens from a proposal network, pixels from a decoder, one seed per image.

An image's randomness is a function of (seed, its number): batch size, number of processes and resuming do not change it. Pixels
are made and written while the next batch's tokens are drawn.
"""

import contextlib
import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tokcli import build, loading, pictures
from tokcli.artifact.draft import Draft, locked, write_listing
from tokcli.artifact.manifest import read_manifest
from tokcli.artifact.plans import Plan
from tokcli.artifact.reading import Artifact, check_lineage, locate, open_artifact
from tokcli.command import compute, plan
from tokcli.command.bulk import claimed
from tokcli.command.inputs import check_weights, choose, choose_decoder, load_recipe, recipe_folder
from tokcli.command.options import Options
from tokcli.command.output import begin, reference, tokenizer_reference
from tokcli.command.session import session, share_of
from tokcli.data import sample_store as store
from tokcli.data.reading import BATCH, read_batches
from tokcli.data.sources import ImageSource, evenly, limited, open_source, sibling
from tokcli.data.transforms import evaluation_transform
from tokcli.device.meta import on_meta
from tokcli.errors import Misuse, TokError
from tokcli.measure.previews import read_samples
from tokcli.pretrained import network_class
from tokcli.proposals import Proposal, Sampling
from tokcli.proposals.protocol import Precision
from tokcli.recipe.check import resolved
from tokcli.sampling import contact_sheet, memorisation
from tokcli.sampling.edits import Edit, read_edit
from tokcli.sampling.generator import Generator
from tokcli.sampling.request import (
    SampleRecipe,
    Unnamed,
    check_prompts,
    image_labels,
    point_name,
    sampling_of,
    sweep_points,
    with_defaults,
    with_prompts,
    without_replaced,
)
from tokcli.training.compiling import check_compiler

log = logging.getLogger("tok")
AHEAD = 2  # batches whose pixels may be waiting
COMPARED = 1000  # samples, and held-out images, whose nearest training image is looked for


@dataclasses.dataclass(frozen=True)
class Request:
    """One samples artifact to be made."""

    options: Options
    recipe: SampleRecipe
    settings: Sampling
    labels: Sequence[int]
    edit: Edit | None


class Beside(NamedTuple):
    """What `--neighbours` compares with: training images, and the features by which they are near."""

    training: ImageSource
    features: Callable[[torch.Tensor], torch.Tensor]


def main(
    options: Options, *, mode: str | None, proposal: Path | None, decoder: Path | None, share: tuple[int, int] | None,
    prompts: str | None = None, sweep: Sequence[str] = (), edit: Path | None = None, mask: Path | None = None,
) -> Artifact | Plan | list[Artifact] | list[Plan]:  # fmt: skip
    """Generate images; see `tok sample --help`."""
    options, points = with_prompts(options, prompts), sweep_points(sweep, options.sets)
    proposal_artifact = choose(
        options, "--proposal", proposal, ["proposal"], lambda a: mode in (None, a.facts["mode"]), "tok train-proposal"
    )
    if mode not in (None, proposal_artifact.facts["mode"]):
        raise TokError(f"--proposal {proposal}", f"is of mode {proposal_artifact.facts['mode']}", got=f"--mode {mode}")
    check_weights(options, build.weights_read(proposal_artifact.recipe))
    decoder_artifact = choose_decoder(options, decoder, proposal_artifact.input_id("tokenizer"))
    check_lineage(decoder_artifact, "--decoder", proposal_artifact, "--proposal")
    requests = [request_of(options, point, proposal_artifact, edit, mask) for point in points]
    if options.dry_run:
        plans = [_plan(request, proposal_artifact, decoder_artifact) for request in requests]
        return plans if sweep else plans[0]
    with session(options) as device:
        if any(r.recipe.sample.compile for r in requests):
            check_compiler("--compile", device)
        generators: dict[str, Generator] = {}  # loaded when there is something to draw, once for all points

        def generator(precision: Precision) -> Generator:
            if precision not in generators:
                generators[precision] = Generator(
                    proposal_artifact,
                    decoder_artifact,
                    device,
                    precision=precision,
                    text_weights=options.weights.get("text"),
                )
            return generators[precision]

        shared = share_of(share)
        # all points first: a rank that is ahead must not wait at the next one for a rank that still puts the last together
        drafts = [_begin(r, proposal_artifact, decoder_artifact, device) for r in requests]
        todo = [r.recipe.sample.neighbours for d, r in zip(drafts, requests, strict=True) if isinstance(d, Draft)]
        beside = _beside(todo, proposal_artifact, device)  # now: what is missing must not show when all is drawn
        made = [
            d if isinstance(d, Artifact) else _sample(d, r, proposal_artifact, generator, beside, shared, device)
            for d, r in zip(drafts, requests, strict=True)
        ]
    return made if sweep else made[0]


def _plan(request: Request, proposal: Artifact, decoder: Artifact) -> Plan:
    reads: dict[str, Artifact | str] = {"proposal": proposal, "decoder": decoder}
    if request.recipe.sample.neighbours:
        reads["training images"] = proposal.inputs["data"]["path"]
    return plan.describe(
        request.options, request.recipe, {}, reads=reads, writes="samples",
        facts=_facts(request, proposal), inputs=_inputs(request, proposal, decoder),
        compute=_compute(request, proposal, decoder),
    )  # fmt: skip


def _compute(request: Request, proposal: Artifact, decoder: Artifact) -> compute.Compute:
    """What the samples take; each pass over a batch reads the network's weights, each token what is cached of its image."""
    asked, number = request.recipe.sample, len(request.labels)
    with on_meta():
        network, pixels = loading.proposal_of(proposal), loading.decoder_of(decoder)
    drawing = network.drawing(request.settings, int(request.edit.drawn.sum()) if request.edit else network.tokens)
    weights = drawing.weights * (2 if asked.precision == "bfloat16" else 4)
    traffic = -(-number // asked.batch_size) * drawing.passes * weights + number * drawing.cached
    flop = drawing.flop + compute.decoding(pixels, decoder.facts["code_dim"], network.tokens)
    return compute.bulk("image", flop, number, compute.ON_GPUS[asked.precision], traffic)


def request_of(
    options: Options, point: Mapping[str, Any], proposal: Artifact, edit: Path | None, mask: Path | None
) -> Request:
    """The recipe of one point of a sweep, and what follows from it; whatever is wrong with it is said here."""
    facts, sets = proposal.facts, without_replaced({**options.sets, **point})
    if not facts["classes"] and facts.get("condition") != "text" and "sample.cfg_scale" not in sets:
        log.info("the proposal network has no classes: guidance is off")
        sets["sample.cfg_scale"] = 1.0
    out = options.out / point_name(point) if options.out and point else options.out
    options = dataclasses.replace(options, sets=sets, out=out)
    folder = recipe_folder(proposal.inputs["data"]["path"])
    recipe = load_recipe(options, SampleRecipe, f"sample-{facts['mode']}", folder, {})
    with on_meta():
        network = loading.proposal_of(proposal)
    recipe = with_defaults(recipe, network)
    settings, asked = sampling_of(recipe.sample, network), recipe.sample
    labels = image_labels(recipe, *_classes(proposal))
    check_prompts(asked.prompts, facts)
    if asked.neighbours not in (None, memorisation.PIXELS):
        network_class(str(asked.neighbours), role="extractor")
    picture = None
    if edit is not None:
        picture = read_edit(
            edit, mask, asked.keep_top, mode=facts["mode"], size=facts["use_size"], grid=tuple(facts["grid"])
        )
        settings, labels = _for_edit(settings, labels, picture, recipe, network)
    elif mask is not None or asked.keep_top is not None or asked.paste:
        flag = "--mask" if mask is not None else "--keep-top" if asked.keep_top is not None else "--paste"
        raise Misuse(flag, "is for editing a picture", next="name it: --edit IMAGE")
    network.check_sampling(settings, int(picture.drawn.sum()) if picture else network.tokens)
    return Request(options, recipe, settings, labels, picture)


def _classes(proposal: Artifact) -> tuple[list[str], list[int]]:
    """The names of the classes that the network knows, and how many training images each had; of a plan, what it knows."""
    names, counts = proposal.facts["classes"], proposal.facts["class_counts"]
    if isinstance(names, int):
        names = Unnamed(map(str, range(names)))
    return names, [1] * len(names) if counts is None else counts


def _for_edit(
    settings: Sampling, labels: list[int], edit: Edit, recipe: SampleRecipe, network: Proposal
) -> tuple[Sampling, list[int]]:
    """No class where none was named, hence no guidance; no more steps than tokens to draw."""
    drawn = int(edit.drawn.sum())
    if "steps" in network.sampling_keys and settings.steps > drawn:
        log.info("%d tokens are drawn anew, in as many steps", drawn)
        settings = dataclasses.replace(settings, steps=drawn)
    if recipe.sample.classes is None and network.classes:
        if not network.label_drop:
            why = "the network was trained with every label, and needs the picture's class"
            raise TokError("--classes", why, next="name it: --classes NAME")
        log.info("no --classes: the edit is drawn without class and guidance")
        settings, labels = dataclasses.replace(settings, cfg_scale=1.0), [-1] * len(labels)
    return settings, labels


def _begin(request: Request, proposal: Artifact, decoder: Artifact, device: torch.device) -> Draft | Artifact:
    name = f"{proposal.facts['mode']}-{proposal.facts['name']}"
    recipe, inputs = resolved(request.recipe), _inputs(request, proposal, decoder)
    settled = request.recipe.settled
    return begin(request.options, "samples", name, recipe, inputs, device, exclusive=False, settled=settled)


def _inputs(request: Request, proposal: Artifact, decoder: Artifact) -> dict[str, dict[str, str]]:
    return {
        "proposal": reference(proposal),
        "decoder": reference(decoder),
        "tokenizer": tokenizer_reference(proposal),
        "data": dict(proposal.inputs["data"]),
        **(request.edit.inputs if request.edit else {}),
    }


def _facts(request: Request, proposal: Artifact) -> dict[str, Any]:
    """The facts of the samples that are known beforehand: all but their labels, which a plan need not list."""
    asked, edit = request.recipe.sample, request.edit
    copied = ("name", "mode", "codebook_size", "grid", "use_size", "classes")
    return {
        **{key: proposal.facts[key] for key in copied},
        "number": len(request.labels),
        "format": asked.format,
        "per_file": asked.shard_size,
        **({"edit": {"drawn": edit.drawn.int().tolist(), "paste": asked.paste}} if edit else {}),
    }


def _sample(
    draft: Draft, request: Request, proposal: Artifact, generator: Any, beside: Mapping[str, Beside], share: tuple[int, int],
    device: torch.device,
) -> Artifact:  # fmt: skip
    recipe, asked = request.recipe, request.recipe.sample
    number, size = len(request.labels), asked.batch_size
    batches = -(-number // size)
    index, jobs = share

    def present() -> set[int]:
        """The batches that are written: all, where another job has put them together meanwhile."""
        return set(range(batches)) if _completed(draft.path) else store.present(draft.path)

    held: dict[int, contextlib.ExitStack] = {}
    claims = claimed(
        draft.path, range(index, batches, jobs), present, size=size, unit="image", desc="sample", held=held
    )
    with ThreadPoolExecutor(1) as background:
        waiting: deque[Future[None]] = deque()
        for batch in claims:
            networks: Generator = generator(asked.precision)
            numbers = range(batch * size, min((batch + 1) * size, number))
            condition = networks.conditions(numbers, request.labels, asked.prompts)
            rows = min(size, number) if asked.compile else 0
            tokens = networks.tokens(recipe.seed, numbers, condition, request.settings, request.edit, rows)
            waiting.append(background.submit(_write, draft.path, batch, numbers, tokens, networks, request, held))
            while len(waiting) > AHEAD or (waiting and waiting[0].done()):
                waiting.popleft().result()
        while waiting:
            waiting.popleft().result()
    missing = batches - len(present())
    if missing:
        log.info("%s: %d of %d batches are still to come from other jobs", draft.path, missing, batches)
        return Artifact(draft.path, draft.manifest)
    return _finish(draft, proposal, request, beside)


def _write(
    folder: Path, batch: int, numbers: range, tokens: torch.Tensor, networks: Generator, request: Request,
    held: dict[int, contextlib.ExitStack],
) -> None:  # fmt: skip
    with held.pop(batch):  # only now may another job look for it
        images = networks.pixels(tokens)
        if request.edit is not None and request.recipe.sample.paste:
            images = request.edit.paste(images)
        store.write_batch(folder, batch, numbers, tokens.cpu(), images, request.recipe.sample.format)


def _completed(folder: Path) -> bool:
    return read_manifest(folder, str(folder))["status"] == "complete"


def _finish(draft: Draft, proposal: Artifact, request: Request, beside: Mapping[str, Beside]) -> Artifact:
    asked, labels, folder = request.recipe.sample, request.labels, draft.path
    prompts = asked.prompts or []
    with locked(folder, ".finish.lock") as got:
        if _completed(folder):
            return open_artifact(folder)
        if not got:
            log.info("%s: another job completes it", folder)
            return Artifact(folder, draft.manifest)
        payload = store.merge(
            folder, len(labels), per_file=asked.shard_size, codebook_size=proposal.facts["codebook_size"],
            form=asked.format, labels=labels, classes=proposal.facts["classes"],
            captions=[prompts[i % len(prompts)] for i in range(len(labels))] if prompts else [],
        )  # fmt: skip
        if asked.format == "png":
            files = [str(store.image_path(folder, i).relative_to(folder)) for i in range(len(labels))]
            write_listing(folder, "images.sha256", files)
            payload.append("images.sha256")
        facts = _facts(request, proposal) | {"labels": labels}
        made = Artifact(folder, {"facts": facts})
        rows = [i % len(prompts) for i in range(len(labels))] if prompts else labels
        shown = contact_sheet.shown(rows, asked.grid)
        sheet = contact_sheet.sheet(
            read_samples(made, shown),
            [rows[i] for i in shown],
            prompts or facts["classes"],
            asked.grid,
            request.edit,
        )
        pictures.save_png(sheet, folder / "sheet.png")
        extras, metrics = ["sheet.png"], {}
        if asked.neighbours:
            metrics = _compare(made, asked.neighbours, *beside[asked.neighbours])
            extras.append("neighbours.png")
        done = draft.finish(facts, payload=payload, extras=extras, metrics=metrics)
        store.clean(folder)
        return done


def _training_images(proposal: Artifact) -> ImageSource:
    """The images that the network's tokens are of; all of their data set where the tokens are not at hand to say which."""
    recorded = proposal.inputs["data"]
    source = open_source(recorded["path"], size=proposal.facts["use_size"])
    if source.id != recorded["id"]:
        log.warning("--neighbours: %s holds other images or labels than when its tokens were made", recorded["path"])
    tokens = proposal.inputs["tokens"]
    try:
        made = locate(tokens["id"], tokens["path"], proposal.path.parent)
    except TokError as error:
        log.warning(
            "--neighbours: among all images of %s, for its tokens cannot say which were used: %s", source.name, error
        )
        return source
    return limited(source, made.recipe["tokens"].get("images", 0))  # which the first of them do not have


def _beside(names: Sequence[str | None], proposal: Artifact, device: torch.device) -> dict[str, Beside]:
    """What samples are compared with by each name, opened once for all points of a sweep; {} where nothing is to be compared."""
    asked = dict.fromkeys(name for name in names if name)
    if not asked:
        return {}
    training = _training_images(proposal)
    return {name: Beside(training, memorisation.features_of(name, device)) for name in asked}


def _compare(
    samples: Artifact, name: str, training: ImageSource, features: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, float]:
    """Draw `neighbours.png`; distances to the nearest training image, of samples and of held-out images."""
    size, number = samples.facts["use_size"], min(samples.facts["number"], COMPARED)
    images, beside = read_samples(samples, range(number)), sibling(training.name, "val")
    queries = [images]
    if beside is not None:
        held_out = open_source(beside, size=size)
        some = evenly(len(held_out), COMPARED)
        queries += [batch for _, batch in read_batches(held_out, evaluation_transform(size), some)]
    found = memorisation.nearest(
        torch.cat([features(part) for batch in queries for part in batch.split(BATCH)]),
        training, features, size,
    )  # fmt: skip
    ours, theirs = found[:number], found[number:]
    shown = ours.distances.argsort(stable=True)[: 4 * memorisation.COLUMNS]
    pictures.save_png(memorisation.neighbour_sheet(images[shown], ours[shown]), samples.path / "neighbours.png")
    return memorisation.report(ours, theirs if len(theirs) else None, name)
