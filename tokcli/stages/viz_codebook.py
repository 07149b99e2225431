"""`tok viz-codebook`: what each code means, as pictures with the numbers behind them and a page to walk through."""

import logging
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from tokcli import loading, metrics, pictures
from tokcli.artifact.draft import write_listing
from tokcli.artifact.opening import Artifact
from tokcli.artifact.plans import Plan
from tokcli.codebook.embedding import Panel, draw_embeddings, embed, embedding_numbers
from tokcli.codebook.page import write_page
from tokcli.codebook.view import Codebook, see, write_pictures
from tokcli.command import plan
from tokcli.command.data import data_spec
from tokcli.command.inputs import choose, load_recipe, with_preset
from tokcli.command.options import Options
from tokcli.command.session import begin, reference, session
from tokcli.data.reading import read_batches
from tokcli.data.sources import ImageSource, evenly, open_source, padded
from tokcli.data.transforms import evaluation_transform, filled, unit
from tokcli.errors import TokError
from tokcli.metrics.code_usage import count_codes
from tokcli.models import Tokenizer
from tokcli.quantizers import Quantizer
from tokcli.recipe import MAX_PIXELS
from tokcli.recipe.check import resolved
from tokcli.recipe.sections import Pixels, Recipe, Section

log = logging.getLogger("tok")


class Viz(Section):
    """What the pictures of a codebook show.

    Args:
        images: largest number of images to read, evenly spread over the data.
        columns: a code's sheet shows columns x columns patches.
        context: pixels around a patch that are shown too.
        points: features on the t-SNE map.
        perplexity: perplexity of the t-SNE.
        max_pixels: largest number of pixels of an image that is decoded; larger ones count as unreadable. WebP and AVIF may have half, progressive JPEG four fifths of it.
    """

    images: int = Field(2000, ge=1)
    columns: int = Field(6, ge=1, le=20)
    context: int = Field(4, ge=0, le=32)
    points: int = Field(2000, ge=4)
    perplexity: float = Field(30.0, gt=0)
    max_pixels: Pixels = MAX_PIXELS


class VizRecipe(Recipe):
    """Recipe of stage viz.

    Args:
        viz: see `viz`.
    """

    stage: Literal["viz"]
    viz: Viz


def main(options: Options, *, tokenizer: Path | None, against: Path | None) -> Artifact | Plan:
    """Draw a codebook, and another beside it; see `tok viz-codebook --help`."""
    made_by = choose(options, "--tokenizer", tokenizer, ["tokenizer"], maker="tok train-tokenizer")
    drawn = {"tokenizer": made_by}
    if against is not None:
        drawn["against"] = choose(options, "--against", against, ["tokenizer"])
        if drawn["against"].id == made_by.id:
            raise TokError(f"--against {against}", "is the same tokenizer", got=made_by.id, next="Name another one")
    spec = data_spec(options, made_by)
    options, _ = with_preset(options, spec, made_by)
    recipe = load_recipe(options, VizRecipe, "viz", {})
    if options.dry_run:
        images = plan.find_images(spec, made_by.facts["use_size"], options.labels, recipe.viz.max_pixels)
        inputs = {"data": images.entry} | {role: reference(a) for role, a in drawn.items()}
        facts = {key: made_by.facts[key] for key in ("name", "codebook_size")}
        return plan.describe(
            options, recipe, {}, reads={"data": spec, **drawn}, writes="viz", facts=facts, inputs=inputs
        )
    with session(options) as device:
        source = _source(options, recipe, spec, made_by)
        inputs = {"data": {"id": source.id, "path": source.name}}
        inputs |= {role: reference(a) for role, a in drawn.items()}
        draft = begin(options, "viz", made_by.facts["name"], resolved(recipe), inputs, device)
        if isinstance(draft, Artifact):
            return draft
        views = []
        for (role, a), name in zip(drawn.items(), _names(list(drawn.values())), strict=True):
            if a.facts["use_size"] != made_by.facts["use_size"]:  # vector images are rendered anew
                source = _source(options, recipe, spec, a)
            views.append(_draw(draft.path, role, a, name, source, recipe, device))
        draw_embeddings([view.panel for view in views], draft.path / "map.png", source.classes)
        page = _write_page(draft.path, views, source, recipe)
        write_listing(draft.path, "page.sha256", page)
        facts = {
            "name": made_by.facts["name"],
            "images": len(views[0].seen.images),
            "codebook_size": len(views[0].book.counts),
        }
        if against is not None:
            facts |= {"against": drawn["against"].facts["name"]}
        measured = {view.book.name: view.metrics for view in views}
        return draft.finish(
            facts,
            payload=[name for view in views for name in view.payload],
            extras=["map.png", "page.sha256", *(name for view in views for name in view.extras)],
            metrics=measured if against is not None else views[0].metrics,
        )


def _source(options: Options, recipe: VizRecipe, spec: str, tokenizer: Artifact) -> ImageSource:
    size, most = tokenizer.facts["use_size"], recipe.viz.max_pixels
    source = open_source(spec, size=size, labels=options.labels, max_pixels=most)
    return padded(source, size, tokenizer.facts.get("padding"))


def _names(given: list[Artifact]) -> list[str]:
    """What to call the tokenizers: their names, with the ends of their ids where two are called the same."""
    names = [a.facts["name"] for a in given]
    return names if len(set(names)) == len(names) else [f"{a.facts['name']} {a.id[-6:]}" for a in given]


