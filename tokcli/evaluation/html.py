"""`report.html`: an evaluation on one page, every number with where it comes from; the numbers are `metrics.json`'s."""

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokcli.evaluation import charts
from tokcli.evaluation.charts import Dot, Node, Point, sweeps
from tokcli.files import write_text
from tokcli.pictures.theme import fill

WEB = Path(__file__).parent / "web"
STEPS = "step"  # the key of a log's records that is the x axis
DULL = (
    STEPS,
    "epoch",
    "val/images",
    "val/tokens",
    "val/tokens_nonblank",
)  # the x axis again, and how many were measured

Log = Sequence[Mapping[str, Any]]


class Picture(NamedTuple):
    """A picture of the report.

    Args:
        file: PNG.
        title: heading.
        text: a sentence that says what it shows.
        folded: shown when its heading is clicked.
    """

    file: Path
    title: str
    text: str
    folded: bool = False


def write_report(
    folder: Path,
    report: Mapping[str, Any],
    *,
    logs: Mapping[str, Log],
    recipes: Mapping[str, Mapping[str, Any]],
    sheets: Sequence[Picture],
    title: str,
) -> str:
    """Write `report.html` into a folder, pictures inside it; returns its name.

    Args:
        folder: must exist.
        report: what `metrics.json` holds, schema 1 (its form is told in `tokcli.evaluation.records`).
        logs: artifact id -> the records of its `log.jsonl`.
        recipes: artifact id -> its resolved recipe.
        sheets: pictures, in the order shown.
        title: plain text.

    Raises:
        TokError: the disk is full or the folder cannot be written.
    """
    sections = [
        ("Pictures", "What the numbers are about.", "".join(map(_picture, sheets))),
        (
            "Comparison",
            "The table's columns as charts. A line through a dot is its 95 % interval over images, where one was computed.",
            _comparison(report),
        ),
        (
            "Table",
            "One row per tokenizer. Arrows say which way is better; point at a number, or tap it, to see where it comes from.",
            _tables(report),
        ),
        (
            "Sampling",
            "One proposal network sampled in several ways. Filled points are those that no other beats on both axes.",
            sweeps(report, recipes),
        ),
        ("Lineage", "What was made of what, from left to right.", _lineage(report)),
        (
            "Training",
            "What each training logged, over its steps; the last value stands above each curve.",
            _curves(report, logs),
        ),
        ("All measurements", "Every number of the report with its provenance.", _measurements(report)),
    ]
    body = "".join(
        f'<section><h2>{name}</h2><p class="what">{text}</p>{content}</section>'
        for name, text, content in sections
        if content
    )
    page = fill(WEB, "report.html", ("report.css",), (), title=title, body=body)
    write_text(folder / "report.html", page)
    return "report.html"


def _text(value: object) -> str:
    return html.escape(str(value))


def _comparison(report: Mapping[str, Any]) -> str:
    """A chart per column of the paper's table in which at least two rows have a number."""
    table, drawn = report["table"], []
    for column in table["columns"]:
        cells = [(row, row["cells"].get(column["key"])) for row in table["rows"]]
        dots = [
            Dot(row["name"], cell["value"], cell["interval"], f"{row['name']}: {cell['text']}", bool(cell["involved"]))
            for row, cell in cells
            if cell is not None and math.isfinite(cell["value"])
        ]
        if len(dots) > 1:
            drawn.append(charts.dots(dots, column["title"]))
    return f'<div class="charts">{"".join(drawn)}</div>' if drawn else ""


def _tables(report: Mapping[str, Any]) -> str:
    table = report["table"]
    parts = [_table(report, table["columns"])]
    if table["more"]:
        parts += ["<h3>More</h3>", _turned(report, table["more"])]
    notes = "".join(f"<li>{_text(note)}</li>" for note in [*table["notes"], *_protocol(report["protocol"])])
    return "".join(parts) + f'<ul class="notes">{notes}</ul>'


