"""`tok viz-codebook`: what each code means, as pictures with the numbers behind them."""

import logging
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from tokcli import assemble, measure, metrics, pictures, plan, workspace
from tokcli.artifact import Artifact
from tokcli.data import ImageSource, open_source
from tokcli.draft import write_listing
from tokcli.errors import TokError
from tokcli.metrics.codebook import count_codes
from tokcli.models import Tokenizer
from tokcli.recipe import resolved
from tokcli.schema import Recipe, Section
from tokcli.workspace import Options

log = logging.getLogger("tok")


class Viz(Section):
    """How much is drawn."""

    images: int = Field(2000, ge=1)  # at most so many of the data set, evenly spread
    columns: int = Field(6, ge=1)  # a code's sheet shows columns x columns patches
    context: int = Field(4, ge=0)  # pixels around a patch that are shown too
    points: int = Field(2000, ge=4)  # features on the t-SNE map
    perplexity: float = Field(30.0, gt=0)  # of the t-SNE


class VizRecipe(Recipe):
    """Recipe of stage viz."""

    stage: Literal["viz"]
    viz: Viz


def main(options: Options, *, tokenizer: Path | None) -> Artifact | str:
    """Draw a codebook; see `tok viz-codebook --help`."""
    made_by = workspace.choose(options, "--tokenizer", tokenizer, ["tokenizer"], maker="tok train-tokenizer")
    spec = workspace.data_spec(options, made_by.inputs["data"]["path"])
    recipe = workspace.load_recipe(options, VizRecipe, "viz", workspace.recipe_folder(spec), {})
    if options.dry_run:
        return plan.describe(options, recipe, {}, reads={"data": spec, "tokenizer": str(made_by.path)}, writes="viz")
    source = open_source(spec, size=made_by.facts["use_size"], labels=options.labels)
    with workspace.session(options) as device:
        inputs = {"data": {"id": source.id, "path": source.name}, "tokenizer": workspace.reference(made_by)}
        draft = workspace.begin(options, "viz", made_by.facts["name"], resolved(recipe), inputs, device)
        if isinstance(draft, Artifact):
            return draft
        network = assemble.load_tokenizer(made_by, device)
        if not network.quantizer.discrete:
            raise TokError(f"--tokenizer {made_by.path}", "was trained without a quantizer and has no codes")
        seen = _read(network, source, made_by.facts["use_size"], recipe.viz, device)
        counts = _draw(draft.path, network, seen, source.classes, recipe)
        facts = {"name": made_by.facts["name"], "images": len(seen.images), "codebook_size": len(counts)}
        measured = {
            "codebook_usage": metrics.codebook_usage(counts),
            "codebook_perplexity": metrics.codebook_perplexity(counts),
            "tokens": int(counts.sum()),
        }
        payload = ["codes.sha256", "usage.csv", "map.csv"]
        return draft.finish(facts, payload=payload, extras=["usage.png", "map.png", "ranking.png"], metrics=measured)


class _Seen(NamedTuple):
    """Images with their tokens, and encoder features of some non-blank patches."""

    images: Tensor  # uint8 (N, 3, s, s)
    indices: Tensor  # (N, n)
    labels: Tensor  # (N,)
    features: Tensor  # (m, d)
    feature_labels: Tensor  # (m,)
    grid: tuple[int, int]


@torch.no_grad()
def _read(network: Tokenizer, source: ImageSource, size: int, viz: Viz, device: torch.device) -> _Seen:
    chosen = sorted({int(i) for i in torch.linspace(0, len(source) - 1, min(viz.images, len(source)))})
    grid = network.grid(size)
    images, indices, labels, features, owners = [], [], [], [], []
    keep = max(1, 4 * viz.points // max(1, len(chosen)))  # per image: a few times what is drawn, not every patch
    for numbers, batch in measure.read(source, measure.evaluation_transform(size), chosen):
        pixels = measure.unit(batch, device)
        z_e = network.encoder(pixels).float()
        images.append(batch)
        indices.append(network.quantizer(z_e).indices.cpu())
        of = torch.tensor([source.label(i) for i in numbers])
        labels.append(of)
        content = measure.filled(batch, grid)
        for row in range(len(batch)):
            places = content[row].nonzero().flatten()
            places = places[:: max(1, len(places) // keep)][:keep]
            features.append(z_e[row].cpu()[places])
            owners.append(of[row].repeat(len(places)))
    return _Seen(torch.cat(images), torch.cat(indices), torch.cat(labels), torch.cat(features), torch.cat(owners), grid)


def _draw(folder: Path, network: Tokenizer, seen: _Seen, classes: list[str], recipe: VizRecipe) -> Tensor:
    """Write all pictures and tables; returns the code counts."""
    viz, quantizer, grid = recipe.viz, network.quantizer, seen.grid
    k = quantizer.codebook_size
    counts = count_codes(seen.indices, k)
    (folder / "codes").mkdir(exist_ok=True)
    sheets = pictures.write_code_sheets(
        folder / "codes", seen.images, seen.indices, grid, k, columns=viz.columns, context=viz.context
    )
    write_listing(folder, "codes.sha256", [f"codes/{path.name}" for path in sheets])
    ranking = pictures.ranking_sheet(seen.images, seen.indices, grid, k, context=viz.context)
    pictures.save_png(ranking, folder / "ranking.png")
    pictures.write_csv(folder / "usage.csv", pictures.usage_numbers(counts))
    pictures.draw_usage(
        counts,
        folder / "usage.png",
        usage=metrics.codebook_usage(counts),
        perplexity=metrics.codebook_perplexity(counts),
    )
    codes = quantizer.codes(torch.arange(k, device=next(network.parameters()).device)).cpu().float()
    features = seen.features
    if getattr(quantizer, "metric", "") == "cosine":
        features = F.normalize(features, dim=-1)  # as the quantizer compares them
    embedding = pictures.embed(features, codes, limit=viz.points, perplexity=viz.perplexity, seed=recipe.seed)
    owners = majority_class(seen.indices, seen.labels, k)
    pictures.write_csv(folder / "map.csv", pictures.embedding_numbers(embedding, seen.feature_labels, classes, owners))
    pictures.draw_embedding(
        embedding, folder / "map.png", seen.feature_labels, classes, owners, title="features and codes (t-SNE)"
    )
    return counts


def majority_class(indices: Tensor, labels: Tensor, codebook_size: int) -> Tensor:
    """The class that most of a code's tokens come from, int64 (k,); -1 for unused codes and unlabelled data."""
    number = int(labels.max()) + 1 if len(labels) else 0
    if number < 1:
        return torch.full((codebook_size,), -1)
    known = labels >= 0
    pairs = indices[known] * number + labels[known][:, None]
    table = torch.bincount(pairs.flatten(), minlength=codebook_size * number).view(codebook_size, number)
    return torch.where(table.sum(1) > 0, table.argmax(1), -1)
