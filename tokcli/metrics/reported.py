"""What a number is, as fields, and the name and title that follow from them."""

from dataclasses import dataclass

from tokcli.errors import TokError
from tokcli.metrics import METRICS, KnownAs, Metric
from tokcli.registry import nearest


@dataclass(frozen=True)
class Reported:
    """What a number is, as fields; its name and title follow from them and are parsed nowhere.

    Args:
        metric: a key of METRICS.
        extractor: the network whose features were compared; None where there is none.
        mode: of samples, `ar`, `nar` or `t2i`.
        ratio: the share of tokens that a masked network had to predict, in (0, 1].
        nonblank: of patches with content alone.

    Raises:
        TokError: no such metric; the message names the nearest one.
    """

    metric: str
    extractor: str | None = None
    mode: str | None = None
    ratio: float | None = None
    nonblank: bool = False

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise TokError(f"metric '{self.metric}'", "no such metric", next=nearest(self.metric, METRICS))

    @property
    def declared(self) -> Metric:
        """The metric itself."""
        return METRICS[self.metric]

    @property
    def name(self) -> str:
        """`fid_ar`, `fd_vits14_nar`, `masked_ce_0.50`, `codebook_usage_nonblank`."""
        known = self._known_as
        parts = [known.name] if known else [self.metric, self.extractor]
        parts += ["nonblank" if self.nonblank else None, None if self.ratio is None else f"{self.ratio:.2f}", self.mode]
        return "_".join(part for part in parts if part)

    @property
    def title(self) -> str:
        """The column heading without the arrow: `FID_AR`, `FD_NAR vits14`, `masked CE at 0.50`."""
        known = self._known_as
        title = known.title if known else self.declared.title
        title += f"_{self.mode.upper()}" if self.mode else ""
        title += f" {self.extractor}" if self.extractor and not known else ""
        return title if self.ratio is None else f"{title} at {self.ratio:.2f}"

    @property
    def _known_as(self) -> KnownAs | None:
        known = self.declared.known_as
        return known if known and known.extractor == self.extractor else None
