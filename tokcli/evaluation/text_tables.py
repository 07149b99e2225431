"""The paper's table, drawn: one row per tokenizer, an arrow for a column's better direction, `-` where nothing was measured."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tokcli.metrics import Better
from tokcli.metrics.reported import Reported

ARROWS: dict[Better, str] = {"higher": " ↑", "lower": " ↓", "neither": ""}
NOT_MEASURED, MARK = "-", "*"


@dataclass(frozen=True)
class Column:
    """One metric under one protocol.

    Args:
        what: the metric and what it is of.
        letter: tells it from the same metric under another protocol; explained in the table's notes.
    """

    what: Reported
    letter: str = ""

    @property
    def key(self) -> str:
        """`fd_vits14_ar`, or `fd_vits14_ar (b)`."""
        return self.what.name + self._lettered

    @property
    def heading(self) -> str:
        """The title with its arrow: `rFID ↓`."""
        return self.title + ARROWS[self.what.declared.better]

    @property
    def title(self) -> str:
        """The metric's title and the letter: `rFID (b)`."""
        return self.what.title + self._lettered

    @property
    def _lettered(self) -> str:
        return f" ({self.letter})" if self.letter else ""


@dataclass(frozen=True)
class Cell:
    """A value; `marked` where the judge took part in the training."""

    value: float
    marked: bool = False


@dataclass(frozen=True)
class Row:
    """One line of a table: a name and its cells by column key; a key that is absent was not measured."""

    name: str
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Table:
    """Columns, rows, and the lines that explain them."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = field(default=())


def cell_text(column: Column, cell: Cell | None) -> str:
    """A value as the table shows it."""
    if cell is None or math.isnan(cell.value):
        return NOT_MEASURED
    metric = column.what.declared
    return f"{cell.value * 100 if metric.percent else cell.value:.{metric.digits}f}{MARK * cell.marked}"


def grid(table: Table) -> list[list[str]]:
    """Headings, then one list of cells per row; every output for people is drawn from this."""
    lines = [["tokenizer", *(column.heading for column in table.columns)]]
    lines += [[row.name, *(cell_text(c, row.cells.get(c.key)) for c in table.columns)] for row in table.rows]
    return lines


def as_text(table: Table) -> str:
    """The table for a terminal: names to the left, numbers to the right; marks stand beyond the digits."""
    lines = grid(table)
    for column in range(1, len(lines[0])):  # digits line up although some cells carry a mark
        if any(line[column].endswith(MARK) for line in lines[1:]):
            for line in lines:
                line[column] += " " * (not line[column].endswith(MARK))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    drawn = [
        "  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]).rstrip()
        for first, *rest in lines
    ]
    return "\n".join([*drawn, *table.notes])


def as_markdown(table: Table) -> str:
    """The table in Markdown, its notes as a list; a `|` in a name is escaped."""
    lines = [[text.replace("|", "\\|").replace("*", "\\*") for text in line] for line in grid(table)]
    lines.insert(1, ["---", *["---:"] * (len(lines[0]) - 1)])
    drawn = ["| " + " | ".join(line) + " |" for line in lines]
    notes = [f"- {note}".replace("- *", "- \\*") for note in table.notes]
    return "\n".join([*drawn, *([""] if notes else []), *notes])


def as_csv(table: Table) -> str:
    """The table for programs: column keys, unrounded values (shares in [0, 1]), nothing where nothing was measured."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["tokenizer", *(column.key for column in table.columns)])
    for row in table.rows:
        found = [row.cells.get(column.key) for column in table.columns]
        writer.writerow([row.name, *("" if cell is None else repr(float(cell.value)) for cell in found)])
    return file.getvalue()
