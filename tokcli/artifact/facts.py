"""What facts of an artifact may be: those of a foreign one are data, and every command builds upon them."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

LARGEST = {"codebook_size": 1 << 32, "code_dim": 1 << 20, "train_size": 1 << 15, "use_size": 1 << 15}
SIDE, MANY = 1 << 12, 1 << 40  # of a grid; of images, rows and the like
NAME = re.compile(r"[^\W_.-][^/\\]*")  # of a tokenizer and of what descends from it: part of folders' names
DIGEST = re.compile(r"[0-9a-f]{64}|random")
NAMED = ("tokenizer", "decoder", "tokens", "proposal", "samples")  # kinds whose name others inherit


def _count(value: Any, most: int, least: int = 1) -> bool:
    return type(value) is int and least <= value <= most


def _all(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(fits, value))


def _name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value.encode()) <= 160 and bool(NAME.fullmatch(value))


def _digest(value: Any) -> bool:
    return value is None or (isinstance(value, str) and DIGEST.fullmatch(value) is not None)


def _teacher(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and _digest(value.get("sha256"))
        and _count(value.get("feature_dim"), LARGEST["code_dim"])
    )


FORMS: dict[str, Callable[[Any], bool]] = {  # of facts that commands build upon, where an artifact has them
    **{key: partial(_count, most=most) for key, most in LARGEST.items()},
    **dict.fromkeys(("number", "per_file", "shards"), lambda v: _count(v, MANY)),
    "rows": lambda v: _count(v, MANY, 0),
    "images": lambda v: v is None or _count(v, MANY, 0),
    **dict.fromkeys(("size", "extractor_size"), lambda v: v is None or _count(v, LARGEST["use_size"])),
    "extractor_sha256": lambda v: v is None or isinstance(v, str),
    "name": lambda v: isinstance(v, str),
    "mode": lambda v: v is None or isinstance(v, str),
    "format": lambda v: v in ("png", "shards"),
    "has_decoder": lambda v: isinstance(v, bool),
    "padding": lambda v: v in ("white", "edge"),
    "grid": lambda v: isinstance(v, list) and len(v) == 2 and all(_count(side, SIDE) for side in v),
    "classes": lambda v: _all(v, lambda name: isinstance(name, str)),
    "class_counts": lambda v: v is None or _all(v, lambda n: _count(n, MANY, 0)),
    "labels": lambda v: _all(v, lambda n: _count(n, MANY, -1)),
    "views": lambda v: bool(v) and _all(v, lambda name: isinstance(name, str)),
    "edit": lambda v: v is None or isinstance(v, dict),
    "text_sha256": _digest,
    "extractor": lambda v: isinstance(v, str),
    "teacher": _teacher,
}


def _lengths(facts: Mapping[str, Any]) -> str | None:
    """The fact whose length or values are not what another one says."""
    classes, labels, counts = facts.get("classes"), facts.get("labels"), facts.get("class_counts")
    if labels is not None and len(labels) != facts.get("number", len(labels)):
        return "labels"
    if labels and classes is not None and max(labels) >= max(1, len(classes)):
        return "labels"
    return "class_counts" if counts is not None and classes is not None and len(counts) != len(classes) else None


def wrong_fact(kind: str, facts: Mapping[str, Any]) -> str | None:
    """The first fact of a manifest that is of a wrong type, out of its range, or not what another one says; None: none."""
    for key, fits in FORMS.items():
        if key in facts and not fits(facts[key]):
            return key
    if kind in NAMED and "name" in facts and not _name(facts["name"]):
        return "name"
    return _lengths(facts)
