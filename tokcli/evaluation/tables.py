"""From measurements to tables: rows by lineage, columns by metric and protocol, the paper's columns first."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from tokcli.artifact.manifest import differing_keys
from tokcli.evaluation.aims import PAPER, Published, interleaved, place, shown_empty
from tokcli.evaluation.records import Measured, Measurement
from tokcli.evaluation.text_tables import NOT_MEASURED, Cell, Column, Row, Table, cell_text
from tokcli.metrics import METRICS
from tokcli.metrics.fid import ENOUGH_IMAGES, frechet_distance
from tokcli.metrics.reported import Reported

SIGN = "* its judge took part in the training: "
Columns = Mapping[tuple[Reported, Any], Column]  # by metric and protocol


@dataclass(frozen=True)
class Entry:
    """One measurement in its place."""

    artifact: Measured
    measurement: Measurement

    @property
    def what(self) -> Reported:
        """The metric and what it is of."""
        return self.measurement.what

    @property
    def protocol(self) -> tuple[Any, ...]:
        """What two numbers of one column must share."""
        m, against = self.measurement, self.measurement.against
        compared = None if against is None else (against.id, against.images)
        return (m.count, m.of, compared, self.artifact.size, m.by)


def warning_of_small_sets(measured: Iterable[Measured]) -> str | None:
    """The sets of images of which Fréchet distances were made though they are too few, with their numbers; None: none is."""
    found: dict[str, int | None] = {}
    for one in measured:
        for m in one.measurements:
            if m.what.declared.function is frechet_distance and m.against is not None:
                found |= {one.path.rsplit("/", 1)[-1]: m.count, m.against.name: m.against.images}
    few = [f"{name} ({images:,})" for name, images in found.items() if images is not None and images < ENOUGH_IMAGES]
    if not few:
        return None
    return (
        "Fréchet distances are too large, by an amount that depends on N, where images are fewer than "
        f"{ENOUGH_IMAGES:,}; compare only at equal N: {', '.join(few)}"
    )


@dataclass
class Line:
    """A row in the making: artifacts that belong together.

    Args:
        made: ids, one each by role: `decoder`, the mode of a proposal network, `tokenizer` where it does not decode.
        holds: those whose measurements stand here, in the order given.
        beside: the samples whose place was taken, so that these have a line of their own.
    """

    made: dict[str, str]
    holds: list[Measured] = field(default_factory=list)
    beside: Measured | None = None


def _lines(found: Sequence[Measured]) -> list[Line]:
    """The artifacts of one tokenizer by lineage: samples with the networks that drew them; the tokenizer's line comes first."""
    modes = {one.id: str(one.mode) for one in found if one.kind == "proposal"}
    lines: list[Line] = []
    for one in (one for one in found if one.kind == "samples"):
        drawn_by, decoder = one.inputs.get("proposal"), one.inputs.get("decoder")
        networks = {"decoder": decoder, modes.get(str(drawn_by), str(one.mode)): drawn_by}
        known = {role: id for role, id in networks.items() if id is not None}
        fits = [line for line in lines if line.beside is None and known.items() <= {**known, **line.made}.items()]
        same = [line for line in fits if known.items() <= line.made.items()]
        taken = [other for line in same for other in line.holds if other.mode == one.mode]
        if taken or not fits:
            lines.append(Line(known, [one], taken[0] if taken else None))
        else:
            best = max(fits, key=lambda line: len(known.items() & line.made.items()))
            best.made |= known
            best.holds.append(one)
    for one in (one for one in found if one.kind != "samples"):
        decodes = one.kind == "decoder" or any(m.what.declared.takes == "images" for m in one.measurements)
        role = str(one.mode) if one.kind == "proposal" else "decoder" if decodes else one.kind
        here = [line for line in lines if line.made.get(role) == one.id]
        free = [line for line in lines if line.beside is None and role not in line.made]
        line = next(iter([*here, *free]), None)
        if line is None:
            lines.append(line := Line({}))
        line.made[role] = one.id
        line.holds.append(one)
    lines.sort(key=lambda line: all(one.kind != "tokenizer" for one in line.holds))
    return lines


