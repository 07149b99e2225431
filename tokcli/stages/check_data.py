"""`tok data check`: everything that is to be known of a data set before work starts; every image is decoded."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tokcli.data.addresses import remember
from tokcli.data.sources import BadImage, ImageSource, open_source, sibling
from tokcli.data.sources.listing import NAMES
from tokcli.data.sources.summary import class_counts, kinds, too_many
from tokcli.device import cores
from tokcli.errors import TokError
from tokcli.progress import bar
from tokcli.terminal import printable

MOST_NAMED = 20  # of each kind, in the text
CHUNK = 256


class _Seen(NamedTuple):
    """One image: its sides, or why there are none, and a digest of its pixels."""

    width: int
    height: int
    digest: bytes
    why: str


def examine(spec: str, *, labels: Path | None, size: int, max_bad: float, max_pixels: int) -> dict[str, Any]:
    """What a data set holds, and what is wrong with it; `stops` says whether a training would refuse it.

    Args:
        size: in pixels; smaller images are counted, and vector images are rendered for it.
        max_bad: share of images that may be left out.
        max_pixels: of an image that is decoded.
    """
    remember(spec)
    source = open_source(spec, size=size, labels=labels, max_pixels=max_pixels)
    seen = list(_look(source))
    splits = {
        split: _split(other, size, max_pixels, seen)
        for split in NAMES
        if (other := sibling(source.name, split)) is not None
    }
    sides = sorted(((s.width, s.height) for s in seen if not s.why), key=lambda side: (side[0] * side[1], side))
    unreadable = [[source.key(i), s.why] for i, s in enumerate(seen) if s.why]
    captioned = sum(bool(source.captions(i)) for i in range(len(source)))
    return {
        "name": source.name,
        "id": source.id,
        "images": len(source),
        "columns": getattr(source, "columns", ""),
        "notes": list(getattr(source, "notes", [])),
        "classes": _classes(source, splits),
        "captions": {"images_with": captioned, "images_without": len(source) - captioned},
        "sizes": _sizes(sides, size),
        "duplicates": _duplicates(source, seen),
        "unreadable": unreadable,
        "left_out": {"by_kind": dict(kinds(source.problems)), "each": [list(one) for one in source.problems]},
        "other_files": dict(getattr(source, "ignored", {})),
        "splits": splits,
        "stops": not sides or too_many(source, len(unreadable), max_bad) or "error" in splits.get("val", {}),
    }


def _look(source: ImageSource) -> list[_Seen]:
    def one(i: int) -> _Seen:
        try:
            image = source.image(i)
        except BadImage as error:
            return _Seen(0, 0, b"", error.why)
        digest = hashlib.blake2b(image.permute(1, 2, 0).contiguous().numpy().tobytes(), digest_size=16)
        return _Seen(image.shape[2], image.shape[1], digest.digest(), "")

    if len(source):
        one(0)  # embedded sets are rendered once, not once in each thread
    found: list[_Seen] = []
    with bar(len(source), unit="image", desc="check") as shown, ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(source), CHUNK):
            found += pool.map(one, range(start, min(start + CHUNK, len(source))))
            shown.update(len(found) - start)
    return found


def _split(spec: str, size: int, max_pixels: int, first: list[_Seen]) -> dict[str, Any]:
    """What another split of the same data holds, and what is wrong with it; its `error` where it cannot be opened.

    Its `also_here` are its images with the pixels of one of the first split's, in `first`.

    It is opened as a training opens it: without the file of labels, which is the first split's.
    """
    try:
        source = open_source(spec, size=size, max_pixels=max_pixels)
    except TokError as error:
        return {"name": spec, "error": str(error)}
    counts, seen = class_counts(source), list(_look(source))
    known = {(one.width, one.digest) for one in first if not one.why}
    return {
        "name": source.name,
        "images": len(source),
        "classes": [name for name, count in zip(source.classes, counts.tolist(), strict=True) if count],
        "images_without_class": len(source) - int(counts.sum()),
        "also_here": [source.key(i) for i, one in enumerate(seen) if (one.width, one.digest) in known],
        "unreadable": [[source.key(i), one.why] for i, one in enumerate(seen) if one.why],
        "left_out": [list(one) for one in source.problems],
    }


def _classes(source: ImageSource, splits: dict[str, dict[str, Any]]) -> dict[str, Any]:
    counts = class_counts(source)
    held = [name for name, count in zip(source.classes, counts.tolist(), strict=True) if count]
    found: dict[str, Any] = {
        "number": len(held),
        "smallest": int(counts[counts > 0].min()) if held else 0,
        "largest": int(counts.max(initial=0)),
        "images_without": len(source) - int(counts.sum()),
    }
    for split, theirs in splits.items():
        if held and "error" not in theirs:
            found[f"not_in_{split}"] = sorted({*held} - {*theirs["classes"]})
            found[f"only_in_{split}"] = sorted({*theirs["classes"]} - {*held})
    return found


def _sizes(sides: list[tuple[int, int]], size: int) -> dict[str, Any]:
    if not sides:
        return {}
    named = {"smallest": sides[0], "median": sides[len(sides) // 2], "largest": sides[-1]}
    return {
        **{name: list(side) for name, side in named.items()},
        "landscape": sum(w > h for w, h in sides),
        "portrait": sum(w < h for w, h in sides),
        "square": sum(w == h for w, h in sides),
        f"smaller_than_{size}": sum(min(side) < size for side in sides),
    }


def _duplicates(source: ImageSource, seen: list[_Seen]) -> list[list[str]]:
    """Keys of images with equal pixels, together."""
    alike: dict[tuple[int, bytes], list[str]] = {}
    for i, one in enumerate(seen):
        if not one.why:
            alike.setdefault((one.width, one.digest), []).append(source.key(i))
    return [keys for keys in alike.values() if len(keys) > 1]


def text(found: dict[str, Any]) -> str:
    """The same as lines, with the first of each list."""
    lines = [f"{found['name']} ({found['id']}): {found['images']:,} images"]
    lines += [f"  columns: {found['columns']}"] if found["columns"] else []
    lines += [f"  {note}" for note in found["notes"]]
    for part in ("classes", "captions", "sizes", "other_files"):
        lines += [f"  {part}"] if found[part] else []
        lines += [f"    {name.replace('_', ' ')}: {_short(value)}" for name, value in found[part].items()]
    lines += _listed("equal pixels", [" = ".join(keys) for keys in found["duplicates"]])
    lines += _listed("cannot be read", [": ".join(one) for one in found["unreadable"]])
    lines += _listed("left out or incomplete", [": ".join(one) for one in found["left_out"]["each"]])
    for split, theirs in found["splits"].items():
        if "error" in theirs:
            lines.append(f"  {split} cannot be opened: {theirs['error']}")
            continue
        lines.append(f"  {split}: {theirs['images']:,} images, {theirs['images_without_class']:,} without class")
        lines += _listed(f"{split}, equal pixels above", theirs["also_here"])
        lines += _listed(f"{split}, cannot be read", [": ".join(one) for one in theirs["unreadable"]])
        lines += _listed(f"{split}, left out or incomplete", [": ".join(one) for one in theirs["left_out"]])
    why = "too much is left out" if "error" not in found["splits"].get("val", {}) else "its val split cannot be opened"
    lines.append(f"  a training would stop: {why}" if found["stops"] else "  a training would go on")
    return "\n".join(map(printable, lines))


def _listed(name: str, items: list[str]) -> list[str]:
    lines = [f"  {name}: {len(items):,}"] + [f"    {item}" for item in items[:MOST_NAMED]]
    return lines + ([f"    and {len(items) - MOST_NAMED:,} more"] if len(items) > MOST_NAMED else [])


def _short(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], int):
        return "x".join(map(str, value))
    if isinstance(value, list):
        return ", ".join(map(str, value[:MOST_NAMED])) + ("" if len(value) <= MOST_NAMED else ", ...") or "none"
    return f"{value:,}"
