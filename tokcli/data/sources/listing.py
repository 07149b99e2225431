"""What sources say about their samples before any is decoded: numbers for class names, captions, one id."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokcli.errors import TokError

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MOST_CLASSES = 1_000_000


def data_id(kind: str, version: str, keys: Iterable[str], labels: np.ndarray, sizes: Iterable[int], *more: str) -> str:
    """`data-` and 12 digits: the same data has the same id wherever it lies.

    File sizes stand for contents, which would take hours to hash: silent damage keeps the id.
    """
    digest = hashlib.blake2b(digest_size=6)
    for part in (kind, version, *more):
        digest.update(part.encode() + b"\x00")
    for key in keys:
        digest.update(key.encode("utf-8", "surrogateescape") + b"\n")
    digest.update(np.ascontiguousarray(labels, dtype="<i4").tobytes())
    digest.update(np.fromiter(sizes, dtype="<i8").tobytes())
    return f"data-{digest.hexdigest()}"


def is_url(spec: str) -> bool:
    """Whether a spec begins like `https:`, `s3:` or `pipe:` and is no file here."""
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.\-]+:", spec)) and not Path(spec).exists()


def embedded_split(spec: str) -> str:
    """The split of an embedded set: `openmoji/val` -> `val`.

    Raises:
        TokError: neither `train` nor `val`.
    """
    name, _, split = spec.rstrip("/").partition("/")
    if split not in ("train", "val"):
        raise TokError(f"--data {spec}", "names no split", next=f"Give {name}/train or {name}/val")
    return split


def refuse_labels(labels: Path | None, spec: str) -> None:
    """For sources that know their classes by themselves.

    Raises:
        TokError: there is a labels file.
    """
    if labels is not None:
        raise TokError("--labels", f"goes with a folder of images, not with {spec}")


def bad_name(key: str) -> str:
    """Why a file's name cannot be written, one a line, into keys.txt; empty when it can."""
    try:
        key.encode("utf-8")
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    return "its name holds a line break" if any(c in key for c in "\n\r") else ""


def class_numbers(names: Sequence[str | None], where: str) -> tuple[np.ndarray, list[str]]:
    """Labels int32 (n,) and the class list for one class name a sample (None: unlabelled, -1).

    Whole numbers are taken as they are (so that a split without some class agrees with one that has it);
    anything else is numbered by its rank among the sorted names.

    Raises:
        TokError: a number past a million, which is an identifier and not a class.
    """
    known = {name for name in names if name is not None}
    if known and all(_is_number(name) for name in known):
        numbers = {name: int(name) for name in known}
        if max(numbers.values()) >= MOST_CLASSES:
            raise TokError(where, "class numbers must be under a million", got=f"found {max(numbers.values())}")
        classes = [str(i) for i in range(max(numbers.values()) + 1)]
    else:
        classes = sorted(known)
        numbers = {name: i for i, name in enumerate(classes)}
    labels = np.array([-1 if name is None else numbers[name] for name in names], dtype=np.int32)
    return labels, classes


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) < 19


def read_labels(path: Path, where: str) -> dict[str, str]:
    """Class name by relative path, from lines `path<TAB, comma or space>class`.

    Raises:
        TokError: no such file, not text, a line without a separator, or a path with two classes; it names the line.
    """
    labels: dict[str, str] = {}
    for number, line in enumerate(read_text(path, where).splitlines(), 1):
        if not line.strip():
            continue
        for separator in ("\t", ",", " "):
            key, found, name = line.strip().rpartition(separator)
            if found and key.strip() and name.strip():
                key, name = key.strip().replace("\\", "/").removeprefix("./"), name.strip()
                if labels.setdefault(key, name) != name:
                    raise TokError(f"{path}:{number}", f"{key} has two classes", got=f"{labels[key]} and {name}")
                break
        else:
            raise TokError(f"{path}:{number}", "not a path and a class", got=line[:60], next="write: path<TAB>class")
    return labels


def read_captions(path: Path) -> dict[str, list[str]]:
    """Captions by path, from JSON lines {"key" or "file_name": path, "captions": [...] or "caption": text}.

    Raises:
        TokError: a line that is not such an object; it names the line.
    """
    table: dict[str, list[str]] = {}
    for number, line in enumerate(read_text(path, str(path)).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            key = row.get("key", row.get("file_name"))
        except (ValueError, AttributeError, RecursionError):
            row, key = {}, None
        texts = captions_of(row)
        if not isinstance(key, str) or texts is None:
            raise TokError(
                f"{path}:{number}",
                "not a caption",
                got=line[:60],
                next='write: {"key": "a/b.jpg", "captions": ["..."]}',
            )
        table.setdefault(key.removeprefix("./"), []).extend(texts)
    return table


def captions_of(row: Any) -> list[str] | None:
    """The texts under "captions", "caption" or "text" of a JSON object; None when there are none."""
    found = (
        next((row[name] for name in ("captions", "caption", "text") if name in row), None)
        if isinstance(row, dict)
        else None
    )
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return None
    return [" ".join(text.split()) for text in texts if text.strip()]


def caption_lines(text: str) -> list[str]:
    """The captions of a sidecar file: one a line."""
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def read_text(path: Path, where: str) -> str:
    """A UTF-8 file (with or without a byte order mark).

    Raises:
        TokError: missing, unreadable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise TokError(where, "no such file", got=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise TokError(where, "cannot be read as text", got=str(error)) from None
