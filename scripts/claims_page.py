"""Tables of the claims suite, from results alone.

    python scripts/claims_page.py                     docs/results/claims.md, README.md and recipes/claims/*.png, from recipes/claims/results
    python scripts/claims_page.py RESULTS PAGE.md     of other results; the figures lie beside the page

A page keeps what stands outside of its marked blocks; a page that is not there is made of the blocks.
"""

import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from claims_figures import draw
from claims_plan import JUDGES, MAIN, TEACHERS, Cell, cells, untaught
from claims_results import (
    CONTESTED,
    KEPT,
    MODES,
    Results,
    Spread,
    change,
    contest,
    contests,
    correlate,
    hours,
    level,
    over_seeds,
    pairs,
    plain,
    predictor_points,
    read,
    teacher_points,
    told,
    unbiased,
)

ROOT = Path(__file__).resolve().parent.parent
PAGE, README, PICTURES = ROOT / "docs/results/claims.md", ROOT / "README.md", ROOT / "recipes/claims"

# --- what is shown ---


def shown(spread: Spread | None, star: bool = False, *, signed: bool = False) -> str:
    """`83.1 ± 2.0*`, `-` for nothing."""
    if spread is None:
        return "-"
    text = ("+" if signed and spread.mean > 0 else "") + plain(spread.mean)
    return text + (f" ± {plain(spread.half)}" if spread.half is not None else "") + ("\\*" if star else "")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; all columns but the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def label(cell: Cell) -> str:
    """A cell as a row of its data set reads it."""
    of = [cell.teacher, "perturb" if cell.perturb else None, "captions" if cell.captions else None]
    return ", ".join([cell.objective, cell.quantizer.upper(), *(one for one in of if one)])


def cell(
    results: Results, name: str, number: str, scale: float = 1, star: bool = False, *, interval: bool = True
) -> str:
    """A number of a cell over its seeds."""
    found = level(results, name, number, scale)
    return shown(found if found is None or interval else found._replace(half=None), star)


COLUMNS = {  # number -> factor
    "codebook_usage": 100,
    "codebook_perplexity": 1,
    "probe_accuracy": 100,
    "psnr": 1,
    "proposal_ppl_ar": 1,
    "bits_per_image_ar": 1,
    "bits_per_image_nar": 1,
}


def main_block(results: Results) -> str:
    """The table of all cells on one data set after another."""
    parts = []
    head = ["tokenizer", "seeds", "usage %", "perplexity", "probe %", "PSNR", "PPL", "bits AR", "bits NAR"]
    head += [f"{k} {j}" for k in ("rFD", "prFD") for j in JUDGES]
    head += [f"FD_{mode.upper()} {judge}" for mode in MODES for judge in JUDGES]
    known = [one for one in cells(0) if one.name in {*results.names()}]
    for data in dict.fromkeys(one.data for one in known):
        rows = []
        for one in (one for one in known if one.data == data):
            name, free = one.name, unbiased(results, one.name)
            row = [label(one), str(results.seeds_of(name))]
            row += [cell(results, name, number, scale, interval=False) for number, scale in COLUMNS.items()]
            row += [cell(results, name, f"{k}_{j}", star=j not in free) for k in ("rfd", "prfd") for j in JUDGES]
            row += [cell(results, name, f"fd_{j}_{mode}", star=j not in free) for mode in MODES for j in JUDGES]
            rows.append(row)
        parts.append(f"**{data}**\n\n" + table(head, rows))
    return "\n\n".join(parts) + _warning(results)


def _warning(results: Results) -> str:
    """That intervals are of images, where no row has several seeds."""
    several = any(results.seeds_of(name) > 1 for name in results.names())
    return "" if several else "\n\nNo row has two seeds: intervals are of images alone. Another seed changes more."


def headline_block(results: Results) -> str:
    """The tokenizers of one data set and teacher in few numbers, by the judge that taught none of them."""
    judge = untaught(MAIN)[0]
    rows = []
    for one in cells(0):
        if one.data == "openmoji" and one.teacher in (None, MAIN) and not one.perturb and not one.captions:
            if (seeds := results.seeds_of(one.name)) == 0:
                continue
            row = [label(replace(one, teacher=None)), str(seeds)]
            row += [cell(results, one.name, "probe_accuracy", 100)]
            rows.append(
                row
                + [cell(results, one.name, f"{k}_{judge}{m}") for k, m in (("rfd", ""), ("fd", "_ar"), ("fd", "_nar"))]
            )
    return table(["tokenizer", "seeds", "probe %", "rFD", "FD, AR", "FD, NAR"], rows)


