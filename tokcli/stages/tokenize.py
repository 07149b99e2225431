"""`tok tokenize`: images to token shards, once, so that proposal networks never see an image."""

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Int64, UInt8
from pydantic import Field, model_validator
from torch import Tensor

from tokcli import loading
from tokcli.artifact.draft import Draft, remove_untouched
from tokcli.artifact.opening import Artifact
from tokcli.artifact.plans import Plan
from tokcli.command import compute, plan
from tokcli.command.bulk import Held, claimed, finishing, left_to_another
from tokcli.command.data import data_spec
from tokcli.command.inputs import choose, load_recipe, with_preset
from tokcli.command.options import Options
from tokcli.command.session import begin, reference, session, share_of
from tokcli.data import token_store
from tokcli.data.reading import Found, read_all
from tokcli.data.sources import BadImage, ImageSource, limited, open_source
from tokcli.data.sources.summary import left_out, refuse_bad, say_problems
from tokcli.data.token_store import merge, write_shard
from tokcli.data.transforms import CropViews, padding_kept, unit
from tokcli.device import autocast, on_meta, tell_if_emulated, tensor_cores
from tokcli.errors import Interrupted, TokError
from tokcli.files import Behind
from tokcli.measure.extractors import rebatch
from tokcli.models import Tokenizer
from tokcli.progress import Bar, bar
from tokcli.proposals.protocol import Precision
from tokcli.recipe import MAX_PIXELS
from tokcli.recipe.check import resolved
from tokcli.recipe.sections import Area, Pixels, Recipe, Section
from tokcli.training.signals import StopSignal

log = logging.getLogger("tok")
BATCH = 64  # views at a time


class Tokens(Section):
    """Which views of each image are tokenized.

    Args:
        crops: views of an image: the centre crop first, then random squares.
        scale: share of the largest square's area that a random crop keeps; [1, 1]: no zoom.
        corners: in place of random crops: sizes of the central square, in units of the image size, each over 1 and at most 2, of
            which the centre and the four corners are taken.
        flip: follow each view by its mirror image.
        images: largest number of images to tokenize, evenly spread over the data; 0: all.
        shard_size: images per file, the unit of resuming and of sharing work.
        max_bad: share of unreadable images that is tolerated; more stop the command.
        max_pixels: largest number of pixels of an image that is decoded; larger ones count as unreadable. WebP and AVIF may have half, progressive JPEG four fifths of it.
        precision: precision of the encoder's matrix products and convolutions; the nearest code is searched for in float32.
    """

    crops: int = Field(1, ge=1)
    scale: Area = (0.8, 1.0)
    corners: list[float] = []
    flip: bool = False
    images: int = Field(0, ge=0)
    shard_size: int = Field(1024, ge=1)
    max_bad: float = Field(0.01, ge=0, le=1)
    max_pixels: Pixels = MAX_PIXELS
    precision: Precision = "float32"

    @model_validator(mode="after")
    def _check(self) -> "Tokens":
        if self.corners and (self.crops > 1 or self.scale != type(self).model_fields["scale"].default):
            raise ValueError("corners say which views there are: crops must be 1 and scale left out beside them")
        if not all(1 < times <= 2 for times in self.corners) or len({*self.corners}) < len(self.corners):
            raise ValueError(f"corners must each be over 1 and at most 2, and differ: got {self.corners}")
        return self


class TokensRecipe(Recipe):
    """Recipe of stage tokens.

    Args:
        tokens: see `tokens`.
    """

    stage: Literal["tokens"]
    tokens: Tokens