def _protocol(protocol: Mapping[str, Any]) -> Iterable[str]:
    """What holds for all numbers, in words."""
    held = protocol["held_out"]
    yield f"Held-out images: {held['name']} ({held['id']}), {held['images']:,} images, {protocol['resize']}."
    for one in protocol["references"]:
        yield f"Reference: {one['name']} ({one['id']})."
    if "precision" in protocol:  # reports of earlier versions do not say
        yield "Precision: " + ", ".join(f"{what} {how}" for what, how in protocol["precision"].items()) + "."


def _table(report: Mapping[str, Any], columns: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f'<th scope="col" title="{_text(c["protocol"] or "")}">{_text(c["title"])}</th>' for c in columns)
    rows = _lines(report["table"], columns)
    empty = {c["key"] for c in columns if not any(c["key"] in row["cells"] for row in rows)}
    once = f'<td class="none" rowspan="{len(rows)}">not measured</td>'
    lines = [
        f'<tr{_kind(row)}><th scope="row">{_text(row["name"])}</th>'
        + "".join(
            (once if number == 0 else "") if c["key"] in empty else _cell(report, row["cells"].get(c["key"]))
            for c in columns
        )
        + "</tr>"
        for number, row in enumerate(rows)
    ]
    head = f'<thead><tr><th scope="col">tokenizer</th>{head}</tr></thead>'
    return f'<div class="wide"><table>{head}<tbody>{"".join(lines)}</tbody></table></div>'


