"""The columns of the paper's tables, in its order; tables, pages and the docs' tests read them here."""

from collections.abc import Collection
from dataclasses import dataclass

from tokcli.metrics.reported import Reported

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