def main(options: Options, *, tokenizer: Path | None, share: tuple[int, int] | None) -> Artifact | Plan:
    """Tokenize a data set; see `tok tokenize --help`."""
    made_by = choose(options, "--tokenizer", tokenizer, ["tokenizer"], maker="tok train-tokenizer")
    loading.check_discrete(made_by)
    spec = data_spec(options, made_by)
    options, _ = with_preset(options, spec, made_by)
    recipe = load_recipe(options, TokensRecipe, "tokens", {})
    if options.dry_run:
        return _plan(options, recipe, made_by, spec)
    asked = recipe.tokens
    source = open_source(spec, size=made_by.facts["use_size"], labels=options.labels, max_pixels=asked.max_pixels)
    source = limited(source, asked.images)
    with session(options) as device:
        inputs = {"data": {"id": source.id, "path": source.name}, "tokenizer": reference(made_by)}
        name = made_by.facts["name"]
        draft = begin(options, "tokens", name, resolved(recipe), inputs, device, exclusive=False)
        if isinstance(draft, Artifact):
            return draft
        views = _views(recipe, made_by)
        shards = -(-len(source) // recipe.tokens.shard_size)
        index, number = share_of(share)
        say_problems(source)
        try:
            refuse_bad(source, 0, asked.max_bad, "tokens.max_bad")
        except TokError:  # every job is refused so
            remove_untouched(draft.path)
            raise
        _write_shards(draft, made_by, source, views, recipe, range(index, shards, number), device)
        missing = shards - len(token_store.present(draft.path))
        if missing:
            log.info("%s: %d of %d shards are still to come from other jobs", draft.path, missing, shards)
            return Artifact(draft.path, draft.manifest)
        return _finish(draft, made_by, source, views, recipe, shards)


def _views(recipe: TokensRecipe, made_by: Artifact) -> CropViews:
    asked, crops = recipe.tokens, recipe.tokens.crops - 1  # beside the centre
    return CropViews(
        made_by.facts["use_size"],
        crops=crops,
        flip=asked.flip,
        scale=asked.scale,
        corners=asked.corners,
        padding=made_by.facts.get("padding"),
        seed=recipe.seed,
    )


def _plan(options: Options, recipe: TokensRecipe, made_by: Artifact, spec: str) -> Plan:
    asked = recipe.tokens
    images = plan.find_images(
        spec,
        made_by.facts["use_size"],
        options.labels,
        asked.max_pixels,
        asked.images,
        bound=("tokens.max_bad", asked.max_bad),
    )
    rows = len(images.source) if images.source else recipe.tokens.images or None
    facts = _facts(recipe, made_by, images.classes, _views(recipe, made_by), rows)
    inputs = {"data": images.entry, "tokenizer": reference(made_by)}
    with on_meta():
        tokenizer = loading.tokenizer_of(made_by)
    flop = compute.encoding(tokenizer, made_by.recipe["quantizer"], made_by.facts["use_size"]) * len(facts["views"])
    return plan.describe(
        options,
        recipe,
        {},
        reads={"data": spec, "tokenizer": made_by},
        writes="tokens",
        inputs=inputs,
        facts=facts | {"captions": images.captioned()},
        compute=compute.bulk("image", flop, rows, compute.ON_GPUS[recipe.tokens.precision]),
    )


def _facts(
    recipe: TokensRecipe, made_by: Artifact, classes: list[str] | None, views: CropViews, rows: int | None
) -> dict[str, Any]:
    """The facts of the tokens; None for what a plan does not know of its images."""
    copied = ("name", "codebook_size", "code_dim", "grid", "use_size")
    shards = None if rows is None else -(-rows // recipe.tokens.shard_size)
    return {
        **{key: made_by.facts[key] for key in copied},
        **padding_kept(made_by.facts),
        "classes": classes,
        "views": views.names,
        "rows": rows,
        "shards": shards,
    }


def _write_shards(
    draft: Draft,
    made_by: Artifact,
    source: ImageSource,
    views: CropViews,
    recipe: TokensRecipe,
    mine: range,
    device: torch.device,
) -> None:
    """Write the shards that are missing. Images are read ahead of the network, tokens are written behind it."""
    asked, folder = recipe.tokens, draft.path
    left_out = token_store.skipped(folder)
    refuse = lambda more: refuse_bad(source, left_out + more, asked.max_bad, "tokens.max_bad")  # noqa: E731
    refuse(0)
    if asked.precision == "bfloat16":
        tell_if_emulated("tokens.precision", device)
    done, size = token_store.present(folder), asked.shard_size
    todo = {shard: range(shard * size, min((shard + 1) * size, len(source))) for shard in mine if shard not in done}
    count = sum(map(len, todo.values()))
    interrupted: list[Interrupted] = []

    def numbers() -> Iterator[int]:
        try:
            for shard in claimed(folder, list(todo), lambda: token_store.present(folder), stop, held):
                yield from todo[shard]
        except Interrupted as error:
            interrupted.append(error)  # images are asked for ahead of their turn: what was begun is finished first

    tokenizer: Tokenizer | None = None
    reading = read_all(source, views, indices=numbers(), count=count)
    shown = bar(count, unit="image", desc="tokenize")
    with StopSignal() as stop, shown, Held() as held, contextlib.closing(reading) as images, Behind() as behind:
        for shard, found in itertools.groupby(images, lambda one: one[0] // size):
            tokenizer = tokenizer or loading.load_tokenizer(made_by, device)
            part = _Shard(shard, [], [])
            tokens = _encode(tokenizer, part.readable(found, refuse, shown), device, asked.precision)
            behind(_write, folder, part, tokens, tokenizer, views, source, held)
            left_out += len(part.skipped)
            refuse(0)
    if interrupted:
        raise interrupted[0]


class _Shard(NamedTuple):
    """Which samples of a shard could be read, and which not."""

    number: int
    kept: list[int]
    skipped: list[tuple[str, str]]

    def readable(
        self, found: Iterable[Found], refuse: Callable[[int], None], shown: Bar
    ) -> Iterator[UInt8[Tensor, "views 3 s s"]]:
        """The images of those that can be read; too many others end it at once."""
        for index, image in found:
            refuse(len(self.skipped))
            shown.update()
            if isinstance(image, BadImage):
                log.warning("%s: left out: %s", image.key, image.why)
                self.skipped.append((image.key, image.why))
            else:
                self.kept.append(index)
                yield image


@tensor_cores()
def _encode(
    tokenizer: Tokenizer, images: Iterable[Tensor], device: torch.device, precision: Precision
) -> list[Int64[Tensor, "b n"]]:
    """The tokens of all views, left on the device: it computes while the next images are waited for."""
    there = (views.to(device, non_blocking=True) for views in images)
    with autocast(device, precision):
        return [tokenizer.encode(unit(batch, device)) for batch in rebatch(there, BATCH)]


def _write(
    folder: Path,
    part: _Shard,
    tokens: list[Tensor],
    tokenizer: Tokenizer,
    views: CropViews,
    source: ImageSource,
    held: Held,
) -> None:
    (h, w), kept = tokenizer.grid(views.size), part.kept
    found = torch.cat(tokens) if tokens else torch.empty(0, h * w, dtype=torch.int64)
    with held.pop(part.number):  # only now may another job look for it
        write_shard(
            folder,
            part.number,
            found.cpu().view(len(kept), len(views.names), h * w).numpy(),
            codebook_size=tokenizer.quantizer.codebook_size,
            labels=[source.label(i) for i in kept],
            keys=[source.key(i) for i in kept],
            captions=[source.captions(i) for i in kept],
            skipped=part.skipped,
        )


def _finish(
    draft: Draft, made_by: Artifact, source: ImageSource, views: CropViews, recipe: TokensRecipe, shards: int
) -> Artifact:
    with finishing(draft.path) as mine:
        if not mine:
            return left_to_another(draft)
        merged = merge(draft.path, shards)
        refuse_bad(source, merged.skipped, recipe.tokens.max_bad, "tokens.max_bad")
        facts = _facts(recipe, made_by, source.classes, views, merged.rows) | {"shards": shards}  # some may be short
        facts |= {"left_out": lost} if (lost := left_out(source, merged.skipped)) else {}
        payload = [f"indices-{shard:05d}.npy" for shard in range(shards)] + ["labels.npy"]
        extras = [name for name in ("keys.txt", "captions.jsonl", "skipped.jsonl") if (draft.path / name).exists()]
        return draft.finish(
            facts, payload=payload, extras=extras, provenance={"skipped": merged.skipped + len(source.problems)}
        )