def _rows(measured: Iterable[Measured]) -> list[tuple[str, str, list[Entry]]]:
    """(name, tokenizer, entries): a row per tokenizer, and one more for other networks over it and for other samples of them."""
    of: dict[str, list[Measured]] = defaultdict(list)
    for one in measured:
        of[one.tokenizer].append(one)
    names = [found[0].name for found in of.values()]
    rows = []
    for tokenizer, found in of.items():
        name = found[0].name if names.count(found[0].name) == 1 else f"{found[0].name} {tokenizer[-6:]}"
        first, *others = _lines(found)
        rows.append((name, tokenizer, _entries(first, found)))
        for said, line in _named(others, first, found).items():
            rows.append((f"{name}: {said}", tokenizer, _entries(line, found)))
    return rows


def _named(others: Sequence[Line], first: Line, found: Sequence[Measured]) -> dict[str, Line]:
    """Lines by what differs; samples of two modes drawn otherwise in one way, beside those of the first line, share theirs."""
    named: dict[str, Line] = {}
    for line in others:
        said = _what_differs(line, first, found)
        like = named.get(said)
        if like is None:
            named[said] = line
        elif like.beside in first.holds and line.beside in first.holds and _modes(like).isdisjoint(_modes(line)):
            like.holds += line.holds
        else:
            named[f"{said}, {line.holds[0].id[-6:]}"] = line
    return named


def _modes(line: Line) -> set[str | None]:
    return {one.mode for one in line.holds}


def _entries(line: Line, order: Sequence[Measured]) -> list[Entry]:
    found = [Entry(one, m) for one in order if one in line.holds for m in one.measurements if not m.what.nonblank]
    return list({(e.what, e.protocol): e for e in found}.values())


def _what_differs(line: Line, first: Line, found: Sequence[Measured]) -> str:
    """What the samples' recipes, or those of the networks behind a line, have that the first line's have not."""
    if line.beside is not None:
        return _difference(line.holds[0], line.beside)
    by_id = {one.id: one for one in found}
    pairs = [
        (by_id.get(id), by_id.get(first.made[role])) for role, id in line.made.items() if first.made.get(role, id) != id
    ]
    said = [_difference(one, other) for one, other in pairs if one is not None and other is not None]
    return "; ".join(said) or line.holds[0].path.rsplit("/", 1)[-1]


def _difference(one: Measured, other: Measured) -> str:
    """What an artifact's recipe has that another's has not, or its folder's name where that is much."""
    found = [text.split(", not ")[0].replace(": ", "=") for text in differing_keys(one.recipe, other.recipe)]
    if one.kind == "samples":
        found = [text.removeprefix("sample.") for text in found]
    said = ", ".join(found)
    return said if 0 < len(said) <= 60 else one.path.rsplit("/", 1)[-1]


def _columns(entries: Sequence[Entry]) -> Columns:
    """A column per metric and protocol; letters where one metric has several protocols."""
    protocols: dict[Reported, list[Any]] = defaultdict(list)
    for e in entries:
        if e.protocol not in protocols[e.what]:
            protocols[e.what].append(e.protocol)
    several = list(dict.fromkeys(p for found in protocols.values() if len(found) > 1 for p in found))
    letters = {p: _letter(several.index(p)) for p in several}
    return {
        (what, p): Column(what, letters[p] if len(found) > 1 else "")
        for what, found in protocols.items()
        for p in found
    }


def _letter(number: int) -> str:
    return chr(ord("a") + number) if number < 26 else f"a{number}"


def _order(what: Reported) -> int:
    """Metrics that go by their own name in the order of METRICS, then the others."""
    return list(METRICS).index(what.metric) if what.name == what.metric else len(METRICS)


class Tables(NamedTuple):
    """The paper's table, all other metrics, both in one, and all as data for `metrics.json`."""

    paper: Table
    more: Table
    whole: Table
    as_json: dict[str, Any]


