"""How the splits of data sets are called, whatever the case: train, Train, training, train2017, training_set."""

import re
from collections.abc import Callable

NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}


_END = r"(?i:[ _-]?set)?(?:\d{4})?$"


def split_named(name: str) -> str | None:
    """Which of `train`, `val` and `test` a folder's name says; None for any other name."""
    stem = re.sub(_END, "", name.lower())
    return next((split for split, names in NAMES.items() if stem in names), None)


def other_names(name: str, split: str) -> list[str]:
    """What another split beside the split `name` may be called, the likeliest first; [] where `name` says no other split.

    Case and end are those of `name`: `Train` -> `Val`, `train2017` -> `val2017`, `training_set` -> `val_set`.
    """
    if split_named(name) in (None, split):
        return []
    end = re.search(_END, name)[0]  # type: ignore[index]  # it may be empty
    styled = [style(other) for other in NAMES[split] for style in (_like(name), str)]
    return [other + end for other in dict.fromkeys(styled)]


def _like(name: str) -> Callable[[str], str]:
    return str.upper if name.isupper() else str.capitalize if name[:1].isupper() else str.lower
