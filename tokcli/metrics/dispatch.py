"""Inputs to every registered metric that takes them: whoever computes features, counts or logits names no metric."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tokcli.metrics import METRICS, Metric, Takes
from tokcli.metrics.inception_score import Spread


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
