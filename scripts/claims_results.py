"""Results of the claims suite, results/seed-N.json and results/teachers.json, and the statistics that are made of them."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from claims_plan import JUDGES, MAIN, SECOND, TEACHERS, Cell, cells, tokenizer_sets, untaught

KEPT = Path(__file__).resolve().parent.parent / "recipes/claims/results"
MODES = ("ar", "nar")
Entry = dict[str, Any]


@dataclass
class Results:
    """What was measured: cells by seed and name, and the probe accuracy of teachers by "DATA TEACHER".

    Cells that somebody repeated on another seed stand apart in `repeated`: they test the others.
    """

    cells: dict[int, dict[str, Entry]] = field(default_factory=dict)
    teachers: dict[str, float] = field(default_factory=dict)
    repeated: dict[int, dict[str, Entry]] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """Seeds of which anything was measured."""
        return sorted(self.cells)

    def seeds_of(self, name: str) -> int:
        """On how many seeds a cell was measured."""
        return sum(name in known for known in self.cells.values())

    def names(self) -> list[str]:
        """Cells of any seed, in the order of the plan."""
        known = {name for found in self.cells.values() for name in found}
        return [cell.name for cell in cells(0) if cell.name in known]

    def runs(self, name: str, number: str) -> dict[int, list[float]]:
        """A number of a cell by seed: value, and its interval over images where it has one."""
        found = {seed: known[name]["numbers"].get(number) for seed, known in self.cells.items() if name in known}
        return {seed: value for seed, value in sorted(found.items()) if value is not None}


def read(folder: Path) -> Results:
    """The results of a folder, whatever is there of them."""
    found = Results()
    for kind, kept in (("seed-", found.cells), ("repeated-", found.repeated)):
        for path in sorted(folder.glob(f"{kind}*.json")):
            kept[int(path.stem.removeprefix(kind))] = json.loads(path.read_text(encoding="utf-8"))
    if (teachers := folder / "teachers.json").is_file():
        found.teachers = json.loads(teachers.read_text(encoding="utf-8"))
    return found


def hours(results: Results) -> dict[int, float]:
    """Hours of a seed: what the making of its artifacts took, each counted once."""
    found = {}
    for seed, known in results.cells.items():
        spent: dict[tuple[str, str, float], float] = {}
        for entry in known.values():
            for stage, seconds in entry["seconds"].items():
                spent[(entry["data"], stage, seconds)] = seconds
        found[seed] = sum(spent.values()) / 3600
    return found


# --- statistics ---


class Noise(NamedTuple):
    """What another seed changes: a standard deviation and its degrees of freedom."""

    deviation: float
    freedom: int


def pooled(rows: Iterable[Sequence[float]]) -> Noise | None:
    """The deviation within rows of several seeds each, taken as equal in all; None where no row has two."""
    several = [row for row in rows if len(row) > 1]
    freedom = sum(len(row) - 1 for row in several)
    squares = sum((value - sum(row) / len(row)) ** 2 for row in several for value in row)
    return Noise(math.sqrt(squares / freedom), freedom) if freedom else None


class Spread(NamedTuple):
    """A mean over seeds with a 95 % interval."""

    mean: float
    half: float | None
    seeds: int


def over_seeds(runs: Sequence[Sequence[float]], noise: Noise | None = None) -> Spread:
    """Mean of runs, each [value] or [value, low, high].

    The interval is Student's: of the noise that is given, so that a single seed has one too, else of these seeds. Of one seed without
    noise it is that of its images, or None.
    """
    from scipy.stats import t

    values = [run[0] for run in runs]
    n, mean = len(values), sum(values) / len(values)
    noise = noise or pooled([values])
    if noise is None:
        return Spread(mean, (runs[0][2] - runs[0][1]) / 2 if len(runs[0]) > 2 else None, 1)
    return Spread(mean, float(t.ppf(0.975, noise.freedom)) * noise.deviation / math.sqrt(n), n)


def differences(
    ours: dict[int, list[float]], theirs: dict[int, list[float]], *, points: bool = False
) -> list[list[float]]:
    """ours - theirs in percent of theirs, for each seed that both have; with the interval over images, of both.

    With `points` both are shares, and the difference is in percentage points.
    """
    runs = []
    for seed in sorted(ours.keys() & theirs.keys()):
        a, b = ours[seed], theirs[seed]
        if points:
            runs.append([100 * (a[0] - b[0])])
            continue
        run = [100 * (a[0] / b[0] - 1)]
        if len(a) > 2 and len(b) > 2:
            # of a ratio, to first order
            half = 100 * a[0] / b[0] * math.hypot((a[2] - a[1]) / 2 / a[0], (b[2] - b[1]) / 2 / b[0])
            run += [run[0] - half, run[0] + half]
        runs.append(run)
    return runs


class Correlation(NamedTuple):
    """Spearman's rank correlation of n pairs, with a 95 % interval."""

    rho: float
    low: float
    high: float
    n: int


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> Correlation | None:
    """Spearman's rho with the interval of Bonett and Wright (Psychometrika 65, 2000): Fisher's z with variance (1 + rho^2/2)/(n - 3).

    None of fewer than 4 pairs, or where one of the two is always the same.
    """
    from scipy.stats import spearmanr

    n = len(x)
    if n < 4 or len({*x}) < 2 or len({*y}) < 2:
        return None
    rho = float(spearmanr(x, y).statistic)
    if abs(rho) > 1 - 1e-9:
        return Correlation(rho, rho, rho, n)
    half = 1.959964 * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return Correlation(rho, math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half), n)


