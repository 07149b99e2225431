"""Where features and codes lie: a t-SNE plane of both, coloured by class, and the numbers behind it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from tokcli.errors import TokError
from tokcli.pictures.plots import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Ten colours that stay apart for colour-blind eyes (Petroff 2021, arXiv 2107.02270); shapes repeat what they say.
COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
SHAPES = ("o", "^", "s", "D", "v")
OTHERS = "#c9c9ce"
NAME_LETTERS = 26
PCA_DIMENSIONS = 50


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
    code_limit: int = 1000,
    perplexity: float = 30.0,
    seed: int = 0,
) -> Embedding:
    """t-SNE of features and codes together (van der Maaten and Hinton 2008), after PCA to 50 dimensions.

    Give both as the quantizer compares them: l2-normalised where it uses the cosine.

    Args:
        features: encoder outputs before quantization.
        codes: codebook rows.
        limit: at most so many random features.
        code_limit: at most so many random codes.
        perplexity: t-SNE's; lowered where there are few points.
        seed: of both choices and of t-SNE; a layout repeats on the same number of threads.

    Raises:
        TokError: fewer than 4 points in all, or values that are not finite.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    rows, kept = _some(len(features), limit, seed), _some(len(codes), code_limit, seed)
    parts = (features.detach().float().cpu().numpy()[rows], codes.detach().float().cpu().numpy()[kept])
    points = np.concatenate(parts)
    if len(points) < 4 or not np.isfinite(points).all():
        raise TokError("t-SNE", "needs at least 4 points, all finite", got=f"{len(points)} points")
    if min(points.shape) > PCA_DIMENSIONS:
        points = PCA(PCA_DIMENSIONS, svd_solver="full").fit_transform(points)
    start = "pca" if points.shape[1] > 1 else "random"
    few = (len(points) - 1) / 3
    xy = TSNE(init=start, perplexity=min(perplexity, few), random_state=seed).fit_transform(points)
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


def draw_embedding(
    embedding: Embedding,
    path: str | Path,
    labels: Int[Tensor, " M"],
    classes: Sequence[str],
    code_labels: Int[Tensor, " k"] | None = None,
    *,
    title: str = "",
) -> Path:
    """Features as small marks, codes as larger ones with a black edge, in the colours of their classes; 1500 x 1050 px.

    Args:
        embedding: from `embed`.
        path: the PNG to write.
        labels: class of each feature given to `embed`, -1 for none.
        classes: names by number; the ten commonest have colours, all others share a grey.
        code_labels: class of each code (of most of its tokens), -1 for none; None leaves the codes white.
        title: above the plot.
    """
    figure = new_figure(10.0, 7.0)
    axes = figure.add_axes((0.02, 0.02, 0.70, 0.91))
    names = _draw_points(axes, embedding, labels, classes, code_labels)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#cccccf")
    axes.margins(0.03)
    axes.set_title(title, fontsize=12, loc="left")
    look: dict[str, Any] = {"s": 70, "linewidth": 0.9}
    handles = [axes.scatter([], [], marker=m, color=c, label=name, **look) for name, c, m in names]
    code = f"code ({len(embedding.codes):,})"
    handles.append(axes.scatter([], [], color="white", edgecolor="black", label=code, **look))
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.73, 0.94),
        frameon=False,
        fontsize=11,
        title=f"t-SNE of {len(embedding.rows):,} features",
        title_fontsize=11,
        alignment="left",
        labelspacing=0.7,
    )
    return save_figure(figure, path)


def _draw_points(
    axes: "Axes", embedding: Embedding, labels: Tensor, classes: Sequence[str], code_labels: Tensor | None
) -> list[tuple[str, str, str]]:
    """Draw all points; returns name, colour and shape of the classes that features show."""
    shown, of_codes = labels.cpu().numpy()[embedding.rows], _of_codes(embedding, code_labels)
    present = np.bincount(shown[shown >= 0], minlength=len(classes))
    common = np.sort(np.argsort(-present, kind="stable")[: len(COLOURS)])
    common = common[present[common] > 0]
    rest = np.count_nonzero(present) - len(common)

    names = []
    groups = [(COLOURS[i], SHAPES[i % len(SHAPES)], shown == c, of_codes == c) for i, c in enumerate(common)]
    titles = [_short(classes[c]) for c in common]
    groups.append((OTHERS, "o", ~np.isin(shown, common), ~np.isin(of_codes, common)))
    titles.append(f"{rest:,} other classes" if rest else "no class")
    for title, (colour, shape, features, codes) in zip(titles, groups, strict=True):
        x, y = embedding.feature_xy[features].T
        axes.scatter(x, y, s=10, marker=shape, color=colour, alpha=0.65, linewidth=0, zorder=2)
        x, y = embedding.code_xy[codes].T
        face = "white" if code_labels is None else colour
        axes.scatter(x, y, s=34, marker=shape, color=face, edgecolor="black", linewidth=0.9, zorder=3)
        if features.any():
            names.append((title, colour, shape))
    return names


def _short(name: str) -> str:
    """A class's name as the legend shows it; a leading underscore would hide it from matplotlib."""
    name = name.lstrip("_") or "?"
    return name if len(name) <= NAME_LETTERS else name[: NAME_LETTERS - 1].rstrip() + "…"
