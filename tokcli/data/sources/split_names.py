"""How the splits of data sets are called, whatever the case: train, Train, training, train2017."""

import re
from collections.abc import Callable

NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


def split_named(name: str) -> str | None:
    """Which of `train`, `val` and `test` a folder's name says; None for any other name."""
    stem = re.sub(r"\d{4}$", "", name.lower())
    return next((split for split, names in NAMES.items() if stem in names), None)


def other_names(name: str, split: str) -> list[str]:
    """What another split beside the split `name` may be called, the likeliest first; [] where `name` says no other split.

    Case and year are those of `name`: `Train` -> `Val`, `train2017` -> `val2017`.
    """
    if split_named(name) in (None, split):
        return []
    year = name[len(name.rstrip("0123456789")) :]
    styled = [style(other) for other in NAMES[split] for style in (_like(name), str)]
    return [other + year for other in dict.fromkeys(styled)]


def _like(name: str) -> Callable[[str], str]:
    return str.upper if name.isupper() else str.capitalize if name[:1].isupper() else str.lower
