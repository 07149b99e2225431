"""Image files opened by Pillow, once what their headers claim fits the limits: no memory is spent before."""

import io
import os
import struct
import threading
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from tokcli.recipe import MAX_PIXELS

# Decoders that hold several copies: with these shares of the limit none takes more than a PNG, about 9 bytes a pixel.
SHARES = {"WEBP": 0.5, "AVIF": 0.5, "progressive JPEG": 0.8}
SMALL = 1 << 22  # bytes of a member that are read in one go
BYTES = 4  # of a file for each pixel that an image may have
MOST_TAG = 4 << 20  # bytes of one field of a TIFF

# A file's name may lie about its format, so the list is of decoders. Pillow's others (EPS runs Ghostscript)
# stay shut. AVIF comes with Pillow 11.3.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", *(["AVIF"] if find_spec("PIL._avif") else []))

_PNG = b"\x89PNG\r\n\x1a\n"
_NEEDED = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf")  # chunks of a PNG that say what its pixels are
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_TURNING = (b"Raw profile type exif", b"XML:com.adobe.xmp")  # texts in which other programs keep the orientation
_TILE = 322, 323
_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}  # of TIFF's types
_unlimited = threading.Lock()
os.register_at_fork(after_in_child=_unlimited._at_fork_reinit)  # type: ignore[attr-defined]


class BadImage(Exception):
    """A sample that cannot be turned into pixels; `key` names it, `why` says what is wrong with it."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(key, why)  # both, so that it survives the way out of a worker process
        self.key, self.why = key, why

    def __str__(self) -> str:
        return f"{self.key}: {self.why}"


class Part(NamedTuple):
    """Bytes that lie inside a file, such as a member of a tar."""

    path: Path
    offset: int
    size: int


class _Window(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, part: Part) -> None:
        self._file, self._part, self._at = open(part.path, "rb", buffering=0), part, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._part.size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._part.size - self._at))
        found = os.preadv(self._file.fileno(), [memoryview(buffer)[:wanted]], self._part.offset + self._at)
        self._at += found
        return found

    def close(self) -> None:
        self._file.close()
        super().close()


def check_bytes(size: int, key: str, most: int = MAX_PIXELS) -> None:
    """Refuse a file that is larger than any image of `most` pixels needs to be.

    Raises:
        BadImage: so it is.
    """
    if size > max(BYTES * most, SMALL):
        raise BadImage(key, f"a file of {size:,} bytes is more than {BYTES} for each of {most:,} pixels (max_pixels)")


def opened(data: bytes | Path | Part, name: str, most: int) -> Any:
    """What is to be decoded as an open file, once its size is known to fit; raises BadImage or OSError."""
    size = len(data) if isinstance(data, bytes) else data.size if isinstance(data, Part) else data.stat().st_size
    if not size:
        raise BadImage(name, "empty file")
    check_bytes(size, name, most)
    if isinstance(data, Part):
        window = io.BufferedReader(_Window(data), 1 << 16)
        if size > SMALL:
            return window
        with window:
            return io.BytesIO(window.read())
    return io.BytesIO(data) if isinstance(data, bytes) else open(data, "rb")


def open_image(file: Any, name: str, most: int) -> Image.Image:
    """An image whose header fits `most`, see `decode`; no pixel is decoded. Raises BadImage, or what Pillow raises."""
    _check_tags(file, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        # Pillow refuses without telling the size. Its header alone is read here, never the pixels.
        file.seek(0)
        with _unlimited:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(file, formats=FORMATS)
            finally:
                Image.MAX_IMAGE_PIXELS = limit
    kind = "progressive JPEG" if image.info.get("progressive") else str(image.format)
    share = int(most * SHARES.get(kind, 1))
    width, height = _largest_piece(image)
    if width * height > share:
        of = f" of a {kind}" if kind in SHARES else ""
        raise BadImage(name, f"{width}x{height} is more than {share:,} pixels{of} (max_pixels)")
    return image


def _largest_piece(image: Image.Image) -> tuple[int, int]:
    """Width and height of what a decoder makes at once: the image, or a tile or strip of a TIFF that claims to be larger."""
    sides = [image.size]
    if isinstance(image, TiffImageFile):
        tags = image.tag_v2
        tile = [tags.get(tag, 0) for tag in _TILE]
        sides += [(int(tile[0]), int(tile[1]))] if all(isinstance(side, int) for side in tile) else []
    return max(sides, key=lambda side: side[0] * side[1])


def _check_tags(file: Any, name: str) -> None:
    """Refuse a TIFF with a field that is larger than any that an image needs: Pillow makes numbers of all of it."""
    head = file.read(16)
    order, big = {b"II": "<", b"MM": ">"}.get(head[:2]), head[2:4] in (b"+\0", b"\0+")
    if order and len(head) == 16 and (big or head[2:4] in (b"*\0", b"\0*")):
        place, number, field = (
            struct.Struct(order + form) for form in (("Q", "Q", "HHQ8x") if big else ("I", "H", "HHI4x"))
        )
        file.seek(*place.unpack_from(head, 8 if big else 4))
        (count,) = number.unpack(file.read(number.size).ljust(number.size, b"\0"))
        fields = file.read(min(count, 1 << 16) * field.size)
        for _, kind, items in field.iter_unpack(fields[: len(fields) // field.size * field.size]):
            if items * _SIZES.get(kind, 1) > MOST_TAG:
                raise BadImage(name, f"a field of {items:,} numbers, of which a TIFF has not as many")
    file.seek(0)


def without_texts(file: Any) -> Iterator[io.BytesIO]:
    """A PNG without its texts, profiles and times, at which Pillow gives up when they are large or damaged; nothing for other files.

    First those texts stay that may say how the picture is turned, then none does.
    """
    file.seek(0)
    if file.read(len(_PNG)) != _PNG:
        return
    needed, turning, left_out = [_PNG], [_PNG], False
    while len(head := file.read(8)) == 8:
        length = int.from_bytes(head[:4], "big") + 4  # with its checksum
        start = file.read(min(length, 32)) if head[4:] in _TEXTS else b""
        if head[4:] in _NEEDED or start.partition(b"\0")[0] in _TURNING:
            chunk = head + start + file.read(length - len(start))
            turning.append(chunk)
            needed += [chunk] if head[4:] in _NEEDED else []
        else:
            left_out = True
            file.seek(length - len(start), io.SEEK_CUR)
    if left_out and len(turning) > len(needed):
        yield io.BytesIO(b"".join(turning))
    if left_out or len(turning) > len(needed):
        yield io.BytesIO(b"".join(needed))
