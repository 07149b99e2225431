"""Image bytes to RGB pixels, for bytes that nobody has looked at: no memory is spent before a size check."""

import io
import threading
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

MAX_IMAGE_PIXELS = 178_956_970  # where Pillow starts to warn of a decompression bomb; here it is the limit

# A file's name may lie about its format, so the list is of decoders. Pillow's others (EPS runs Ghostscript)
# stay shut. AVIF comes with Pillow 11.3.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", *(["AVIF"] if find_spec("PIL._avif") else []))

_ORIENTATION = 0x0112
_PHOTOMETRIC, _BITS, _SAMPLE_FORMAT = 262, 258, 339  # tags of TIFF
_PNG = b"\x89PNG\r\n\x1a\n"
_NEEDED = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf")  # chunks of a PNG that say what its pixels are
_unlimited = threading.Lock()


class BadImage(Exception):
    """A sample that cannot be turned into pixels; `key` names it, `why` says what is wrong with it."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(key, why)  # both, so that it survives the way out of a worker process
        self.key, self.why = key, why

    def __str__(self) -> str:
        return f"{self.key}: {self.why}"


def decode(data: bytes | Path, key: str = "") -> UInt8[Tensor, "3 h w"]:
    """RGB pixels of a JPEG, PNG, WebP, BMP, TIFF, GIF (first frame) or AVIF, turned as its EXIF orientation says.

    Transparency is laid on white, 12- and 16-bit grey is scaled to 8 bits, CMYK and palettes are converted; embedded
    colour profiles are ignored, as everywhere in the field. Damaged EXIF and oversized texts are passed over: they are not
    the picture. The result is a (3, h, w) view of rows that are stored (h, w, 3): the layout in which resizing uint8 is fastest.

    Raises:
        BadImage: unreadable, truncated, of more than MAX_IMAGE_PIXELS, or with pixels of unknown range
            (float, signed, 32-bit; a transparent 16-bit colour).
    """
    name = key or (str(data) if isinstance(data, Path) else "image")
    try:
        if isinstance(data, bytes) and not data:
            raise BadImage(name, "empty file")
        with open(data, "rb") if isinstance(data, Path) else io.BytesIO(data) as file:
            try:
                return _pixels(_rgb(_open(file, name), name))
            except BadImage:
                raise
            except Exception:
                file.seek(0)
                whole = file.read()
                bare = _without_texts(whole)
                if len(bare) == len(whole):
                    raise
                return _pixels(_rgb(_open(io.BytesIO(bare), name), name))
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
        return _pixels(_rgb(image, key))
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(key, f"cannot be decoded ({str(error) or type(error).__name__})") from None


def _open(file: Any, name: str) -> Image.Image:
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
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        raise BadImage(name, f"{width}x{height} is more than {MAX_IMAGE_PIXELS:,} pixels")
    return image


def _without_texts(data: bytes) -> bytes:
    """A PNG without its texts, profiles and times, at which Pillow gives up when they are large or damaged."""
    if not data.startswith(_PNG):
        return data
    kept, place = [_PNG], len(_PNG)
    while place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] in _NEEDED or end > len(data):
            kept.append(data[place:end])
        place = end
    return b"".join(kept)


def _rgb(image: Image.Image, name: str) -> Image.Image:
    # such as "L;2", which loading forgets
    depth = str(image.tile[0][3]) if isinstance(image, PngImageFile) and image.tile else ""
    image.load()  # which turns a TIFF and forgets its orientation; before EXIF is asked for, which would hide what is wrong with a PNG
    turn = _orientation(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        image = _eight_bits(image, name)
    elif image.mode == "F":
        raise BadImage(name, "floating-point pixels have no known white")
    elif image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = _on_white(image, depth, name)
    image = image if image.mode == "RGB" else image.convert("RGB")
    return image if turn == 1 else _turned(image, turn)


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1 where there is none, or none that can be read."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF, whose errors are as many as its tags
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    plain, exif = image.copy(), Image.Exif()  # with the one tag, for others may be damaged
    exif[_ORIENTATION] = orientation
    plain.info = {"exif": exif.tobytes()}
    return ImageOps.exif_transpose(plain)


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Grey of 12 or 16 bits as 8; the one transparent grey of a PNG, and WhiteIsZero of a TIFF, as they are meant."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    (bits, *_), (kind, *_) = tags.get(_BITS, (16,)), tags.get(_SAMPLE_FORMAT, (1,))
    grey = np.asarray(image).astype(np.int64)
    if bits not in (12, 16) or grey.max(initial=0) > 65535:
        raise BadImage(name, "32-bit pixels have no known white")
    if kind != 1:
        raise BadImage(name, "signed pixels have no known white")
    white = 2**bits - 1
    if tags.get(_PHOTOMETRIC) == 0:
        grey = white - grey
    if "transparency" in image.info:
        grey = np.where(grey == image.info["transparency"], white, grey)
    return Image.fromarray(((grey * 255 + white // 2) // white).astype(np.uint8))


def _on_white(image: Image.Image, depth: str, name: str) -> Image.Image:
    if depth == "RGB;16B":
        raise BadImage(name, "a transparent colour of 16 bits is not read")  # pixels have lost their low bits
    if depth in ("L;2", "L;4"):  # pixels are scaled to 8 bits, the transparent grey is not
        image.info["transparency"] *= 85 if depth == "L;2" else 17
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image)


def _pixels(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    width, height = image.size
    rows = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)  # np.array(image) takes 1.5x as long
    return rows.view(height, width, 3).permute(2, 0, 1)
