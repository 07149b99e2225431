"""Image bytes to RGB pixels, for bytes that nobody has looked at: no memory is spent before a size check."""

import io
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

MAX_IMAGE_PIXELS = 178_956_970  # where Pillow starts to warn of a decompression bomb; here it is the limit

# A file's name may lie about its format, so the list is of decoders. Pillow's others (EPS runs Ghostscript)
# stay shut.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
_unlimited = threading.Lock()


class BadImage(Exception):
    """A sample that cannot be turned into pixels; `key` names it, `why` says what is wrong with it."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(key, why)  # both, so that it survives the way out of a worker process
        self.key, self.why = key, why

    def __str__(self) -> str:
        return f"{self.key}: {self.why}"


def decode(data: bytes | Path, key: str = "") -> UInt8[Tensor, "3 h w"]:
    """RGB pixels of a JPEG, PNG, WebP, BMP, TIFF or GIF (first frame), turned as its EXIF orientation says.

    Transparency is laid on white, 16-bit grey is scaled to 8 bits, CMYK and palettes are converted; embedded
    colour profiles are ignored, as everywhere in the field. The result is a (3, h, w) view of rows that are
    stored (h, w, 3): the layout in which resizing uint8 is fastest.

    Raises:
        BadImage: unreadable, truncated, of more than MAX_IMAGE_PIXELS, or with pixels of unknown range
            (float, 32-bit).
    """
    name = key or (str(data) if isinstance(data, Path) else "image")
    try:
        if isinstance(data, bytes) and not data:
            raise BadImage(name, "empty file")
        with open(data, "rb") if isinstance(data, Path) else io.BytesIO(data) as file:
            return _pixels(_rgb(_open(file, name), name))
    except BadImage:
        raise
    except Image.UnidentifiedImageError:
        raise BadImage(name, "not an image (of a format that is read here)") from None
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise BadImage(name, f"cannot be read ({error.strerror})") from None
    except Exception as error:  # decoders meet hostile bytes here, and raise whatever breaks first
        raise BadImage(name, f"cannot be decoded ({str(error) or type(error).__name__})") from None


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


def _rgb(image: Image.Image, name: str) -> Image.Image:
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.int64)
        if grey.max(initial=0) > 65535 or grey.min(initial=0) < 0:
            raise BadImage(name, "32-bit pixels have no known white")
        image = Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "F":
        raise BadImage(name, "floating-point pixels have no known white")
    elif image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    image = image if image.mode == "RGB" else image.convert("RGB")
    image.load()
    return image if turn is None else image.transpose(turn)


def _pixels(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    width, height = image.size
    rows = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)  # np.array(image) takes 1.5x as long
    return rows.view(height, width, 3).permute(2, 0, 1)