# --- what is compared ---


def unbiased(results: Results, name: str) -> list[str]:
    """The extractors that taught nothing to a cell's tokenizer."""
    teacher = next(found[name]["teacher"] for found in results.cells.values() if name in found)
    return untaught(teacher) if teacher else list(JUDGES)


class Pair(NamedTuple):
    """Features against pixels, all else equal.

    Args:
        what: data, task, quantizer, teacher.
        ours, theirs: names of the two cells.
        judge: an extractor that taught neither.
        alike: both have the same tokens, and differ in their decoders.
    """

    what: str
    ours: str
    theirs: str
    judge: str
    alike: bool = False


def pairs(results: Results) -> list[Pair]:
    """The comparisons of the two objectives that were measured, by the two teachers that were chosen beforehand."""
    found, known = [], {*results.names()}
    for one in cells(0):
        if one.objective in ("features", "cluster") and one.teacher in (MAIN, SECOND) and not one.perturb:
            pixels = replace(one, objective="pixels", teacher=None).name
            how = one.quantizer.upper() if one.objective == "features" else one.objective
            what = f"{one.data}, {'caption' if one.captions else 'class'}, {how}, {one.teacher}"
            if {one.name, pixels} <= known:
                found.append(Pair(what, one.name, pixels, untaught(one.teacher)[0]))
    return found


def compared(results: Results, pair: Pair, number: str, *, points: bool = False) -> Spread | None:
    """Mean of `differences` of a number, in which {} stands for the judge. Another seed changes both of the pair, each as `level` takes it."""
    ours, theirs = (results.runs(name, number.format(pair.judge)) for name in (pair.ours, pair.theirs))
    runs = differences(ours, theirs, points=points)
    if not runs:
        return None
    if (noise := relative_noise(results, number.format(pair.judge))) is None:
        return over_seeds(runs)
    a, b = (over_seeds([one[seed] for seed in ours.keys() & theirs.keys()]).mean for one in (ours, theirs))
    of_both = math.hypot(a, b) if points else math.sqrt(2) * a / b
    return over_seeds(runs, Noise(100 * noise.deviation * of_both, noise.freedom))


def change(results: Results, pair: Pair, mode: str) -> Spread | None:
    """Of the distance of samples, in percent."""
    return compared(results, pair, f"fd_{{}}_{mode}")


