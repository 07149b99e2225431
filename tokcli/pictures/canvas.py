"""What every picture needs: 8-bit values, whole-number enlargement, legible text, PNG files."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tokcli.errors import TokError
from tokcli.files import atomic_write

PAPER = 236  # a light grey: the edge of an image on white stays visible
INK = (24, 24, 28)
FONT_PX = 15
ELLIPSIS = "…"


def to_uint8(images: Float[Tensor, "*any"]) -> UInt8[Tensor, "*any"]:
    """Values in [0, 1] to 0..255: clamped and rounded (truncation would darken every image by half a level).

    Raises:
        TokError: a value is NaN or infinite.
    """
    values = images.detach().float()
    if not values.isfinite().all():
        raise TokError("images", "pixels are not finite", next="Look at the decoder's training log")
    return values.clamp(0, 1).mul(255).round().byte()


def blank(*shape: int) -> UInt8[np.ndarray, "*n h w 3"]:
    """An empty sheet, or several, of shape (..., h, w)."""
    return np.full((*shape, 3), PAPER, np.uint8)


def to_array(image: UInt8[Tensor, "*n 3 h w"]) -> UInt8[np.ndarray, "*n h w 3"]:
    """Channels last, on the CPU: the order in which pictures are drawn."""
    return np.ascontiguousarray(image.cpu().movedim(-3, -1).numpy())


def enlargement(side: int, to: int = 128) -> int:
    """The largest whole factor that keeps an image of `side` px within `to` px, at least 1 (64 px: 2)."""
    return max(1, to // max(1, side))


def upscale(tiles: UInt8[np.ndarray, "*n h w 3"], factor: int) -> UInt8[np.ndarray, "*n H W 3"]:
    """Each pixel becomes factor x factor equal ones: nothing is smoothed that the model did not smooth."""
    return tiles if factor == 1 else tiles.repeat(factor, axis=-3).repeat(factor, axis=-2)


@cache
def font(px: int = FONT_PX) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows accents, Greek and Cyrillic; else Pillow's own font."""
    found = find_spec("matplotlib")  # locates the package without importing it
    for folder in (found.submodule_search_locations or ()) if found else ():
        file = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if file.exists():
            return ImageFont.truetype(str(file), px)
    return ImageFont.load_default(px)


def text_width(text: str, px: int = FONT_PX) -> int:
    """How wide one line of text is drawn, in pixels."""
    return int(np.ceil(font(px).getlength(text)))


def line_height(px: int = FONT_PX) -> int:
    """Distance between two lines of text, in pixels."""
    return int(px * 1.3)


def shorten(text: str, width: int, px: int = FONT_PX) -> str:
    """`text`, or as much of it as fits into `width` pixels with an ellipsis."""
    if text_width(text, px) <= width:
        return text
    while text and text_width(text + ELLIPSIS, px) > width:
        text = text[:-1]
    return text.rstrip() + ELLIPSIS


def wrap(text: str, width: int, lines: int) -> list[str]:
    """`text` broken at spaces into at most `lines` lines of `width` pixels, the last one cut with an ellipsis."""
    out: list[str] = []
    words = text.split()
    while words and len(out) < lines - 1:
        taken = 1
        while taken < len(words) and text_width(" ".join(words[: taken + 1])) <= width:
            taken += 1
        out.append(shorten(" ".join(words[:taken]), width))
        words = words[taken:]
    return [*out, shorten(" ".join(words), width)] if words else out


def put_text(canvas: Image.Image, at: tuple[int, int], text: str, px: int = FONT_PX, anchor: str = "la") -> None:
    """Write one line; `anchor` as in Pillow (`la` left and top, `rm` right and middle, `ma` middle and top)."""
    ImageDraw.Draw(canvas).text(at, text, fill=INK, font=font(px), anchor=anchor)


def save_png(image: Image.Image, path: str | Path) -> Path:
    """Write the picture whole or not at all, and return its path.

    Raises:
        TokError: the disk is full or the folder cannot be written.
    """
    with atomic_write(path) as tmp:
        image.save(tmp, format="PNG")
    return Path(path)
