"""Where features and codes lie: a t-SNE plane of both, coloured by class, and the numbers behind it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from tokcli.codebook.similarity import tsne
from tokcli.pictures.plots import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Ten colours that stay apart for colour-blind eyes (Petroff 2021, arXiv 2107.02270); shapes repeat what they say.
COLOURS = tuple("#3f90da #ffa90e #bd1f01 #94a4a2 #832db6 #a96b59 #e76300 #b9ac70 #717581 #92dadd".split())
SHAPES = ("o", "^", "s", "D", "v")
OTHERS = "#c9c9ce"
NAME_LETTERS = 26
PCA_DIMENSIONS = 50
CODES = 1000


class Embedding(NamedTuple):
    """Features and codes laid out in one plane.

    Args:
        feature_xy: where the features lie.
        code_xy: where the codes lie.
        rows: which of the features given were placed.
        codes: which of the codes given were placed.
    """

    feature_xy: Float[np.ndarray, "m 2"]
    code_xy: Float[np.ndarray, "c 2"]
    rows: Int[np.ndarray, " m"]
    codes: Int[np.ndarray, " c"]


def _some(count: int, limit: int, seed: int) -> Int[np.ndarray, " m"]:
    """All row numbers below `count`, or `limit` random ones in order."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:limit])


def embed(
    features: Float[Tensor, "M d"],
    codes: Float[Tensor, "k d"],
    *,
    limit: int = 2000,
    perplexity: float = 30.0,
    seed: int = 0,
) -> Embedding:
    """t-SNE of features and of up to 1,000 codes together, after PCA to 50 dimensions.

    Give both as the quantizer compares them: l2-normalised where it uses the cosine.

    Args:
        features: encoder outputs before quantization.
        codes: codebook rows.
        limit: at most so many random features.
        perplexity: t-SNE's; lowered where there are few points.
        seed: of both choices and of t-SNE; the layout repeats.

    Raises:
        TokError: fewer than 4 points in all, or values that are not finite.
    """
    from sklearn.decomposition import PCA

    rows, kept = _some(len(features), limit, seed), _some(len(codes), CODES, seed)
    parts = (features.detach().float().cpu().numpy()[rows], codes.detach().float().cpu().numpy()[kept])
    points = np.concatenate(parts)
    if min(points.shape) > PCA_DIMENSIONS and np.isfinite(points).all():
        points = PCA(PCA_DIMENSIONS, svd_solver="full").fit_transform(points)
    xy = tsne(points, perplexity, seed)
    return Embedding(xy[: len(rows)], xy[len(rows) :], rows, kept)


def embedding_numbers(
    embedding: Embedding,
    labels: Int[Tensor, " M"],
    classes: Sequence[str],
    code_labels: Int[Tensor, " k"] | None = None,
) -> list[dict[str, Any]]:
    """One row a point: `kind` (feature or code), `index` (its row in what `embed` was given), `x`, `y`, `label`."""
    shown = labels.cpu().numpy()[embedding.rows]
    parts = (
        ("feature", embedding.feature_xy, embedding.rows, shown),
        ("code", embedding.code_xy, embedding.codes, _of_codes(embedding, code_labels)),
    )
    return [
        {
            "kind": kind,
            "index": int(i),
            "x": f"{x:.4f}",
            "y": f"{y:.4f}",
            "label": classes[c] if 0 <= c < len(classes) else "",
        }
        for kind, xy, index, label in parts
        for (x, y), i, c in zip(xy, index, label, strict=True)
    ]


def _of_codes(embedding: Embedding, code_labels: Tensor | None) -> Int[np.ndarray, " c"]:
    if code_labels is None:
        return np.full(len(embedding.codes), -1)
    return code_labels.cpu().numpy()[embedding.codes]


class Panel(NamedTuple):
    """One tokenizer's map.

    Args:
        title: above it.
        embedding: from `embed`.
        labels: class of each feature given to `embed`, -1 for none.
        code_labels: class of each code (of most of its tokens), -1 for none; None leaves the codes white.
    """

    title: str
    embedding: Embedding
    labels: Int[Tensor, " M"]
    code_labels: Int[Tensor, " k"] | None = None