def difference_block(results: Results) -> str:
    """Features against pixels, everything else equal: change of the distance by the extractor that taught nobody."""
    rows: list[list[str]] = []
    intervals: list[tuple[float, float]] = []
    for pair in pairs(results):
        found = [change(results, pair, mode) for mode in MODES]
        seeds = max((one.seeds for one in found if one), default=0)
        rows.append([pair.what, pair.judge, str(seeds), *(shown(one, signed=True) for one in found)])
        intervals += [(one.mean - one.half, one.mean + one.half) for one in found if one and one.half is not None]
    below, above = sum(high < 0 for _, high in intervals), sum(low > 0 for low, _ in intervals)
    told_apart = f"Of {len(intervals)} intervals {below} lie below 0, {above} above it, {len(intervals) - below - above} hold it."
    told_apart += _warning(results)
    return table(["features against pixels", "judge", "seeds", "FD_AR, %", "FD_NAR, %"], rows) + f"\n\n{told_apart}"


def repeated_block(results: Results) -> str:
    """What somebody found who repeated a part on another seed, beside the experiment's own; a single seed's interval is wider."""
    other = Results(results.repeated)
    rows, within, compared = [], 0, 0
    for pair in pairs(other):
        row = [pair.what, pair.judge]
        for mode in MODES:
            ours, theirs = change(results, pair, mode), change(other, pair, mode)
            if ours is None or ours.half is None or theirs is None:
                row += ["-", "-"]
                continue
            half = ours.half * math.sqrt(ours.seeds / theirs.seeds)  # the same noise, of its own seeds
            row += [shown(ours, signed=True), shown(theirs._replace(half=half), signed=True)]
            compared += 1
            within += abs(ours.mean - theirs.mean) <= math.hypot(ours.half, half)
        rows.append(row)
    head = [
        "features against pixels",
        "judge",
        *(f"FD_{m.upper()}, %{own}" for m in MODES for own in ("", ", repeated")),
    ]
    seeds = ", ".join(map(str, results.repeated)) or "none"
    return f"{table(head, rows)}\n\nRepeated on seed {seeds}: {within} of {compared} differences agree within the intervals of both."


def successors_block(results: Results) -> str:
    """Successors against both of the paper's kinds: distances, reconstructions, understanding."""
    rows = []
    for rival, some in contests(results).items():
        for pair in some:
            found = [contest(results, pair, measure) for measure in CONTESTED]
            seeds = max((one.seeds for one in found if one), default=0)
            rows.append([pair.what, rival, str(seeds), *(shown(one, signed=True) for one in found)])
    return table(["successor", "against", "seeds", *CONTESTED], rows)


REASONS = {  # what could explain a difference -> number, factor
    "tokens' probe %": ("probe_accuracy", 100),
    "perplexity, non-blank": ("codebook_perplexity_nonblank", 1),
    "bits AR": ("bits_per_image_ar", 1),
    "bits NAR": ("bits_per_image_nar", 1),
    "rFD": ("rfd_{}", 1),
}


def reasons_block(results: Results) -> str:
    """What else differs between the two cells of a pair, `pixels to features`, and what the teacher's own features tell."""
    rows = []
    for pair in pairs(results):
        data, teacher = pair.what.split(", ")[0], pair.what.split(", ")[-1]
        known = results.teachers.get(f"{data} {teacher}")
        row = [pair.what, "-" if known is None else plain(100 * known)]
        for number, factor in REASONS.values():
            runs = [results.runs(name, number.format(pair.judge)) for name in (pair.theirs, pair.ours)]
            means = [plain(factor * over_seeds([*run.values()]).mean) if run else "-" for run in runs]
            row.append(" to ".join(means))
        rows.append(row)
    return table(["pixels to features", "teacher's probe %", *REASONS], rows)


