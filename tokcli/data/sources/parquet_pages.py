"""What the pages of a Parquet file take once they are decompressed, by their own headers: the footer may say less than there is.

A page's header is a structure in Thrift's compact form, of which field 2 is the size after decompression and field 3 the size
in the file (parquet-format, `PageHeader`).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

WINDOW = 1 << 16  # bytes in which a page's header ends
FREE, RATIO = (
    64 << 20,
    20,
)  # bytes that may come of any number of bytes; of how many each byte may stand for, above that
_BOOLEANS, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _LISTS, _MAP, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 11, 12
DEEPEST = 8


def check_pages(path: Path, chunks: Iterable[Any]) -> None:
    """Look at the pages of columns, of which no byte is decompressed.

    Args:
        chunks: Arrow's description of each column of a row group.

    Raises:
        ValueError: they hold so much more than the file does that nobody stores images so; or they are damaged.
        OSError: the file cannot be read.
    """
    stored = held = 0
    with open(path, "rb") as file:
        for chunk in chunks:
            starts = [chunk.data_page_offset, *([chunk.dictionary_page_offset] if chunk.has_dictionary_page else [])]
            at = min(start for start in starts if start is not None)
            end = at + chunk.total_compressed_size
            while at < end:
                file.seek(at)
                header = _Header(file.read(WINDOW))
                sizes = header.structure()
                after, packed = sizes.get(2, -1), sizes.get(3, -1)
                if after < 0 or packed < 0:
                    raise ValueError("a page has no size")
                held, stored, at = held + after, stored + packed, at + header.at + packed
    if held > max(FREE, RATIO * stored):
        raise ValueError(f"its pages stand for {held:,} bytes, and {stored:,} are there")


class _Header:
    """Reads a structure in Thrift's compact form."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def structure(self, depth: int = 0) -> dict[int, int]:
        """Its integers, by field."""
        found: dict[int, int] = {}
        field = 0
        while (head := self._byte()) & 15:
            field = field + (head >> 4) if head >> 4 else self._integer()
            value = self._value(head & 15, depth)
            if value is not None:
                found[field] = value
        return found

    def _value(self, kind: int, depth: int, inside: bool = False) -> int | None:
        if depth > DEEPEST:
            raise ValueError("a page's header is nested too deeply")
        if kind in _INTEGERS:
            return self._integer()
        if kind in _BOOLEANS:
            self.at += inside  # of a field, its type is its value
        elif kind in (_BYTE, _DOUBLE):
            self.at += 1 if kind == _BYTE else 8
        elif kind == _BINARY:
            length = self._varint()
            self.at += length
        elif kind in _LISTS:
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            self._values(count, [head & 15], depth)
        elif kind == _MAP:
            count = self._varint()
            kinds = self._byte() if count else 0
            self._values(count, [kinds >> 4, kinds & 15], depth)
        elif kind == _STRUCT:
            self.structure(depth + 1)
        else:
            raise ValueError("a page's header is damaged")
        return None

    def _values(self, count: int, kinds: list[int], depth: int) -> None:
        for _ in range(min(count, WINDOW)):
            for kind in kinds:
                self._value(kind, depth + 1, inside=True)

    def _byte(self) -> int:
        if self.at >= len(self.data):
            raise ValueError("a page's header does not end")
        self.at += 1
        return self.data[self.at - 1]

    def _varint(self) -> int:
        found = shift = 0
        while (byte := self._byte()) & 128:
            found, shift = found | (byte & 127) << shift, shift + 7
            if shift > 63:
                raise ValueError("a page's header is damaged")
        return found | byte << shift

    def _integer(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)
