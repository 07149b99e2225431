"""The paper's table: one row per tokenizer, one column per metric, an arrow for its better direction."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tokcli.metrics import Better, describe

ARROWS: dict[Better, str] = {"higher": " ↑", "lower": " ↓", "neither": ""}
NOT_MEASURED = "-"


class Row(NamedTuple):
    """One line of the table: a name and the metrics known of it (None or absent: not measured)."""

    name: str
    metrics: Mapping[str, float | None]


def heading(column: str) -> str:
    """A metric's title and arrow: `rFID ↓`."""
    metric = describe(column)
    return metric.title + ARROWS[metric.better]


def cell(column: str, value: float | None) -> str:
    """A value as the table shows it; `-` where there is none."""
    if value is None or math.isnan(value):
        return NOT_MEASURED
    metric = describe(column)
    return f"{value * 100 if metric.percent else value:.{metric.digits}f}"


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Every metric that some row has, in the order in which they are first met."""
    return list(dict.fromkeys(column for row in rows for column in row.metrics))


def grid(rows: Sequence[Row], columns: Sequence[str] | None = None) -> list[list[str]]:
    """Headings, then one list of cells per row; every output format is drawn from this.

    Args:
        rows: what to show.
        columns: metric names in the order wanted; default all that occur.
    """
    columns = columns_of(rows) if columns is None else columns
    lines = [["tokenizer", *(heading(column) for column in columns)]]
    lines += [[row.name, *(cell(column, row.metrics.get(column)) for column in columns)] for row in rows]
    return lines


def as_text(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """The table for a terminal: names to the left, numbers to the right."""
    lines = grid(rows, columns)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]).rstrip()
        for first, *rest in lines
    )


def as_markdown(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """The table in Markdown; a `|` in a name is escaped."""
    lines = [[text.replace("|", "\\|") for text in line] for line in grid(rows, columns)]
    lines.insert(1, ["---", *["---:"] * (len(lines[0]) - 1)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
