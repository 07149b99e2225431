"""Image bytes to RGB pixels, for bytes that nobody has looked at: no memory is spent before headers are known to fit the limits."""

import contextlib
import io
import os
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from tokcli.device import freed
from tokcli.limits import check_scans
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
# bytes of a number of each of TIFF's types, from 1 on
_SIZES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 1, 1, 8, 8, 8), 1))
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
    if kind == "progressive JPEG":
        check_scans(file)
    return image


def _largest_piece(image: Image.Image) -> tuple[int, int]:
    """Width and height of what a decoder makes at once: the image, or a tile or strip of a TIFF that claims to be larger."""
    sides = [image.size]
    if isinstance(image, TiffImageFile):
        tile = [image.tag_v2.get(tag, 0) for tag in (322, 323)]  # of its width and length
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


STRIP = 1 << 22  # pixels that are converted at once
LARGE = 1 << 24  # pixels from which images are decoded one at a time in a process
MOST_EXIF = 1 << 20  # bytes: of more the orientation is not looked for

_ORIENTATION = 0x0112
_PHOTOMETRIC, _BITS, _SAMPLE_FORMAT = 262, 258, 339  # tags of TIFF

_large = threading.Lock()
os.register_at_fork(after_in_child=_large._at_fork_reinit)  # type: ignore[attr-defined]


def decode(data: bytes | Path | Part, key: str = "", *, most: int = MAX_PIXELS) -> UInt8[Tensor, "3 h w"]:
    """RGB pixels of a JPEG, PNG, WebP, BMP, TIFF, GIF (first frame) or AVIF, turned as its EXIF orientation says.

    Transparency is laid on white, 12- and 16-bit grey is scaled to 8 bits, CMYK and palettes are converted; embedded
    colour profiles are ignored, as everywhere in the field. Damaged EXIF and oversized texts are passed over: they are not
    the picture. The result is a (3, h, w) view of rows that are stored (h, w, 3): the layout in which resizing uint8 is fastest.

    Args:
        data: the file, or a part of one.
        key: what it is called in messages.
        most: pixels of the image; WebP, AVIF and progressive JPEG, whose decoders hold more, have a share of it (`SHARES`). Of a
            larger one no more is read than its header.

    Raises:
        BadImage: unreadable, truncated, of more than `most` pixels, or of unknown range (float, signed, 32-bit; a transparent 16-bit colour).
    """
    name = key or ("image" if isinstance(data, bytes) else str(data if isinstance(data, Path) else data.path))
    try:
        with opened(data, name, most) as file:
            try:
                return freed(_decoded(open_image(file, name, most), name), 3 * LARGE)
            except BadImage:
                raise
            except Exception as first:
                error = first
                for bare in without_texts(file):
                    try:
                        return freed(_decoded(open_image(bare, name, most), name), 3 * LARGE)
                    except Exception as other:
                        error = other
                raise error from None
    except BadImage:
        raise
    except Image.UnidentifiedImageError:
        raise BadImage(name, "not an image (of a format that is read here)") from None
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise BadImage(name, f"cannot be read ({error.strerror})") from None
    except Exception as error:  # decoders meet hostile bytes here, and raise whatever breaks first
        raise BadImage(name, f"cannot be decoded ({str(error) or type(error).__name__})") from None


def pixels_of(image: Image.Image, key: str) -> UInt8[Tensor, "3 h w"]:
    """RGB pixels of an image that Pillow has opened, by the same rules as `decode`.

    Raises:
        BadImage: truncated, or with pixels of unknown range.
    """
    try:
        return _decoded(image, key)
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(key, f"cannot be decoded ({str(error) or type(error).__name__})") from None


def _decoded(image: Image.Image, name: str) -> UInt8[Tensor, "3 h w"]:
    with _large if image.width * image.height > LARGE else contextlib.nullcontext():
        # such as "L;2", which loading forgets
        depth = str(image.tile[0][3]) if isinstance(image, PngImageFile) and image.tile else ""
        image.load()  # which turns a TIFF and forgets its orientation; before EXIF is asked for, which would hide what is wrong with a PNG
        turn = _orientation(image)
        tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
        if tags.get(_SAMPLE_FORMAT, (1,))[0] == 2 and image.mode == "L":
            raise BadImage(name, "signed pixels have no known white")
        if image.mode == "F":
            raise BadImage(name, "floating-point pixels have no known white")
        grey = _grey(image, name) if image.mode.startswith("I;16") or image.mode == "I" else None
        clear = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
        if clear and grey is None:
            _scale_transparency(image, depth, name)
        return _pixels(image, turn, lambda strip: grey(strip) if grey else _on_white(strip) if clear else strip)


def _pixels(image: Image.Image, turn: int, convert: Callable[[Image.Image], Image.Image]) -> UInt8[Tensor, "3 h w"]:
    """The pixels after `turn`, converted strip by strip: beside the image itself no more than the result is held."""
    width, height = image.size
    found = np.empty((width, height, 3) if turn > 4 else (height, width, 3), np.uint8)
    rows = _UNTURNED[turn](found)
    step = max(1, STRIP // width)
    for top in range(0, height, step):
        bottom = min(top + step, height)
        strip = convert(image if step >= height else image.crop((0, top, width, bottom)))
        strip = strip if strip.mode == "RGB" else strip.convert("RGB")
        rows[top:bottom] = np.frombuffer(strip.tobytes(), np.uint8).reshape(bottom - top, width, 3)
    return torch.from_numpy(found).permute(2, 0, 1)


# EXIF's orientation -> the stored rows as a view of the upright picture's.
_UNTURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[:, ::-1],
}


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1 where there is none, or none that can be read."""
    try:
        exif = image.info.get("exif", b"")
        found = image.getexif().get(_ORIENTATION, 1) if len(exif) <= MOST_EXIF else 1
    except Exception:  # damaged EXIF, whose errors are as many as its tags
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _grey(image: Image.Image, name: str) -> Callable[[Image.Image], Image.Image]:
    """Makes grey of 12 or 16 bits one of 8; the one transparent grey of a PNG, and WhiteIsZero of a TIFF, as they are meant."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    (bits, *_), (kind, *_) = tags.get(_BITS, (16,)), tags.get(_SAMPLE_FORMAT, (1,))
    clear = image.info.get("transparency")
    if bits not in (12, 16):
        raise BadImage(name, "32-bit pixels have no known white")
    if kind != 1:
        raise BadImage(name, "signed pixels have no known white")
    white, inverted = 2**bits - 1, tags.get(_PHOTOMETRIC) == 0

    def convert(strip: Image.Image) -> Image.Image:
        grey = np.asarray(strip).astype(np.int64)
        if grey.max(initial=0) > 65535:
            raise BadImage(name, "32-bit pixels have no known white")
        if inverted:
            grey = white - grey
        if clear is not None:
            grey = np.where(grey == clear, white, grey)
        return Image.fromarray(((grey * 255 + white // 2) // white).astype(np.uint8))

    return convert


def _scale_transparency(image: Image.Image, depth: str, name: str) -> None:
    if depth == "RGB;16B":
        raise BadImage(name, "a transparent colour of 16 bits is not read")  # pixels have lost their low bits
    if depth in ("L;2", "L;4"):  # pixels are scaled to 8 bits, the transparent grey is not
        image.info["transparency"] *= 85 if depth == "L;2" else 17


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
