"""What a source found, in one line; and what is wrong with its samples, the first by name and all by kind."""

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tokcli.data.decode import BadImage
from tokcli.data.sources.subset import evenly
from tokcli.errors import TokError
from tokcli.terminal import printable

if TYPE_CHECKING:
    from tokcli.data.sources import ImageSource

MOST_NAMED = 20  # problems that are named on stderr
MOST_KINDS = 6  # of them, and of other files, in one line
LOOKED_AT = 8  # images whose size is looked at, by decoding them
ASKED = 256  # images that are asked for captions
log = logging.getLogger("tok")


def kinds(problems: Iterable[tuple[str, str]]) -> Counter[str]:
    """How many problems there are of each kind: of their reason, up to its details."""
    return Counter(re.split(r"[:(]", printable(why))[0].strip() for _, why in problems)


def left_out(source: "ImageSource", unreadable: int) -> dict[str, int]:
    """How much is left out of each kind; {} where nothing is.

    Args:
        unreadable: images that could not be read, beside the source's `problems`.
    """
    return dict(sorted({**kinds(source.problems), **({"unreadable": unreadable} if unreadable else {})}.items()))


def too_many(source: "ImageSource", unreadable: int, max_bad: float) -> bool:
    """Whether more images are left out than the share that is put up with, rounded up to a whole image."""
    return unreadable + len(source.problems) > math.ceil(max_bad * (len(source) + len(source.problems)))


def refuse_bad(source: "ImageSource", unreadable: int, max_bad: float, key: str) -> None:
    """Stop as soon as too much is left out, before the rest is worked on.

    Args:
        unreadable: images so far, beside the source's `problems`.
        max_bad: share that is put up with.
        key: the flag or recipe key that says so.

    Raises:
        TokError: more is left out.
    """
    if too_many(source, unreadable, max_bad):
        bad, listed = unreadable + len(source.problems), len(source) + len(source.problems)
        what = counted(kinds(source.problems) + Counter({"unreadable": unreadable}))
        flag = f"{key} 0.1" if key.startswith("--") else f"--set {key}=0.1"
        raise TokError(
            f"--data {source.name}",
            f"{bad} of {listed} images could not be read or are incomplete, more than {key}",
            got=f"{max_bad}; left out: {what}",
            next=f"Mend them, or raise it: {flag}",
        )


def say_problems(source: "ImageSource") -> None:
    """Name the first problems on stderr, and count the others."""
    for key, why in source.problems[:MOST_NAMED]:
        log.warning("%s: left out: %s", printable(key), printable(why))
    if more := source.problems[MOST_NAMED:]:
        log.warning("%s: left out too: %s", source.name, counted(kinds(more)))


_said: set[str] = set()
_sizes: dict[str, list[tuple[int, int]]] = {}  # of images looked at, by the id of their source: images may be large


def say_found(source: "ImageSource") -> None:
    """Say in one line what a source found, once in a process."""
    if source.id not in _said:
        _said.add(source.id)
        log.info("%s", one_line(source))


def one_line(source: "ImageSource") -> str:
    """Images, classes, captions, sizes and what is left out, such as `6 images; 2 classes of 2 to 4 images; no captions`."""
    columns = getattr(source, "columns", "")
    parts = [
        f"{len(source):,} images",
        f"columns {columns}" if columns else "",
        classes_of(source),
        captions_of(source),
        sizes_of(source),
    ]
    if ignored := Counter(getattr(source, "ignored", {})):
        parts.append(f"not read: {counted(ignored)}")
    parts += getattr(source, "notes", [])
    if source.problems:
        parts.append(f"left out or incomplete: {counted(kinds(source.problems))}")
    return f"{source.name}: {'; '.join(part for part in parts if part)}"


def counted(found: Counter[str]) -> str:
    """Such as `3 (.tar), 1 (.md)`; the most frequent first."""
    found = +found  # without kinds of none
    named = ", ".join(f"{count:,} ({kind[:60]})" for kind, count in found.most_common(MOST_KINDS))
    return named + (f" and {len(found) - MOST_KINDS} more kinds" if len(found) > MOST_KINDS else "")


def class_counts(source: "ImageSource") -> np.ndarray:
    """Images of each class, int64 (classes,)."""
    labels = np.fromiter((source.label(i) for i in range(len(source))), np.int64, len(source))
    return np.bincount(labels[labels >= 0], minlength=len(source.classes))


def classes_of(source: "ImageSource") -> str:
    """How many classes there are, and how many images the smallest and the largest have."""
    if not source.classes:
        return "no classes"
    counts = class_counts(source)
    held, unlabelled = counts[counts > 0], len(source) - int(counts.sum())
    said = f"{len(held):,} classes of {held.min():,} to {held.max():,} images" if len(held) else "no labelled image"
    empty = len(counts) - len(held)
    said += f", {empty:,} numbers between without images" if empty else ""
    return said + (f", {unlabelled:,} images without class" if unlabelled else "")


def _some(source: "ImageSource", most: int) -> list[int]:
    """Samples spread evenly over all, or over those that need not be fetched first."""
    near: Sequence[int] = getattr(source, "near", None) or range(len(source))
    return [near[place] for place in evenly(len(near), most)]


def captions_of(source: "ImageSource") -> str:
    """What share of images has a caption; of evenly spread ones where there are many."""
    some = _some(source, ASKED)
    share = sum(bool(source.captions(i)) for i in some) / len(some)
    if not share:
        return "no captions" if len(some) == len(source) else f"no captions among {len(some)} looked at"
    return f"{share:.0%} have captions"


def looked_at(source: "ImageSource") -> list[tuple[int, int]]:
    """(width, height) of readable images from the smallest to the largest; of evenly spread ones where there are many."""
    if source.id in _sizes:
        return _sizes[source.id]
    sizes = []
    for i in _some(source, LOOKED_AT):
        try:
            height, width = source.image(i).shape[1:]
        except BadImage:
            continue
        sizes.append((width, height))
    sizes.sort(key=lambda size: (size[0] * size[1], size))
    _sizes[source.id] = sizes
    return sizes


def sizes_of(source: "ImageSource") -> str:
    """The smallest, median and largest side lengths among images; of evenly spread ones where there are many."""
    if isinstance(drawn := getattr(source, "size", None), int):
        return f"drawn at {drawn} px"
    sizes = looked_at(source)
    if not sizes:
        return ""
    smallest, median, largest = (f"{w}x{h}" for w, h in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
    return f"all {smallest}" if smallest == largest else f"{smallest} to {largest}, median {median}"
