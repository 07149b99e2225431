"""One form for all progress bars of bulk work: rate and time left, on stderr."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias, TypeVar

from tqdm import tqdm

from tokcli import distributed

Bar: TypeAlias = "tqdm[Any]"
T = TypeVar("T")

DELAY = 2.0  # seconds of work before a bar appears


def bar(total: int | None, *, unit: str, desc: str) -> Bar:
    """A bar that appears after two seconds and goes when it is closed; none where stderr is no terminal, or on other ranks.

    Args:
        total: of all units; None where nobody knows.
        unit: what is counted, such as "image".
        desc: what is done, in a few words.
    """
    return tqdm(
        total=total,
        unit=unit,
        desc=desc,
        file=sys.stderr,
        delay=DELAY,
        leave=False,
        dynamic_ncols=True,
        disable=None if distributed.is_main() else True,
    )


def passing(
    items: Iterable[T], total: int | None, *, unit: str, desc: str, units: Callable[[T], int] = lambda _: 1
) -> Iterator[T]:
    """The same items, under a bar.

    Args:
        total, unit, desc: see `bar`.
        units: how many of them an item is.
    """
    with bar(total, unit=unit, desc=desc) as shown:
        for item in items:
            yield item
            shown.update(units(item))
