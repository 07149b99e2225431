"""What files claim, weighed before it is believed: lengths of texts and lines, JSON, directories of zips, scans of JPEGs."""

import io
import json
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tokcli.errors import TokError

MOST_JSON = 600_000_000  # bytes of memory that a JSON file may take
DEEPEST = 100  # brackets of JSON within each other: what goes through values by recursion has a thousand at most
MOST_LINE = 1 << 20  # characters of a line of a table
MOST_DIRECTORY = 16 << 20  # bytes: of a zip of 200,000 members
MOST_SCANS = 100  # of a progressive JPEG: encoders write about ten, and each is a pass over all pixels
COSTS = {b":": 48, b",": 64, b"[": 80, b"{": 200}  # bytes of the objects that come with a sign of JSON, at most


class TooLarge(ValueError):
    """A file that claims more than what reads it needs; its text says what and how much."""


def read_bytes(path: Path, most: int) -> bytes:
    """A whole file of at most `most` bytes; also of a pipe.

    Raises:
        OSError: it cannot be read.
        TooLarge: it has more.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = b"" if size > most else file.read(most + 1)
    if size > most or len(data) > most:
        raise TooLarge(f"has more than {most:,} bytes")
    return data


def weigh_json(data: bytes) -> int:
    """Bytes of memory that a JSON text takes once it is parsed, at most."""
    width = 1 if data.isascii() else 4 if re.search(rb"[\xf0-\xff]", data) else 2  # of a character
    return 2 * width * len(data) + sum(data.count(sign) * cost for sign, cost in COSTS.items())


def parse_json(data: bytes, most: int = MOST_JSON) -> Any:
    """What a JSON text in UTF-8 holds: `json.loads`, for a text that nobody has looked at.

    Raises:
        TooLarge: it would take more than `most` bytes of memory.
        ValueError: it is no JSON, or has more than DEEPEST brackets within each other.
    """
    if weigh_json(data) > most:
        raise TooLarge(f"would take more than {most:,} bytes of memory")
    try:
        found = json.loads(data.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None
    if data.count(b"[") + data.count(b"{") > DEEPEST and _deeper([found]):
        raise ValueError("brackets are nested too deeply")
    return found


def _deeper(level: list[Any]) -> bool:
    """Whether values hold more than DEEPEST lists or mappings within each other."""
    for _ in range(DEEPEST + 1):
        held = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [one for values in held for one in values if isinstance(one, dict | list)]
    return bool(level)


def read_json(path: Path, most: int = MOST_JSON) -> Any:
    """What a JSON file holds; raises OSError, or as `parse_json`."""
    return parse_json(read_bytes(path, most), most)


def text_lines(path: Path, where: str) -> Iterator[str]:
    """The lines of a UTF-8 text (with or without a byte order mark), one at a time, without their ends.

    They end as editors count them, at \\n, \\r or both.

    Raises:
        TokError: missing, unreadable, not UTF-8, or a line of more than MOST_LINE characters.
    """
    number = 1
    try:
        with open(path, encoding="utf-8-sig") as file:
            while line := file.readline(MOST_LINE + 1):
                if len(line) > MOST_LINE:
                    raise TokError(
                        f"{path}:{number}",
                        f"is a line of more than {MOST_LINE:,} characters",
                        got=line[:60],
                        next="Break it into shorter ones",
                    )
                yield line.removesuffix("\n")
                number += 1
    except FileNotFoundError:
        raise TokError(where, "no such file", got=str(path), next="Check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TokError(where, "cannot be read as text", why=str(error), next="Save it as UTF-8 text") from None


def check_scans(file: IO[bytes]) -> None:
    """Raises TooLarge where a progressive JPEG has more than MOST_SCANS scans; the file's position stays."""
    position, scans, last = file.seek(0, io.SEEK_CUR), 0, b""
    file.seek(0)
    while block := file.read(1 << 20):
        scans += (last + block).count(b"\xff\xda")  # the marker of a scan; in pixels \xff is followed by \0
        last = block[-1:]
    if scans > MOST_SCANS:
        raise TooLarge(f"{scans:,} scans are more than {MOST_SCANS}")
    file.seek(position)


def check_zip(path: Path) -> None:
    """Refuse a zip whose directory alone takes much memory.

    Raises:
        TooLarge: so it does.
    """
    with open(path, "rb") as file:
        end = file.seek(0, io.SEEK_END)
        file.seek(max(0, end - (1 << 16) - 22 - 20))
        tail = file.read()
        place = tail.rfind(b"PK\5\6")
        if place < 0 or place + 20 > len(tail):
            return  # no zip: what opens it says so
        size = struct.unpack_from("<L", tail, place + 12)[0]
        if tail[max(0, place - 20) : place][:4] == b"PK\6\7":  # with a directory of 64 bits
            file.seek(min(end, struct.unpack_from("<Q", tail, place - 12)[0]))
            large = file.read(48)
            size = struct.unpack_from("<Q", large, 40)[0] if large[:4] == b"PK\6\6" and len(large) == 48 else end
        if size > MOST_DIRECTORY:
            raise TooLarge(f"its directory has {size:,} bytes, more than {MOST_DIRECTORY:,}")