CONTESTED = {  # what successors are compared by -> number, whether it is a share
    "FD_AR, %": ("fd_{}_ar", False),
    "FD_NAR, %": ("fd_{}_nar", False),
    "rFD, %": ("rfd_{}", False),
    "probe, points": ("probe_accuracy", True),
}


def contests(results: Results) -> dict[str, list[Pair]]:
    """The successors that were measured, each against a tokenizer of pixels and against one of features, by the rival's objective."""
    found: dict[str, list[Pair]] = {"pixels": [], "features": []}
    known = {*results.names()}
    for one in cells(0):
        if one.captions or one.quantizer != "vq" or not (one.perturb or one.objective not in found):
            continue
        for rival, rows in found.items():
            theirs = Cell(one.data, rival, teacher=MAIN if rival == "features" else None)
            what = ", ".join([one.data, one.objective, *(["perturb"] if one.perturb else [])])
            if {one.name, theirs.name} <= known:
                alike = one.objective == rival and tokenizer_sets(one) == tokenizer_sets(theirs)
                rows.append(Pair(what, one.name, theirs.name, untaught(MAIN)[0], alike))
    return found


def contest(results: Results, pair: Pair, measure: str) -> Spread | None:
    """What one of `contests` changes by one of CONTESTED; None where it can change nothing."""
    number, share = CONTESTED[measure]
    return None if pair.alike and number == "probe_accuracy" else compared(results, pair, number, points=share)


def relative_noise(results: Results, number: str) -> Noise | None:
    """The share by which another seed changes a number, taken as equal in all cells; None where none has several seeds."""
    rows = [[run[0] for run in results.runs(one, number).values()] for one in results.names()]
    return pooled([[value * len(row) / sum(row) for value in row] for row in rows if sum(row)])


def level(results: Results, name: str, number: str, scale: float = 1) -> Spread | None:
    """A number of a cell, times `scale`; None where it was not measured. Another seed changes it by the same share in all cells."""
    relative = relative_noise(results, number)
    runs = [[scale * value for value in run] for run in results.runs(name, number).values()]
    if not runs:
        return None
    mean = over_seeds(runs).mean
    return over_seeds(runs, Noise(relative.deviation * mean, relative.freedom) if relative else None)


class Point(NamedTuple):
    """A tokenizer in a scatter."""

    name: str
    x: float
    y: float


def teacher_points(results: Results, judge: str, mode: str) -> list[Point]:
    """Probe accuracy in percent against the distance, of teachers that the judge is not."""
    found = []
    for name in TEACHERS:
        runs = results.runs(f"openmoji-features-vq-{name}", f"fd_{judge}_{mode}")
        known = results.teachers.get(f"openmoji {name}")
        if runs and known is not None and judge in untaught(name):
            found.append(Point(name, 100 * known, over_seeds([*runs.values()]).mean))
    return found


def correlate(points: Sequence[Point]) -> Correlation | None:
    """Of a scatter's points."""
    return rank_correlation([p.x for p in points], [p.y for p in points])


def predictor_points(results: Results, number: str, judge: str, mode: str) -> list[Point]:
    """A number of each OpenMoji tokenizer that the judge did not teach, against the distance of its class samples."""
    found = []
    for name in results.names():
        x, y = results.runs(name, number.format(judge)), results.runs(name, f"fd_{judge}_{mode}")
        of = name.startswith("openmoji-") and not name.endswith("-captions")
        if of and x and y and judge in unbiased(results, name):
            found.append(Point(name, over_seeds([*x.values()]).mean, over_seeds([*y.values()]).mean))
    return found


def plain(value: float) -> str:
    """Three digits or so, with a minus sign."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}".replace("-", "−")


def told(found: Correlation | None) -> str:
    """`0.71 (0.11 to 0.93, n = 8)`."""
    if found is None:
        return "-"
    return f"{plain(found.rho)} ({plain(found.low)} to {plain(found.high)}, n = {found.n})"
