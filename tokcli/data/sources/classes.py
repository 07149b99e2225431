"""What labels mean: class names of texts and JSON, their numbers, and the file that `--labels` names."""

import csv
import json
import posixpath
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from tokcli.data.sources.listing import refuse_many
from tokcli.errors import TokError
from tokcli.limits import text_lines
from tokcli.terminal import printable

MOST_CLASSES = 1_000_000
MOST_NAME = 1000  # characters of a class's name
HEADERS = ("path", "file", "filename", "file_name", "image", "name", "key")  # of the first column of a table


def class_name(value: Any) -> str | None:
    """The class that a label names: text, or a whole number written as text, as an integer or as 2.0; None for -1, "" and null.

    Raises:
        ValueError: it is something else (true, a list, 0.5, -2, two lines); the message says so.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or (isinstance(value, int | str) and not isinstance(value, bool)):
        plain = str("" if value is None else value).strip().removeprefix("\ufeff").strip()
        text = re.sub(r"(?a)^(-?\d{1,18})\.0+$", r"\1", plain)
        if text in ("", "-1"):
            return None
        if not re.fullmatch(r"(?a)-\d+", text) and len(text) <= MOST_NAME and _whole(text):
            return text
        value = text
    shown = json.dumps(value, default=str)
    raise ValueError(f"its label is not understood: {shown if len(shown) <= 40 else shown[:40] + '...'}")


def _whole(text: str) -> bool:
    """One line of whole characters: two lines are two labels."""
    return not any("\ud800" <= c <= "\udfff" or c in "\ufffd\n\r" for c in text)


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
            raise TokError(
                where,
                "class numbers must be under a million",
                got=str(max(numbers.values())),
                next="Give classes by name, or count them from 0",
            )
        classes = [str(i) for i in range(max(numbers.values()) + 1)]
        return _numbered(names, numbers), classes
    return ranks(names)


def ranks(names: Sequence[str | None]) -> tuple[np.ndarray, list[str]]:
    """Labels and the class list where every name is a name: 0, 1, 10, 2 are four classes, ranked as texts."""
    classes = sorted({name for name in names if name is not None})
    return _numbered(names, {name: i for i, name in enumerate(classes)}), classes


def known_numbers(
    names: Sequence[str | None], listed: Collection[tuple[str, ...]], where: str
) -> tuple[np.ndarray, list[str]]:
    """Labels and the class list that packed shards bring with them: it holds for all, whatever the names look like.

    Raises:
        TokError: shards with different lists, or a name that is not on it.
    """
    classes = list(next(iter(listed)))
    numbers = {name: i for i, name in enumerate(classes)}
    if len(listed) > 1 or not {*names} <= {None, *numbers}:
        raise TokError(
            where,
            "its shards come from different packs: their lists of classes differ",
            next="Give the shards of one pack, or pack all images at once: tok data pack",
        )
    return _numbered(names, numbers), classes


def _numbered(names: Sequence[str | None], numbers: dict[str, int]) -> np.ndarray:
    return np.array([-1 if name is None else numbers[name] for name in names], dtype=np.int32)


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) < 19


class Labels(NamedTuple):
    """Class name (None: unlabelled) by image, (path, why) of labels that are not understood, paths of no image, the first path."""

    classes: dict[str, str | None]
    faults: list[tuple[str, str]]
    absent: list[str]
    first: str


def read_labels(path: Path, where: str, find: Callable[[str], str | None]) -> Labels:
    """What a file of labels says about images.

    A line is `path<TAB, comma or space>class`; either may stand in quotes, as CSV writes them. A header is passed over. Where
    nothing stands behind the last tab or comma, the image has no class.

    Args:
        find: the image that a path means; None where there is none.

    Raises:
        TokError: no such file, not text, a line without a separator, or a path with two classes; it names the line.
    """
    said = Labels({}, [], [], "nothing")
    for number, line in enumerate(text_lines(path, where), 1):
        if not line.strip():
            continue
        key, label = _parts(line.strip(" "))
        if not key:
            raise TokError(f"{path}:{number}", "not a path and a class", got=line[:60], next="Write: path<TAB>class")
        if number == 1 and key.lower() in HEADERS:
            continue
        said = said._replace(first=key) if said.first == "nothing" else said
        try:
            name = class_name(label)
        except ValueError as error:
            said.faults.append((printable(key), str(error)))
            refuse_many(len(said.faults), str(path), "labels that are not understood")
            name = None
        image = find(posixpath.normpath(key)) or find(key)  # ./a.png is a.png
        if image is None:
            said.absent.append(key)
            refuse_many(len(said.absent), str(path))
        elif said.classes.setdefault(image, name) != name:
            refuse_two_classes(f"{path}:{number}", key, said.classes[image], name, "lines")
    return said


def refuse_two_classes(where: str, key: str, one: str | None, other: str | None, lines: str) -> NoReturn:
    """Raises TokError: a table gives an image two classes."""
    raise TokError(where, f"{key} has two classes", got=f"{one} and {other}", next=f"Keep one of the two {lines}")


def _parts(line: str) -> tuple[str, str]:
    for separator in ("\t", ",") if '"' in line else ():
        fields = next(csv.reader([line], delimiter=separator))
        if len(fields) == 2:
            return fields[0].strip(), fields[1].strip()
    for separator in ("\t", ",", " "):
        key, found, label = line.rpartition(separator)
        if found and key.strip():
            return key.strip(), label.strip()
    return "", ""
