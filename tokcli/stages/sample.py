"""`tok sample`: tokens from a proposal network, pixels from a decoder, one seed per image.

An image's randomness is a function of (seed, its number): batch size, number of processes and resuming do not change it. Pixels
are made and written while the next batch's tokens are drawn.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tokcli import loading, pictures
from tokcli.artifact.draft import Draft, write_listing
from tokcli.artifact.opening import Artifact, check_lineage
from tokcli.artifact.plans import Plan
from tokcli.command import compute, plan
from tokcli.command.bulk import Held, claimed, completed, finishing, left_to_another
from tokcli.command.inputs import choose, choose_decoder, with_preset
from tokcli.command.options import Options
from tokcli.command.session import begin, reference, session, share_of, tokenizer_reference
from tokcli.command.weight_files import check_weights, network_input, weights_read
from tokcli.data import sample_store as store
from tokcli.data.transforms import padding_kept
from tokcli.device import check_compiler, on_meta
from tokcli.errors import TokError
from tokcli.files import Behind
from tokcli.measure.previews import LISTING, read_samples
from tokcli.progress import bar
from tokcli.proposals.protocol import Precision
from tokcli.recipe.check import resolved
from tokcli.sampling.generator import Generator, in_window, sheet_of, shown_on_sheet
from tokcli.sampling.memorisation import PIXELS, Beside, beside_of, compare
from tokcli.sampling.request import Request, request_of, sweep_points, with_prompts
from tokcli.training.signals import StopSignal

log = logging.getLogger("tok")


def main(
    options: Options,
    *,
    mode: str | None,
    proposal: Path | None,
    decoder: Path | None,
    share: tuple[int, int] | None,
    prompts: str | None = None,
    sweep: Sequence[str] = (),
    edit: Path | None = None,
    mask: Path | None = None,
) -> Artifact | Plan | list[Artifact] | list[Plan]:
    """Generate images; see `tok sample --help`."""
    options, points = with_prompts(options, prompts), sweep_points(sweep, options.sets)
    proposal_artifact = choose(
        options, "--proposal", proposal, ["proposal"], lambda a: mode in (None, a.facts["mode"]), "tok train-proposal"
    )
    if mode not in (None, proposal_artifact.facts["mode"]):
        raise TokError(
            f"--proposal {proposal}",
            f"is of mode {proposal_artifact.facts['mode']}",
            got=f"--mode {mode}",
            next="Leave --mode out, or choose another network",
        )
    check_weights(options, weights_read(proposal_artifact.recipe))
    if "text" in options.weights:
        loading.check_text_weights(proposal_artifact, options.weights["text"])
    decoder_artifact = choose_decoder(options, decoder, proposal_artifact.input_id("tokenizer"))
    check_lineage(decoder_artifact, "--decoder", proposal_artifact, "--proposal")
    options, _ = with_preset(options, proposal_artifact.inputs["data"]["path"], proposal_artifact)
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
        beside = beside_of(todo, proposal_artifact, device)  # now: what is missing must not show when all is drawn
        made = [
            d if isinstance(d, Artifact) else _sample(d, r, proposal_artifact, generator, beside, shared)
            for d, r in zip(drafts, requests, strict=True)
        ]
    return made if sweep else made[0]


def _plan(request: Request, proposal: Artifact, decoder: Artifact) -> Plan:
    reads: dict[str, Artifact | str] = {"proposal": proposal, "decoder": decoder}
    if request.recipe.sample.neighbours:
        reads["training images"] = proposal.inputs["data"]["path"]
    return plan.describe(
        request.options,
        request.recipe,
        {},
        reads=reads,
        writes="samples",
        facts=_facts(request, proposal),
        inputs=_inputs(request, proposal, decoder, planned=True),
        compute=_compute(request, proposal, decoder),
    )


def _compute(request: Request, proposal: Artifact, decoder: Artifact) -> compute.Compute:
    """What the samples take; each pass over a batch reads the network's weights, each token what is cached of its image."""
    asked, number = request.recipe.sample, len(request.labels)
    with on_meta():
        network, pixels = loading.proposal_of(proposal), loading.decoder_of(decoder)
    flop = traffic = 0.0
    for drawn in request.edit.drawn if request.edit else [network.tokens]:
        settings = in_window(request.settings, drawn, network) if request.edit else request.settings
        drawing = network.drawing(settings, drawn)
        weights = drawing.weights * (2 if asked.precision == "bfloat16" else 4)
        traffic += -(-number // asked.batch_size) * drawing.passes * weights + number * drawing.cached
        flop += drawing.flop + compute.decoding(pixels, decoder.facts["code_dim"], network.tokens)
    return compute.bulk("image", flop, number, compute.ON_GPUS[asked.precision], traffic)


def _begin(request: Request, proposal: Artifact, decoder: Artifact, device: torch.device) -> Draft | Artifact:
    name = f"{proposal.facts['mode']}-{proposal.facts['name']}"
    recipe, inputs = resolved(request.recipe), _inputs(request, proposal, decoder)
    settled = request.recipe.settled
    return begin(request.options, "samples", name, recipe, inputs, device, exclusive=False, settled=settled)


def _inputs(
    request: Request, proposal: Artifact, decoder: Artifact, *, planned: bool = False
) -> dict[str, dict[str, str]]:
    beside = request.recipe.sample.neighbours
    extractor = {"weights-neighbours": network_input(beside, planned=planned)} if beside not in (None, PIXELS) else {}
    return {
        "proposal": reference(proposal),
        "decoder": reference(decoder),
        "tokenizer": tokenizer_reference(proposal),
        "data": dict(proposal.inputs["data"]),
        **(request.edit.inputs if request.edit else {}),
        **extractor,
    }


def _facts(request: Request, proposal: Artifact) -> dict[str, Any]:
    """The facts of the samples that are known beforehand: all but their labels, which a plan need not list."""
    asked, edit = request.recipe.sample, request.edit
    copied = ("name", "mode", "codebook_size", "grid", "use_size", "classes")
    return {
        **{key: proposal.facts[key] for key in copied},
        **padding_kept(proposal.facts),
        "number": len(request.labels),
        "format": asked.format,
        "per_file": asked.shard_size,
        **({"edit": edit.fact} if edit else {}),
    }


def _sample(
    draft: Draft,
    request: Request,
    proposal: Artifact,
    generator: Any,
    beside: Mapping[str, Beside],
    share: tuple[int, int],
) -> Artifact:
    recipe, asked = request.recipe, request.recipe.sample
    number, size = len(request.labels), asked.batch_size
    batches = -(-number // size)
    index, jobs = share

    def present() -> set[int]:
        """The batches that are written: all, where another job has put them together meanwhile."""
        return set(range(batches)) if completed(draft.path) else store.present(draft.path)

    done = present()
    todo = [batch for batch in range(index, batches, jobs) if batch not in done]
    shown = bar(len(todo) * size, unit="image", desc="sample")
    with StopSignal() as stop, shown, Held() as held, Behind() as behind:
        for batch in claimed(draft.path, todo, present, stop, held):
            networks: Generator = generator(asked.precision)
            numbers = range(batch * size, min((batch + 1) * size, number))
            condition = networks.conditions(numbers, request.labels, asked.prompts)
            rows = min(size, number) if asked.compile else 0
            tokens = networks.tokens(recipe.seed, numbers, condition, request.settings, request.edit, rows)
            behind(_write, draft.path, batch, numbers, tokens, networks, request, held)
            shown.update(size)
    missing = batches - len(present())
    if missing:
        log.info("%s: %d of %d batches are still to come from other jobs", draft.path, missing, batches)
        return Artifact(draft.path, draft.manifest)
    return _finish(draft, proposal, request, beside)


def _write(
    folder: Path, batch: int, numbers: range, tokens: torch.Tensor, networks: Generator, request: Request, held: Held
) -> None:
    with held.pop(batch):  # only now may another job look for it
        edit, images = request.edit, networks.pixels(tokens.unflatten(1, (-1, networks.proposal.tokens)).flatten(0, 1))
        images = images if edit is None else images.unflatten(0, (-1, len(edit.windows)))
        finish = None if edit is None else edit.paste
        store.write_batch(folder, batch, numbers, tokens.cpu(), images, request.recipe.sample.format, finish)


def _finish(draft: Draft, proposal: Artifact, request: Request, beside: Mapping[str, Beside]) -> Artifact:
    asked, labels, folder = request.recipe.sample, request.labels, draft.path
    prompts = asked.prompts or []
    with finishing(folder) as mine:
        if not mine:
            return left_to_another(draft)
        store.check_images(folder, len(labels), asked.format)
        payload = store.merge(
            folder,
            len(labels),
            per_file=asked.shard_size,
            codebook_size=proposal.facts["codebook_size"],
            form=asked.format,
            labels=labels,
            classes=proposal.facts["classes"],
            captions=[prompts[i % len(prompts)] for i in range(len(labels))] if prompts else [],
        )
        if asked.format == "png":
            files = [store.image_file(i, asked.format, asked.shard_size) for i in range(len(labels))]
            write_listing(folder, LISTING, files)
            payload.append(LISTING)
        facts = _facts(request, proposal) | {"labels": labels}
        made = Artifact(folder, {"facts": facts})
        rows = [i % len(prompts) for i in range(len(labels))] if prompts else labels
        shown = shown_on_sheet(rows, asked.grid)
        small = request.edit.small if request.edit else lambda image: image
        sheet = sheet_of(
            torch.cat([small(read_samples(made, [number])[0])[None] for number in shown]),
            [rows[i] for i in shown],
            prompts or facts["classes"],
            asked.grid,
            request.edit,
        )
        pictures.save_png(sheet, folder / "sheet.png")
        extras, metrics = ["sheet.png"], {}
        if asked.neighbours:
            metrics = compare(made, asked.neighbours, beside[asked.neighbours])
            extras.append("neighbours.png")
        done = draft.finish(facts, payload=payload, extras=extras, metrics=metrics)
        store.clean(folder)
        return done
