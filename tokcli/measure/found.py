"""Numbers that were measured of a network, each with what it is and how many things it was measured on."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tokcli.metrics.reported import Reported


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
