"""Figures that a publication reports of the same tokenizers: in rows of their own under ours, never among measurements."""

import math
from collections.abc import Mapping, Sequence

from pydantic import Field, field_validator

from tokcli.evaluation.text_tables import Cell, Column, Row
from tokcli.metrics import METRICS, describe
from tokcli.recipe.sections import Section
from tokcli.registry import nearest

MODES = ("ar", "nar", "t2i")
DRAWN = ("fid", "sfid", "kid", "inception_score", "clip_score")  # of samples, so that their names end in a mode
PLAIN = ("images", "maps", "counts", "nll", "hits", "features")  # what metrics take that go by their own name
KNOWN = (
    *(name for name, metric in METRICS.items() if metric.takes in PLAIN), "rfid",
    *(f"{name}_{mode}" for name in DRAWN for mode in MODES),
)  # fmt: skip


class Published(Section):
    """What a recipe aims at."""

    source: str = Field(min_length=1)  # the publication and its table
    rows: dict[str, dict[str, float]]  # a tokenizer's name, such as vqkd-clip -> metric -> value; shares in [0, 1]
    assumed: list[str] = []  # what is not known of these figures, a sentence each

    @field_validator("rows")
    @classmethod
    def _check(cls, rows: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        for name, figures in rows.items():
            for metric in figures:
                if metric not in KNOWN:
                    raise ValueError(f"{name}.{metric}: no such metric. {nearest(metric, KNOWN)}")
                if not 0 <= figures[metric] <= (1 if metric in METRICS and METRICS[metric].percent else math.inf):
                    range_ = "a share in [0, 1]" if metric in METRICS and METRICS[metric].percent else "at least 0"
                    raise ValueError(f"{name}.{metric}: must be {range_}. Got {figures[metric]}")
        return rows

    def modes(self, names: Sequence[str]) -> set[str]:
        """The modes of samples that figures of these tokenizers are of."""
        asked = {metric.rpartition("_")[2] for name in names for metric in self.rows.get(name, {})}
        return asked & set(MODES)

    def row(self, name: str, columns: Sequence[Column]) -> Row | None:
        """The row under a tokenizer's own; None where nothing is published of it.

        Each figure stands in the first column of its metric by its exact name: a FID never in that of another extractor's distance.
        """
        of: dict[str, str] = {}
        for column in columns:
            of.setdefault(column.metric, column.key)
        found = {of[metric]: Cell(value) for metric, value in self.rows.get(name, {}).items() if metric in of}
        return Row(f"{name}, published", found, published=True) if found else None

    def notes(self, names: Sequence[str], columns: Sequence[Column]) -> list[str]:
        """Where the figures are from, what is assumed, and what has no column here."""
        shown = {column.metric for column in columns}
        missing = list(dict.fromkeys(m for name in names for m in self.rows.get(name, {}) if m not in shown))
        if not any(self.rows.get(name) for name in names):
            return []
        found = [
            f"published: {self.source}; not measured here, of a tokenizer of that name, whatever its own data, sizes and protocol are"
        ]
        found += [f"published, assumed: {one}" for one in self.assumed]
        if missing:
            titles = ", ".join(describe(metric).title for metric in missing)
            found.append(
                f"published too, without a column here: {titles} (FID, KID and IS are of Inception's published weights alone)"
            )
        return found


def interleaved(rows: Mapping[str, Sequence[Row]], published: Mapping[str, Row]) -> list[Row]:
    """Rows by tokenizer, and under each tokenizer's its published one."""
    return [row for key, own in rows.items() for row in [*own, *([published[key]] if key in published else [])]]