def teachers_block(results: Results) -> str:
    """Teachers by understanding, and the rank correlations."""
    order = sorted(TEACHERS, key=lambda name: results.teachers.get(f"openmoji {name}", 0))
    rows = []
    for name in order:
        key, known = f"openmoji-features-vq-{name}", results.teachers.get(f"openmoji {name}")
        if key not in results.names() or known is None:
            continue
        layers = ", ".join(map(str, TEACHERS[name].layers))
        row = [f"{name} ({layers})", plain(100 * known), cell(results, key, "probe_accuracy", scale=100)]
        row += [cell(results, key, f"fd_{j}_{m}", star=j not in untaught(name)) for m in MODES for j in JUDGES]
        rows.append(row)
    head = [
        "teacher (layer)",
        "its probe %",
        "tokens' probe %",
        *(f"FD_{m.upper()} {j}" for m in MODES for j in JUDGES),
    ]
    lines = [[f"FD_{m.upper()} by {j}", told(correlate(teacher_points(results, j, m)))] for j in JUDGES for m in MODES]
    return (
        table(head, rows)
        + "\n\n"
        + table(["rank correlation with the teacher's probe accuracy", "Spearman (95 %)"], lines)
    )


PREDICTORS = {
    "rFD": "rfd_{}",
    "prFD": "prfd_{}",
    "tokens' probe": "probe_accuracy",
    "PPL": "proposal_ppl_ar",
    "bits AR": "bits_per_image_ar",
}


def predictors_block(results: Results) -> str:
    """Which number of a tokenizer ranks tokenizers as the distance of samples does."""
    rows = []
    for what, number in PREDICTORS.items():
        rows.append([what, *(told(correlate(predictor_points(results, number, j, m))) for j in JUDGES for m in MODES)])
    return table(["Spearman with", *(f"FD_{m.upper()} {j}" for j in JUDGES for m in MODES)], rows)


def cost_block(results: Results) -> str:
    """Hours by seed, and how many cells were trained in float32 (see `claims.Suite`); the first results do not tell, all in bfloat16."""
    counts = {
        seed: (len(known), sum(one.get("precision") == "float32" for one in known.values()))
        for seed, known in results.cells.items()
    }
    rows = [[str(seed), *map(str, counts[seed]), f"{spent:.1f}"] for seed, spent in hours(results).items()]
    both = [str(sum(column)) for column in zip(*counts.values(), strict=True)] or ["0", "0"]
    return table(
        ["seed", "cells", "in float32", "hours"], [*rows, ["all", *both, f"{sum(hours(results).values()):.1f}"]]
    )


BLOCKS: dict[str, tuple[str, Callable[[Results], str]]] = {
    "headline": ("In short", headline_block),
    "differences": ("Features against pixels", difference_block),
    "repeated": ("Repeated", repeated_block),
    "reasons": ("What else differs", reasons_block),
    "successors": ("Successors", successors_block),
    "teachers": ("Teachers of graded strength", teachers_block),
    "predictors": ("What predicts generation", predictors_block),
    "all": ("All numbers", main_block),
    "cost": ("Cost", cost_block),
}


def block(text: str, name: str, body: str) -> str:
    """A page with what stands between `<!-- NAME -->` and `<!-- end of NAME -->` made anew."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    return re.sub(f"{start}.*?{end}", lambda _: f"{start}\n{body}\n{end}", text, flags=re.DOTALL)


def filled(text: str, results: Results) -> str:
    """A page with its blocks made anew."""
    for name, (_, make) in BLOCKS.items():
        text = block(text, f"claims: {name}", make(results))
    return text


def fresh() -> str:
    """A page of nothing but blocks."""
    parts = [
        f"## {title}\n\n<!-- claims: {name} -->\n<!-- end of claims: {name} -->" for name, (title, _) in BLOCKS.items()
    ]
    return "\n\n".join(["# The claims", *parts]) + "\n"


def write(folder: Path, page: Path, pictures: Path) -> Path:
    """The page and its figures, of a folder of results; returns the page's path."""
    results = read(folder)
    _write(page, results)
    draw(results, pictures)
    return page


def _write(page: Path, results: Results) -> None:
    text = page.read_text(encoding="utf-8") if page.is_file() else fresh()
    page.write_text(filled(text, results), encoding="utf-8")


def main(*arguments: str) -> None:
    """See the module."""
    folder, page = (Path(arguments[0]), Path(arguments[1])) if arguments else (KEPT, PAGE)
    print(write(folder, page, page.parent if arguments else PICTURES))
    if not arguments:
        _write(README, read(KEPT))


if __name__ == "__main__":
    main(*sys.argv[1:])