def build_tables(measured: Sequence[Measured], aims: Published | None = None) -> Tables:
    """One row per tokenizer among these artifacts, and one more wherever a second artifact fills the same place.

    Args:
        aims: published figures, for a row under that of each tokenizer that they are of.
    """
    rows = _rows(measured)
    entries = [e for _, _, found in rows for e in found]
    columns = _columns(entries)
    by_place: dict[int, list[Column]] = defaultdict(list)
    for column in columns.values():
        by_place[place(column.what)].append(column)
    modes = {one.mode for one in measured if one.kind == "samples"}
    modes |= aims.modes([one.name for one in measured]) if aims else set()
    empty = shown_empty(modes)
    paper = [c for i, one in enumerate(PAPER) for c in by_place.get(i) or [Column(one.what)] * (one in empty)]
    more = sorted(by_place[len(PAPER)], key=lambda c: _order(c.what))
    placed = [(name, tokenizer, {columns[e.what, e.protocol].key: e for e in found}) for name, tokenizer, found in rows]
    drawn: dict[str, list[Row]] = defaultdict(list)
    for name, tokenizer, found in placed:
        cells = {key: Cell(e.measurement.value, bool(e.measurement.involved)) for key, e in found.items()}
        drawn[tokenizer].append(Row(name, cells))
    called = {one.tokenizer: one.name for one in measured}
    warned = warning_of_small_sets(measured)
    names, whole = list(dict.fromkeys(called.values())), [*paper, *more]
    tables = []
    for shown in (paper, more, whole):
        theirs = {t: row for t, name in called.items() if aims and (row := aims.row(name, shown))}
        notes = aims.notes(names, whole) if aims and shown is not more else []
        cautions = [warned] if warned and shown is not more else []
        if any(column not in columns.values() for column in shown):
            cautions.append(f"{NOT_MEASURED}: not measured")
        explained = [*cautions, *_notes(entries, columns, shown), *notes]
        tables.append(Table(shown, interleaved(drawn, theirs), explained))
    as_json = {
        "columns": [_column_json(c, entries, columns) for c in paper],
        "more": [_column_json(c, entries, columns) for c in more],
        "rows": [
            {"name": name, "tokenizer": tokenizer, "cells": {key: _cell(e, columns) for key, e in found.items()}}
            for name, tokenizer, found in placed
        ],
        "notes": tables[2].notes,
        "published": [
            {"name": row.name, "tokenizer": t, "source": aims.source, "cells": _published_cells(row, whole)}
            for t, name in called.items()
            if aims and (row := aims.row(name, whole))
        ],
    }
    return Tables(tables[0], tables[1], tables[2], as_json)


def _published_cells(row: Row, columns: Sequence[Column]) -> dict[str, dict[str, Any]]:
    by_key = {column.key: column for column in columns}
    return {key: {"value": cell.value, "text": cell_text(by_key[key], cell)} for key, cell in row.cells.items()}


def _cell(e: Entry, columns: Columns) -> dict[str, Any]:
    m, column = e.measurement, columns[e.what, e.protocol]
    text = cell_text(column, Cell(m.value, bool(m.involved)))
    place = next(i for i, one in enumerate(e.artifact.measurements) if one is m)
    found = {"value": m.value, "text": text, "artifact": e.artifact.id, "measurement": place}
    return found | {"involved": list(m.involved), "interval": None if m.interval is None else list(m.interval)}


def _column_json(column: Column, entries: Sequence[Entry], columns: Columns) -> dict[str, Any]:
    what, of_it = column.what, [e for e in entries if columns[e.what, e.protocol] == column]
    found = {"key": column.key, "title": column.heading, "better": what.declared.better, "metric": what.name}
    return found | {"fields": asdict(what), "protocol": _words(of_it[0]) if of_it else None}


def _notes(entries: Sequence[Entry], columns: Columns, shown: Sequence[Column]) -> list[str]:
    """One line per protocol with the columns that follow it, and what the marks mean."""
    of: dict[Any, list[str]] = defaultdict(list)
    words: dict[Any, str] = {}
    roles: list[str] = []
    for e in entries:
        column = columns[e.what, e.protocol]
        if column not in shown:
            continue
        if column.title not in of[e.protocol]:
            of[e.protocol].append(column.title)
        words[e.protocol] = _words(e)
        if e.measurement.involved:
            roles.append(f"{e.what.extractor or e.what.title} ({', '.join(e.measurement.involved)})")
    notes = [f"{', '.join(titles)}: {words[p]}" for p, titles in of.items()]
    return notes + ([SIGN + "; ".join(dict.fromkeys(roles))] if roles else [])


def _words(e: Entry) -> str:
    m, against = e.measurement, e.measurement.against
    what = f"{m.count:,} {m.of}"
    if against is not None:
        images = "an unknown number of" if against.images is None else f"{against.images:,}"
        what += (
            f" against {images} images of {against.name} ({against.id})"
            if m.of == "images"
            else f" of {against.name} ({against.id})"
        )
    return f"{what}, {e.artifact.size} px{f', {m.by}' if m.by else ''}"
