"""The figures of the claims suite, one a claim, drawn from results alone; equal results give equal files."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from claims_plan import JUDGES, MAIN, QUANTIZERS, untaught
from claims_results import (
    MODES,
    Point,
    Results,
    change,
    contests,
    correlate,
    level,
    over_seeds,
    pairs,
    predictor_points,
    teacher_points,
    told,
)
from matplotlib.ticker import MaxNLocator
from PIL import Image

from tokcli.pictures.canvas import save_png
from tokcli.pictures.plots import INK, new_figure, save_figure

if TYPE_CHECKING:
    from claims_results import Spread
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"pixels": "#d9822b", "features": "#3f90da"}
JUDGE = untaught(MAIN)[0]


def _bare(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e4e4e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def _save(figure: "Figure", path: Path) -> None:
    """In few colours, because figures are part of the repository."""
    save_figure(figure, path)
    with Image.open(path) as drawn:
        small = drawn.convert("RGB").quantize(48, dither=Image.Dither.NONE)
    save_png(small, path)


def _seeds(results: Results, names: Iterable[str]) -> str:
    counts = [results.seeds_of(name) for name in {*names} & {*results.names()}]
    low, most = min(counts, default=0), max(counts, default=0)
    return f"{low} to {most} seeds" if low < most else f"{most} seed{'s' * (most != 1)}"


def objective(results: Results, path: Path) -> None:
    """Distances of samples by quantizer and objective: a small dot a seed, a large one for their mean, bars for the interval."""
    figure, shown = new_figure(7.2, 2.6), []
    for place, mode in enumerate(MODES):
        axes = figure.add_axes((0.08 + 0.47 * place, 0.2, 0.42, 0.62))
        for row, quantizer in enumerate(QUANTIZERS):
            for shift, (kind, colour) in zip((0.14, -0.14), COLOURS.items(), strict=True):
                name = f"openmoji-{kind}-{quantizer}" + (f"-{MAIN}" if kind == "features" else "")
                number = f"fd_{JUDGE}_{mode}"
                shown.append(name)
                spread = level(results, name, number)
                if spread is None:
                    continue
                runs, y = [*results.runs(name, number).values()], len(QUANTIZERS) - 1 - row + shift
                axes.errorbar(
                    spread.mean,
                    y,
                    xerr=spread.half,
                    fmt="o",
                    color=colour,
                    markersize=6,
                    capsize=3,
                    label=kind if not row else None,
                )
                axes.plot([run[0] for run in runs], [y] * len(runs), ".", color=INK, markersize=3)
        axes.set_yticks(range(len(QUANTIZERS)), [name.upper() for name in reversed(QUANTIZERS)])
        axes.set_ylim(-0.5, len(QUANTIZERS) - 0.5)
        axes.set_xlabel(f"FD_{mode.upper()} by {JUDGE} (lower is better)", fontsize=8)
        _bare(axes)
    if figure.axes[0].get_legend_handles_labels()[0]:
        figure.axes[0].legend(fontsize=8, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0))
    figure.text(
        0.98, 0.9, f"OpenMoji, {_seeds(results, shown)}; equal codes, grid, networks, steps", ha="right", fontsize=8
    )
    _save(figure, path)


# of a label: right or left of its dot, and points above it
PLACES = [(side, rise) for rise in (2, -7, 9, -14) for side in (1, -1)]
SIZE = (3.4, 7.0)  # of a letter of 6 points
NEAR = 8  # points from a dot at which a name seems to be its own


def _label(axes: "Axes", points: Sequence[Point]) -> None:
    """Names beside their dots, where they cover the least of dots and of each other, and come least near to another's dot."""
    per_point = axes.figure.dpi / 72
    dots = axes.transData.transform([(p.x, p.y) for p in points] or np.empty((0, 2))) / per_point
    box = axes.get_window_extent()
    taken = [(x - 2, y - 2, x + 2, y + 2) for x, y in dots]
    around = [(x - NEAR, y - NEAR, x + NEAR, y + NEAR) for x, y in dots]
    for own, (point, (x, y)) in enumerate(zip(points, dots, strict=True)):
        length = SIZE[0] * len(point.name)
        found: list[tuple[float, int, tuple[float, float, float, float]]] = []
        for side, rise in PLACES:
            left = x + 4 if side > 0 else x - 4 - length
            place = (left, y + rise, left + length, y + rise + SIZE[1])
            outside = max(0.0, box.x0 / per_point - left, left + length - box.x1 / per_point) * SIZE[1]
            near = sum(_common(place, other) for number, other in enumerate(around) if number != own)
            covered = sum(_common(place, other) for other in taken)
            found.append((outside + covered + near / 4, len(found), place))
        _, number, place = min(found)
        taken.append(place)
        side, rise = PLACES[number]
        text = axes.annotate(point.name, (point.x, point.y), (4 * side, rise), textcoords="offset points", fontsize=6)
        text.set_horizontalalignment("left" if side > 0 else "right")


def _common(one: Sequence[float], other: Sequence[float]) -> float:
    """The area that two boxes (left, bottom, right, top) share."""
    wide, high = (min(one[k + 2], other[k + 2]) - max(one[k], other[k]) for k in (0, 1))
    return max(wide, 0.0) * max(high, 0.0)