def _lines(table: Mapping[str, Any], columns: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of measurements, and under each tokenizer's that of published figures, where these columns have any."""
    keys = {c["key"] for c in columns}
    beside = {one["tokenizer"]: one for one in table.get("published", ()) if keys & one["cells"].keys()}
    found: list[Mapping[str, Any]] = []
    for row, following in zip(table["rows"], [*table["rows"][1:], {"tokenizer": None}], strict=True):
        found.append(row)
        if row["tokenizer"] != following["tokenizer"] and row["tokenizer"] in beside:
            found.append(beside[row["tokenizer"]])
    return found


def _kind(row: Mapping[str, Any]) -> str:
    return ' class="published"' if "source" in row else ""


def _turned(report: Mapping[str, Any], columns: Sequence[Mapping[str, Any]]) -> str:
    """The same with a line per metric, of which there are many, and a column per tokenizer."""
    rows = _lines(report["table"], columns)
    names = "".join(f'<th scope="col"{_kind(row)}>{_text(row["name"])}</th>' for row in rows)
    lines = [
        f'<tr><th scope="row" title="{_text(c["protocol"] or "")}">{_text(c["title"])}</th>'
        + "".join(_cell(report, row["cells"].get(c["key"])) for row in rows)
        + "</tr>"
        for c in columns
    ]
    head = f'<thead><tr><th scope="col">metric</th>{names}</tr></thead>'
    return f'<div class="wide"><table>{head}<tbody>{"".join(lines)}</tbody></table></div>'


def _cell(report: Mapping[str, Any], cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return '<td class="none">-</td>'
    if "artifact" not in cell:
        return f'<td class="published">{_text(cell["text"])}</td>'
    tip = "".join(f"<span>{_text(line)}</span>" for line in provenance(report, cell))
    mark = " marked" if cell["involved"] else ""
    return f'<td><span class="number{mark}" tabindex="0">{_text(cell["text"])}<span class="tip" role="tooltip">{tip}</span></span></td>'


def provenance(report: Mapping[str, Any], cell: Mapping[str, Any]) -> list[str]:
    """Where a cell's number comes from: exact value, artifact, what was counted, reference, extractor, interval, roles."""
    owner = next(a for a in report["artifacts"] if a["id"] == cell["artifact"])
    found = owner["measurements"][cell["measurement"]]
    return [
        f"{found['metric']} = {found['value']!r}",
        f"of {owner['id']}, {owner['path']}",
        *_circumstances(report, owner, found),
    ]


def _circumstances(report: Mapping[str, Any], owner: Mapping[str, Any], m: Mapping[str, Any]) -> list[str]:
    lines = [f"N: {m['count']:,} {m['of']}, {owner['size']} px"]
    if (against := m["against"]) is not None:
        images = "number of images unknown" if against["images"] is None else f"{against['images']:,} images"
        lines.append(f"reference: {against['name']} ({against['id']}), {images}")
    if m["extractor"] is not None:
        known = report["protocol"]["extractors"].get(m["extractor"])
        weights = f" (sha256 {str(known['sha256'])[:8]}, {known['size']} px, {known['resize']})" if known else ""
        lines.append(f"extractor: {m['extractor']}{weights}")
    if m["by"] is not None:
        lines.append(m["by"])
    if m["interval"] is not None:
        lines.append(f"95 % interval: {m['interval'][0]:.6g} to {m['interval'][1]:.6g}")
    if m["deviation"] is not None:
        lines.append(f"standard deviation: {m['deviation']:.4g}")
    if m["involved"]:
        lines.append(f"* its judge took part in the training: {', '.join(m['involved'])}")
    return lines


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.file.read_bytes()).decode("ascii")
    title, text = _text(picture.title), _text(picture.text)
    image = f'<div class="wide" tabindex="0"><img alt="{title}" src="data:image/png;base64,{data}"></div>'
    if picture.folded:
        return f"<details><summary>{title} <small>{text}</small></summary>{image}</details>"
    return f"<figure><figcaption><b>{title}</b> {text}</figcaption>{image}</figure>"


def _lineage(report: Mapping[str, Any]) -> str:
    """Artifacts measured, and the inputs that they name."""
    nodes: dict[str, Node] = {}
    edges = []
    made = {a["id"] for a in report["artifacts"]}
    for a in report["artifacts"]:
        for role, source in a["inputs"].items():
            if source not in made:
                nodes.setdefault(source, Node(role, source, f"{role}: {source} (not measured here)"))
            edges.append((source, a["id"]))
    for a in report["artifacts"]:
        mode = f" {a['mode'].upper()}" if a["mode"] else ""
        nodes[a["id"]] = Node(f"{a['kind']}{mode}: {a['name']}", a["id"], f"{a['id']}\n{a['path']}\n{a['size']} px")
    return f'<div class="wide" tabindex="0">{charts.lineage(nodes, edges)}</div>' if nodes else ""


def _curves(report: Mapping[str, Any], logs: Mapping[str, Log]) -> str:
    parts = []
    for a in report["artifacts"]:
        drawn = [charts.curve(points, key, STEPS) for key, points in _series(logs.get(a["id"], ())).items()]
        if drawn:
            heading = f"<summary>{_text(a['kind'])} {_text(a['name'])} <small>{_text(a['id'])}</small></summary>"
            parts.append(f'<details open>{heading}<div class="charts">{"".join(drawn)}</div></details>')
    return "".join(parts)


def _series(log: Log) -> dict[str, list[Point]]:
    """Finite numbers of a log by key, those with at least two points."""
    found: dict[str, list[Point]] = {}
    for record in log:
        step = record.get(STEPS)
        if not isinstance(step, int | float):
            continue
        for key, value in record.items():
            if (
                key not in DULL
                and isinstance(value, int | float)
                and not isinstance(value, bool)
                and math.isfinite(value)
            ):
                found.setdefault(key, []).append(Point(float(step), float(value)))
    return {key: points for key, points in found.items() if len(points) > 1}


def _measurements(report: Mapping[str, Any]) -> str:
    parts = []
    for a in report["artifacts"]:
        rows = "".join(
            f'<tr><th scope="row">{_text(m["metric"])}</th><td>{_text(charts.number(m["value"]))}</td>'
            f'<td class="words">{_text("; ".join(_circumstances(report, a, m)))}</td></tr>'
            for m in a["measurements"]
        )
        heading = f"<summary>{_text(a['kind'])} {_text(a['name'])} <small>{_text(a['id'])}, {_text(a['path'])}</small></summary>"
        parts.append(f'<details>{heading}<div class="wide"><table><tbody>{rows}</tbody></table></div></details>')
    return "".join(parts)
