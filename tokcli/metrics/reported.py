"""Measured numbers: every registered metric is given what it takes, and a number's name and title follow from its fields."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tokcli.errors import TokError
from tokcli.metrics import METRICS, KnownAs, Metric, Takes
from tokcli.metrics.inception_score import Spread
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


class Found(NamedTuple):
    """A measured number.

    Args:
        what: the metric and what it is of.
        value: the number.
        number: of things that it was measured on.
        of: what these are, "tokens" or "images".
    """

    what: Reported
    value: float
    number: int
    of: str


class Judged(NamedTuple):
    """All numbers of one network.

    Args:
        found: the numbers.
        counted: how many images and tokens they were measured on.
    """

    found: Sequence[Found]
    counted: Mapping[str, int]

    @property
    def flat(self) -> dict[str, float]:
        """Values by reported name and the counts beside them, as manifests and logs hold them."""
        return {one.what.name: one.value for one in self.found} | dict(self.counted)


class Number(NamedTuple):
    """What a metric found.

    Args:
        value: the number.
        deviation: its standard deviation over parts of the data, where the metric gives one.
        images: how many have a value, where the metric gives one per image.
    """

    value: float
    deviation: float | None = None
    images: int | None = None


def number_of(found: int | float | Spread | Float[Tensor, "*b"]) -> Number | None:
    """A metric's result as a number: the mean over the images that have a value; None where none has."""
    if isinstance(found, Spread):
        return Number(found.mean, found.deviation)
    if isinstance(found, Tensor) and found.ndim:
        known = found[~found.isnan()]
        return Number(float(known.mean()), images=len(known)) if len(known) else None
    return Number(float(found))


def taking(takes: Takes, *, extractor: str | None = None, mode: str | None = None) -> dict[str, Metric]:
    """The registered metrics that take this, by key in the order of METRICS.

    Args:
        extractor: the network that it comes from, as the recipe names it.
        mode: of the proposal network that it comes from.
    """
    return {
        key: metric
        for key, metric in METRICS.items()
        if metric.takes == takes
        and (not metric.extractors or extractor in metric.extractors)
        and (not metric.modes or mode in metric.modes)
    }


def ask(
    takes: Takes, *given: Any, extractor: str | None = None, mode: str | None = None
) -> Iterator[tuple[str, Number]]:
    """Hand what was computed to every metric that `taking` finds: their keys and numbers."""
    for key, metric in taking(takes, extractor=extractor, mode=mode).items():
        number = number_of(metric.function(*given))
        if number is not None:
            yield key, number


class PerImage:
    """The values of metrics that give one per image, for images that arrive in batches.

    Args:
        takes: what the metrics take.
    """

    def __init__(self, takes: Takes) -> None:
        self.metrics = taking(takes)
        self._found: dict[str, list[Tensor]] = {key: [] for key in self.metrics}

    def add(self, *given: Any) -> None:
        """Measure the images of a batch."""
        for key, metric in self.metrics.items():
            self._found[key].append(metric.function(*given))

    @property
    def values(self) -> dict[str, Float[Tensor, " b"]]:
        """One value per image by the metric's key; {} where there were no images."""
        return {key: torch.cat(found) for key, found in self._found.items() if found}

    @property
    def numbers(self) -> dict[str, Number]:
        """Means over the images that have a value, by the metric's key."""
        return {key: number for key, found in self.values.items() if (number := number_of(found)) is not None}