def draw_embeddings(panels: Sequence[Panel], path: str | Path, classes: Sequence[str]) -> Path:
    """Maps side by side: features as small marks, codes as larger ones with a black edge, both in their classes' colours.

    Args:
        panels: one a tokenizer; the first one's classes are in the legend. One is 1500 x 1050 px, two 2505 x 1050.
        path: the PNG to write.
        classes: names by number; the ten commonest have colours, all others share a grey.
    """
    side, legend = 6.7, 3.3  # inches
    figure = new_figure(side * len(panels) + legend, 7.0)
    width = side * len(panels) + legend
    common = _common_classes(panels[0], classes)
    names: list[tuple[str, str, str]] = []
    for number, panel in enumerate(panels):
        axes = figure.add_axes(((number * side + 0.12) / width, 0.02, (side - 0.24) / width, 0.91))
        names = names or _draw_points(axes, panel, classes, common)
        if number:
            _draw_points(axes, panel, classes, common)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#cccccf")
        axes.margins(0.03)
        points = f"{len(panel.embedding.rows):,} features, {len(panel.embedding.codes):,} codes"
        axes.set_title(f"{panel.title}  ·  {points}" if panel.title else points, fontsize=11, loc="left")
    look: dict[str, Any] = {"s": 70, "linewidth": 0.9}
    handles = [axes.scatter([], [], marker=m, color=c, label=name, **look) for name, c, m in names]
    handles.append(axes.scatter([], [], color="white", edgecolor="black", label="code", **look))
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1 - (legend - 0.1) / width, 0.94),
        frameon=False,
        fontsize=11,
        title="class of the image (of a code: of\nmost of its tokens; grey: unused)",
        title_fontsize=10,
        alignment="left",
        labelspacing=0.7,
    )
    return save_figure(figure, path)


def _common_classes(panel: Panel, classes: Sequence[str]) -> Int[np.ndarray, " c"]:
    """The commonest classes among a panel's features, as many as there are colours, by number."""
    shown = panel.labels.cpu().numpy()[panel.embedding.rows]
    present = np.bincount(shown[shown >= 0], minlength=len(classes))
    common = np.sort(np.argsort(-present, kind="stable")[: len(COLOURS)])
    return common[present[common] > 0]


def _draw_points(
    axes: "Axes", panel: Panel, classes: Sequence[str], common: Int[np.ndarray, " c"]
) -> list[tuple[str, str, str]]:
    """Draw all points; returns name, colour and shape of the classes that features show."""
    embedding = panel.embedding
    shown, of_codes = panel.labels.cpu().numpy()[embedding.rows], _of_codes(embedding, panel.code_labels)
    rest = len(np.unique(shown[shown >= 0])) - len(common)

    names: list[tuple[str, str, str]] = []
    groups = [(COLOURS[i], SHAPES[i % len(SHAPES)], shown == c, of_codes == c) for i, c in enumerate(common)]
    titles = [_short(classes[c]) for c in common]
    groups.append((OTHERS, "o", ~np.isin(shown, common), ~np.isin(of_codes, common)))
    titles.append(f"{rest:,} other classes" if rest > 0 else "no class")
    for title, (colour, shape, features, codes) in zip(titles, groups, strict=True):
        x, y = embedding.feature_xy[features].T
        axes.scatter(x, y, s=13, marker=shape, color=colour, alpha=0.7, linewidth=0, zorder=2)
        x, y = embedding.code_xy[codes].T
        face = "white" if panel.code_labels is None else colour
        axes.scatter(x, y, s=34, marker=shape, color=face, edgecolor="black", linewidth=0.7, zorder=3)
        if features.any():
            names.append((title, colour, shape))
    return names


def _short(name: str) -> str:
    """A class's name as the legend shows it; a leading underscore would hide it from matplotlib."""
    name = name.lstrip("_") or "?"
    return name if len(name) <= NAME_LETTERS else name[: NAME_LETTERS - 1].rstrip() + "…"
