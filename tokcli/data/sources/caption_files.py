"""Captions as other tools write them: texts beside images, JSON lines, img2dataset's pairs, Hugging Face's metadata."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tokcli import limits
from tokcli.data.sources.listing import lines
from tokcli.errors import TokError
from tokcli.limits import text_lines

MOST_CAPTION = 10_000  # characters: what is longer is a document, and takes a tokenizer of text minutes
TABLE = "captions.jsonl"
METADATA = ("metadata.jsonl", "metadata.csv")  # of Hugging Face's image folders


class Row(NamedTuple):
    """What a table says about one image; `label` is `...` where it says none."""

    image: str
    captions: list[str]
    label: Any


def fault_of(text: str) -> str:
    """Why a caption cannot be used; empty where it can."""
    if len(text) > MOST_CAPTION:
        return f"a caption of more than {MOST_CAPTION:,} characters"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "a caption holds half a character (a lone surrogate)"
    return "a caption is not UTF-8 text" if "\ufffd" in text else ""


def usable(texts: Iterable[str]) -> list[str]:
    """The captions that can be used, each once."""
    return [text for text in dict.fromkeys(texts) if not fault_of(text)]


def faults_of(texts: Iterable[str]) -> list[str]:
    """Why the others cannot."""
    return [fault for text in dict.fromkeys(texts) if (fault := fault_of(text))]


def captions_of(row: Any) -> list[str] | None:
    """The texts under "captions", "caption" or "text" of a JSON object, on one line each; None when there are none."""
    found = (
        next((row[name] for name in ("captions", "caption", "text") if name in row), None)
        if isinstance(row, dict)
        else None
    )
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return None
    return [_one_line(text) for text in texts if text.strip()]


def captions_beside(text: bytes, row: bytes) -> list[str]:
    """The captions of an image's `.txt`, one a line, and of its `.json` (b"" where there is none); each once.

    img2dataset writes one caption into both: where it holds line breaks, the text is that caption and not one a line.
    """
    listed = captions_of(parse_json(row)) or []
    plain = [_one_line(line) for line in lines(text.decode("utf-8-sig", "replace")) if line.strip()]
    if len(plain) > 1 and " ".join(plain) in listed:
        plain = []
    return list(dict.fromkeys([*plain, *listed]))


def faults_beside(text: bytes, row: bytes) -> list[str]:
    """Why captions of an image's `.txt` and `.json` cannot be used."""
    try:
        limits.parse_json(row or b"{}")
        broken = []
    except ValueError:
        broken = ["its .json is not JSON, or too long"]
    return broken + faults_of(captions_beside(text, row))


def parse_json(data: bytes) -> dict[str, Any]:
    """A JSON object, or {} for anything else."""
    try:
        row = limits.parse_json(data)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def _one_line(text: str) -> str:
    return " ".join(text[: 2 * MOST_CAPTION].split())


def read_captions(path: Path) -> Iterator[Row]:
    """Rows of JSON lines {"key" or "file_name": path, "captions": [...] or "caption": text}.

    Raises:
        TokError: a line that is not such an object; it names the line.
    """
    for number, line, row in _objects(path):
        image, texts = row.get("key", row.get("file_name")), captions_of(row)
        if not isinstance(image, str) or texts is None:
            wanted = 'Write: {"key": "a/b.jpg", "captions": ["..."]}'
            raise TokError(f"{path}:{number}", "not a caption", got=line[:60], next=wanted)
        yield Row(image, texts, ...)


def read_metadata(path: Path) -> Iterator[Row]:
    """Rows of Hugging Face's metadata.jsonl or metadata.csv: file_name, and where they are there text and label.

    Raises:
        TokError: a row without file_name; it names the line.
    """
    for number, line, row in _objects(path) if path.suffix.lower() != ".csv" else _table(path):
        if not isinstance(row.get("file_name"), str):
            raise TokError(
                f"{path}:{number}", "not an image's metadata", got=line[:60], next="Give each row a file_name"
            )
        yield Row(row["file_name"], captions_of(row) or [], row.get("label", ...))


def _table(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    table = csv.DictReader(line + "\n" for line in text_lines(path, str(path)))
    try:
        yield from ((table.line_num, str(row)[:MOST_CAPTION], row) for row in table)
    except csv.Error as error:
        raise TokError(
            f"{path}:{table.line_num}", "is no CSV", why=str(error), next="Mend the table, or write captions.jsonl"
        ) from None


def _objects(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    for number, line in enumerate(text_lines(path, str(path)), 1):
        if line.strip():
            yield number, line, parse_json(line.encode("utf-8", "surrogatepass"))
