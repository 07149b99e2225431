"""Ranges of recipe keys, as types: an annotation says what a value may be, and the recipe's check reads it there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveInt


@dataclass(frozen=True)
class Interval:
    """Refuses a pair of numbers that is no interval of the kind that `text` names."""

    text: str
    fits: Callable[[float, float], bool]

    def __call__(self, pair: tuple[float, float]) -> tuple[float, float]:
        """The pair.

        Raises:
            ValueError: it is no such interval.
        """
        if not self.fits(*pair):
            raise ValueError(f"should be [low, high] with {self.text}. Got {list(pair)}")
        return pair


Share = Annotated[float, Field(ge=0, lt=1)]
"""Of values dropped, of a code kept: never all."""

Probability = Annotated[float, Field(ge=0, le=1)]


Pixels = Annotated[int, Field(ge=1, le=2**30)]
"""Most of an image that is decoded."""

Widths = Annotated[list[PositiveInt], Field(min_length=1)]
"""Channels of each stage of a convolutional network."""

Layers = Annotated[list[int | str], Field(min_length=1)]
"""Of a pretrained network, by name or number."""

Zoom = Annotated[tuple[float, float], AfterValidator(Interval("1 <= low <= high", lambda a, b: 1 <= a <= b))]

Area = Annotated[tuple[float, float], AfterValidator(Interval("0 < low <= high <= 1", lambda a, b: 0 < a <= b <= 1))]
"""Shares of an area."""

Aspect = Annotated[tuple[float, float], AfterValidator(Interval("0 < low <= high", lambda a, b: 0 < a <= b))]
"""Width over height."""

Span = Annotated[tuple[float, float], AfterValidator(Interval("0 <= low < high <= 1", lambda a, b: 0 <= a < b <= 1))]
"""Shares of a training or a sampling between which something happens."""