class _Seen(NamedTuple):
    """Images with their tokens, and encoder features of some non-blank patches."""

    numbers: list[int]
    images: Tensor  # uint8 (N, 3, s, s)
    indices: Tensor  # (N, n)
    distances: Tensor  # (N, n) of each token's features to its code
    labels: Tensor  # (N,)
    features: Tensor  # (m, d)
    feature_labels: Tensor  # (m,)
    grid: tuple[int, int]


class _View(NamedTuple):
    """What was drawn of one tokenizer."""

    panel: Panel
    book: Codebook
    seen: _Seen
    payload: list[str]
    extras: list[str]
    metrics: dict[str, Any]


def as_compared(quantizer: Quantizer, rows: Tensor) -> Tensor:
    """Features or codes as the quantizer compares them: float32, l2-normalised where it uses the cosine."""
    return F.normalize(rows.float(), dim=-1) if getattr(quantizer, "metric", "") == "cosine" else rows.float()


@torch.no_grad()
def _read(network: Tokenizer, source: ImageSource, size: int, viz: Viz, device: torch.device) -> _Seen:
    chosen = evenly(len(source), viz.images)
    grid = network.grid(size)
    read, images, indices, distances, labels, features, owners = [], [], [], [], [], [], []
    keep = max(1, 4 * viz.points // max(1, len(chosen)))  # per image: a few times what is drawn, not every patch
    for numbers, batch in read_batches(source, evaluation_transform(size), chosen, desc="tokens"):
        pixels = unit(batch, device)
        encoded = network.encoder(pixels).float()
        found = network.quantizer(encoded).indices
        z_e = as_compared(network.quantizer, encoded)
        read += numbers
        images.append(batch)
        indices.append(found.cpu())
        distances.append((z_e - as_compared(network.quantizer, network.codes(found))).square().sum(-1).cpu())
        of = torch.tensor([source.label(i) for i in numbers])
        labels.append(of)
        content = filled(batch, grid)
        for row in range(len(batch)):
            places = content[row].nonzero().flatten()
            places = places[:: max(1, len(places) // keep)][:keep]
            features.append(z_e[row].cpu()[places])
            owners.append(of[row].repeat(len(places)))
    every = torch.cat
    return _Seen(
        read, every(images), every(indices), every(distances), every(labels), every(features), every(owners), grid
    )


def _draw(
    root: Path, role: str, a: Artifact, name: str, source: ImageSource, recipe: VizRecipe, device: torch.device
) -> _View:
    """Write all pictures and tables of one tokenizer but the map, which several share."""
    network = loading.load_tokenizer(a, device)
    viz, quantizer = recipe.viz, network.quantizer
    if not quantizer.discrete:
        raise TokError(
            f"--{role} {a.path}",
            "was trained without a quantizer and has no codes",
            next="Choose a tokenizer with a codebook",
        )
    folder = root if role == "tokenizer" else root / role
    folder.mkdir(exist_ok=True)
    seen = _read(network, source, a.facts["use_size"], viz, device)
    k = quantizer.codebook_size
    counts = count_codes(seen.indices, k)
    measured: dict[str, Any] = {
        "codebook_usage": metrics.codebook_usage(counts),
        "codebook_perplexity": metrics.codebook_perplexity(counts),
        "tokens": int(counts.sum()),
    }
    codes = as_compared(quantizer, quantizer.codes(torch.arange(k, device=device))).cpu()
    book = see(
        name,
        seen.images,
        seen.indices,
        seen.labels,
        seen.grid,
        codes,
        seen.distances,
        perplexity=viz.perplexity,
        seed=recipe.seed,
    )
    sheets, tables, drawn = write_pictures(
        folder,
        book,
        source.classes,
        columns=viz.columns,
        context=viz.context,
        usage=measured["codebook_usage"],
        perplexity=measured["codebook_perplexity"],
    )
    at = folder.relative_to(root)
    write_listing(root, str(at / "codes.sha256"), [str(at / name) for name in sheets])
    owners = None if book.purity is None else torch.from_numpy(book.purity.owner)
    if book.purity is None:
        log.info("%s: no image has a class, so there is no purity", source.name)
    else:
        measured["purity"], measured["purity_shuffled"] = book.purity.mean()
    embedding = embed(seen.features, codes, limit=viz.points, perplexity=viz.perplexity, seed=recipe.seed)
    rows = embedding_numbers(embedding, seen.feature_labels, source.classes, owners)
    pictures.write_csv(folder / "map.csv", rows)
    images = [
        {"image": i, "key": source.key(number), "label": source.classes[c] if 0 <= c < len(source.classes) else ""}
        for i, (number, c) in enumerate(zip(seen.numbers, seen.labels.tolist(), strict=True))
    ]
    pictures.write_csv(folder / "images.csv", images)
    panel = Panel(book.name, embedding, seen.feature_labels, owners)
    payload = [str(at / name) for name in ("codes.sha256", "map.csv", "images.csv", *tables)]
    return _View(panel, book, seen, payload, [str(at / name) for name in drawn], measured)


def _write_page(folder: Path, views: list[_View], source: ImageSource, recipe: VizRecipe) -> list[str]:
    """The page, of one tokenizer or two."""
    seen = views[0].seen
    names = [next(iter(source.captions(i)), "") or source.key(i) for i in seen.numbers]
    return write_page(
        folder,
        [view.book for view in views],
        seen.labels,
        names,
        source.classes,
        perplexities=[view.metrics["codebook_perplexity"] for view in views],
        context=recipe.viz.context,
        title=" and ".join(view.book.name for view in views) + f" on {source.name}",
    )