def _scatter(axes: "Axes", points: Sequence[Point], names: bool) -> None:
    axes.scatter([p.x for p in points], [p.y for p in points], s=18, color=COLOURS["features"])
    if (found := correlate(points)) is not None:
        axes.set_title(f"Spearman {told(found)}", fontsize=8, loc="left")
    axes.margins(0.18, 0.15)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.autoscale_view()
    if names:
        _label(axes, points)
    _bare(axes)


def teachers(results: Results, path: Path) -> None:
    """What teachers understand against the distance of samples; a row an extractor, which taught none of its points."""
    figure = new_figure(7.2, 5.6)
    for row, judge in enumerate(JUDGES):
        for place, mode in enumerate(MODES):
            axes = figure.add_axes((0.09 + 0.48 * place, 0.58 - 0.48 * row, 0.4, 0.36))
            points = teacher_points(results, judge, mode)
            _scatter(axes, points, names=True)
            pixels = [*results.runs("openmoji-pixels-vq", f"fd_{judge}_{mode}").values()]
            if pixels:
                beaten, at = over_seeds(pixels).mean, axes.get_yaxis_transform()
                axes.axhline(beaten, color=COLOURS["pixels"], linewidth=1)
                axes.text(0.01, beaten, "pixels", transform=at, fontsize=6, va="bottom", color=COLOURS["pixels"])
            axes.set_xlabel("linear probe on the teacher, %", fontsize=8)
            axes.set_ylabel(f"FD_{mode.upper()} by {judge}", fontsize=8)
    _save(figure, path)


Changes = list[tuple[str, dict[str, "Spread | None"]]]  # rows: what changes, and by how much in each mode


def _changes(axes: "Axes", rows: Changes, label: str, *, names: bool = True) -> None:
    """Dots with intervals on both sides of 0, rows from top to bottom."""
    for row, (_, spreads) in enumerate(rows):
        for mode, shift, marker in zip(MODES, (0.13, -0.13), "os", strict=True):
            found = spreads[mode]
            if found is not None:
                y, colour = len(rows) - 1 - row + shift, INK if mode == "ar" else COLOURS["features"]
                axes.errorbar(
                    found.mean,
                    y,
                    xerr=found.half,
                    label=None if row else mode.upper(),
                    fmt=marker,
                    markersize=5,
                    capsize=2,
                    color=colour,
                )
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [what if names else "" for what, _ in reversed(rows)], fontsize=7)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(label, fontsize=8)
    if rows and names:
        axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0))
    _bare(axes)


def across(results: Results, path: Path) -> None:
    """Change of the distance from pixels to features, by data, task, quantizer and network; left of 0 features are better."""
    rows = [
        (f"{pair.what}\nby {pair.judge}", {mode: change(results, pair, mode) for mode in MODES})
        for pair in pairs(results)
    ]
    ours = [pair.ours for pair in pairs(results)]
    height = 1.1 + 0.36 * max(len(rows), 1)
    figure = new_figure(7.2, height)
    axes = figure.add_axes((0.27, 0.5 / height, 0.7, 1 - 0.9 / height))
    _changes(axes, rows, f"change of the distance from pixels to features, % ({_seeds(results, ours)})")
    _save(figure, path)


def successors(results: Results, path: Path) -> None:
    """Change of the distance from VQGAN's and from VQ-KD's way to each successor; left of 0 the successor is better."""
    found = {rival: {pair.what: pair for pair in some} for rival, some in contests(results).items()}
    whats = list(dict.fromkeys(what for some in found.values() for what in some))
    height = 1.1 + 0.36 * max(1, len(whats))
    figure = new_figure(7.2, height)
    for place, (rival, some) in enumerate(found.items()):
        axes = figure.add_axes((0.21 + 0.4 * place, 0.5 / height, 0.36, 1 - 0.9 / height))
        rows = [
            (
                what.replace(", ", "\n", 1),
                {mode: change(results, some[what], mode) if what in some else None for mode in MODES},
            )
            for what in whats
        ]
        _changes(axes, rows, f"change of the distance from {rival}, %", names=not place)
    _save(figure, path)


def predictors(results: Results, path: Path) -> None:
    """rFD and prFD of tokenizers against the distance of autoregressive samples."""
    figure = new_figure(7.2, 2.9)
    for place, (title, number) in enumerate((("rFD", "rfd_{}"), ("prFD, half of the tokens wrong", "prfd_{}"))):
        axes = figure.add_axes((0.09 + 0.48 * place, 0.18, 0.4, 0.68))
        _scatter(axes, predictor_points(results, number, JUDGE, "ar"), names=False)
        axes.set_xlabel(f"{title}, by {JUDGE}", fontsize=8)
        axes.set_ylabel(f"FD_AR by {JUDGE}", fontsize=8)
    _save(figure, path)


FIGURES = {
    "objective": objective,
    "teachers": teachers,
    "across": across,
    "successors": successors,
    "predictors": predictors,
}


def draw(results: Results, folder: Path) -> None:
    """All figures, as claim-NAME.png."""
    for name, figure in FIGURES.items():
        figure(results, folder / f"claim-{name}.png")
