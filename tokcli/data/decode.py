"""Image bytes to RGB pixels, for bytes that nobody has looked at: no memory is spent before a size check."""

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from tokcli.data.image_files import BadImage, Part, open_image, opened, without_texts
from tokcli.recipe import MAX_PIXELS

__all__ = ["BadImage", "decode", "pixels_of"]

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
        BadImage: unreadable, truncated, of more than `most` pixels, or with pixels of unknown range
            (float, signed, 32-bit; a transparent 16-bit colour).
    """
    name = key or ("image" if isinstance(data, bytes) else str(data if isinstance(data, Path) else data.path))
    try:
        with opened(data, name, most) as file:
            try:
                return _decoded(open_image(file, name, most), name)
            except BadImage:
                raise
            except Exception as first:
                error = first
                for bare in without_texts(file):
                    try:
                        return _decoded(open_image(bare, name, most), name)
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
