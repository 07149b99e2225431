"""The usage curve of a codebook and the numbers behind it; what all plots share."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from tokcli.errors import TokError
from tokcli.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
INK = "#18181c"
BLUE = "#3f90da"


def write_csv(path: str | Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write rows of equal keys as CSV, whole or not at all; the first row's keys are the header.

    Raises:
        TokError: the disk is full or the folder cannot be written.
    """
    with atomic_write(path) as tmp, open(tmp, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return Path(path)


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of this size in inches, drawn without pyplot: no global state, no window system."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: "Figure", path: str | Path) -> Path:
    """Write the figure as PNG, whole or not at all; equal numbers give equal files."""
    with atomic_write(path) as tmp:
        figure.savefig(tmp, format="png", metadata={"Software": None})
    return Path(path)


def usage_numbers(counts: Int[Tensor, " k"]) -> list[dict[str, Any]]:
    """One row a code, by index: `index, count, share` of all tokens, `rank` (1 is the most used)."""
    values = counts.cpu().numpy()
    rank = np.empty(len(values), np.int64)
    rank[np.argsort(-values, kind="stable")] = np.arange(1, len(values) + 1)
    total = max(1, int(values.sum()))
    return [
        {"index": i, "count": int(count), "share": f"{count / total:.8g}", "rank": int(place)}
        for i, (count, place) in enumerate(zip(values, rank, strict=True))
    ]


def draw_usage(counts: Int[Tensor, " k"], path: str | Path, *, usage: float, perplexity: float) -> Path:
    """Codes sorted by frequency on log axes, beside what equal use would look like; 1080 x 660 px.

    Args:
        counts: tokens per code.
        path: the PNG to write.
        usage: codebook_usage, in [0, 1], printed in the plot.
        perplexity: codebook_perplexity, printed in the plot.

    Raises:
        TokError: nothing was counted.
    """
    values = np.sort(counts.cpu().numpy())[::-1]
    k, total, used = len(values), int(values.sum()), int(np.count_nonzero(values))
    if not total:
        raise TokError("usage plot", "no tokens were counted", next="Give images or tokens to count")
    figure = new_figure(7.2, 4.4)
    axes = figure.add_axes((0.13, 0.13, 0.84, 0.78))
    live = np.arange(1, used + 1)
    axes.fill_between(live, values[:used], 0.5, step="mid", color=BLUE, alpha=0.35, linewidth=0)
    axes.step(live, values[:used], where="mid", color=BLUE, linewidth=1.8)
    axes.axhline(total / k, color=INK, linewidth=1, linestyle="--")
    note = f"equal use: {total / k:,.1f} a code"
    axes.annotate(note, (1, total / k), (2, -4), textcoords="offset points", va="top", fontsize=9, color=INK)
    axes.set(xscale="log", yscale="log", xlim=(0.9, k * 1.1), ylim=(0.5, max(2.0, values[0]) * 8))
    axes.set_xlabel("codes, most used first")
    axes.set_ylabel("tokens")
    facts = (
        f"{used:,} of {k:,} codes used ({usage:.1%})",
        f"perplexity {perplexity:,.1f} of {k:,}",
        f"{total:,} tokens counted",
    )
    place: dict[str, Any] = {"transform": axes.transAxes, "ha": "right", "va": "top"}
    axes.text(0.985, 0.97, "\n".join(facts), fontsize=10, linespacing=1.5, **place)
    _log_axes(axes)
    return save_figure(figure, path)


def _log_axes(axes: "Axes") -> None:
    """Whole numbers at the decades, and no box around the plot."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else ""))
        axis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color="#dddddf", linewidth=0.6)
    axes.set_axisbelow(True)
