"""The columns of the paper's tables, in its order; and published figures, in rows of their own under ours."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field, field_validator

from tokcli.evaluation import captions, generated
from tokcli.evaluation.text_tables import Cell, Column, Row
from tokcli.metrics import METRICS
from tokcli.metrics.reported import Reported
from tokcli.recipe.sections import Section
from tokcli.registry import nearest

MODES = ("ar", "nar", "t2i")  # of samples
TABLES = ("imagenet", "coco")  # folders of recipes: tables 1 and 2


@dataclass(frozen=True)
class PaperColumn:
    """A column of the paper's tables.

    Args:
        what: the number that it shows in the paper; here it holds the same metric of any extractor.
        tables: those that have figures in it.
        every_mode: it holds samples of all modes.
    """

    what: Reported
    tables: tuple[str, ...] = ()
    every_mode: bool = False

    def holds(self, one: Reported) -> bool:
        """Whether a number belongs here."""
        return one.metric == self.what.metric and (self.every_mode or one.mode == self.what.mode)


PAPER = (
    PaperColumn(Reported("codebook_usage"), TABLES),
    PaperColumn(Reported("rfd", "inception"), TABLES),
    PaperColumn(Reported("proposal_ppl"), TABLES),
    PaperColumn(Reported("fd", "inception", "ar"), TABLES),
    PaperColumn(Reported("fd", "inception", "nar"), ("imagenet",)),
    PaperColumn(Reported("fd", "inception", "t2i"), ("coco",)),
    PaperColumn(Reported("inception_score", "inception"), every_mode=True),
    PaperColumn(Reported("lpips")),
)


def place(one: Reported) -> int:
    """The place of the column that holds a number, or one past the last."""
    return next((i for i, column in enumerate(PAPER) if column.holds(one)), len(PAPER))


def shown_empty(modes: Collection[str | None]) -> list[PaperColumn]:
    """The columns that are shown though nothing was measured: FID_T2I of families drawn for captions alone, FID_NAR of others or where
    it is drawn or published, LPIPS never.

    Args:
        modes: of the samples measured or published.
    """
    captions = "t2i" in modes
    hidden = {None: False, "ar": False, "nar": captions and "nar" not in modes, "t2i": not captions}
    return [c for c in PAPER if c.what.metric != "lpips" and not hidden[c.what.mode]]


def _publishable() -> dict[str, Reported]:
    """What a publication reports, by name: all that has a name of its own, without that of an extractor."""
    found = []
    for key, metric in METRICS.items():
        if metric.takes in generated.SERVES + captions.SERVES:
            known = metric.known_as
            found += [Reported(key, known.extractor, mode) for mode in MODES] if known else []
        else:
            found.append(Reported(key, metric.known_as.extractor if metric.known_as else None))
    return {one.name: one for one in found}


class Published(Section):
    """Published figures that a recipe aims at.

    Args:
        source: the publication and its table.
        rows: a tokenizer's name, such as vqkd-clip, to its metrics and their values; shares are in [0, 1].
        assumed: what is not known about these figures, one sentence each.
    """

    source: str = Field(min_length=1)
    rows: dict[str, dict[str, float]]
    assumed: list[str] = []

    @field_validator("rows")
    @classmethod
    def _check(cls, rows: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        known = _publishable()
        for name, figures in rows.items():
            for metric, value in figures.items():
                if metric not in known:
                    raise ValueError(f"{name}.{metric}: no such metric. {nearest(metric, known)}")
                share = known[metric].declared.percent
                if not 0 <= value <= (1 if share else math.inf):
                    range_ = "a share in [0, 1]" if share else "at least 0"
                    raise ValueError(f"{name}.{metric}: must be {range_}. Got {value}")
        return rows

    def _figures(self, name: str) -> dict[Reported, float]:
        known = _publishable()
        return {known[metric]: value for metric, value in self.rows.get(name, {}).items()}

    def modes(self, names: Sequence[str]) -> set[str | None]:
        """The modes of samples that figures of these tokenizers are of."""
        return {what.mode for name in names for what in self._figures(name)} - {None}

    def row(self, name: str, columns: Sequence[Column]) -> Row | None:
        """The row under a tokenizer's own; None where nothing is published of it.

        Each figure stands in the first column of just its metric: a FID never in that of another extractor's distance.
        """
        of: dict[Reported, str] = {}
        for column in columns:
            of.setdefault(column.what, column.key)
        found = {of[what]: Cell(value) for what, value in self._figures(name).items() if what in of}
        return Row(f"{name}, published", found) if found else None

    def notes(self, names: Sequence[str], columns: Sequence[Column]) -> list[str]:
        """Where the figures are from, what is assumed, and what has no column here."""
        shown = {column.what for column in columns}
        missing = list(dict.fromkeys(what for name in names for what in self._figures(name) if what not in shown))
        if not any(self.rows.get(name) for name in names):
            return []
        found = [
            f"published: {self.source}; not measured here, of a tokenizer of that name, whatever its own data, sizes and protocol are"
        ]
        found += [f"published, assumed: {one}" for one in self.assumed]
        if missing:
            titles = ", ".join(what.title for what in missing)
            found.append(
                f"published too, without a column here: {titles} (FID, KID and IS are of Inception's published weights alone)"
            )
        return found


def interleaved(rows: Mapping[str, Sequence[Row]], published: Mapping[str, Row]) -> list[Row]:
    """Rows by tokenizer, and under each tokenizer's its published one."""
    return [row for key, own in rows.items() for row in [*own, *([published[key]] if key in published else [])]]
