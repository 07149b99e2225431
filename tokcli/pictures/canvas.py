"""What every picture needs: 8-bit values, whole-number enlargement, legible text, PNG files; and sheets of captioned images."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tokcli.data.sources import evenly
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


def shorten(text: str, width: int) -> str:
    """`text`, or as much of it as fits into `width` pixels with an ellipsis."""
    if text_width(text) <= width:
        return text
    while text and text_width(text + ELLIPSIS) > width:
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


GAP = 4
MARGIN = 10
CAPTION_PX = 180  # row captions wrap beyond this width
CAPTION_LINES = 3


def _captions(labels: Sequence[str], width: int) -> list[list[str]]:
    return [wrap(label, width, CAPTION_LINES) for label in labels]


def contact_sheet(
    rows: Sequence[UInt8[Tensor, "_ 3 _ _"]],
    *,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    title: str = "",
) -> Image.Image:
    """Images in rows, each row as long as its tensor, enlarged by `enlargement`, on a grey sheet.

    Args:
        rows: uint8 images (n, 3, h, w), one tensor a row, all of one size.
        row_labels: a caption to the left of each row, wrapped.
        column_labels: a caption above each column, wrapped to the column.
        title: one line above everything.

    Raises:
        ValueError: no images, images of several sizes, or labels that do not match.
    """
    sizes = {tuple(row.shape[1:]) for row in rows}
    columns = max((len(row) for row in rows), default=0)
    if not columns or len(sizes) != 1:
        raise ValueError(f"contact sheet: needs images of one size: sizes {sorted(sizes)}")
    for what, labels, expected in (("rows", row_labels, len(rows)), ("columns", column_labels, columns)):
        if labels is not None and len(labels) != expected:
            raise ValueError(f"contact sheet: {expected} {what} but {len(labels)} labels")
    _, height, width = next(iter(sizes))
    factor = enlargement(max(height, width))
    height, width = height * factor, width * factor

    left_texts = _captions(row_labels or [], CAPTION_PX)
    top_texts = _captions(column_labels or [], width)
    left = MARGIN + max((text_width(line) + 8 for lines in left_texts for line in lines), default=0)
    titled = MARGIN + (line_height(FONT_PX + 2) + 4 if title else 0)
    top = titled + line_height() * max((len(lines) for lines in top_texts), default=0) + (4 if top_texts else 0)
    wide = left + columns * (width + GAP) - GAP + MARGIN
    if title:
        wide = max(wide, MARGIN * 2 + text_width(title, FONT_PX + 2))
    canvas = blank(top + len(rows) * (height + GAP) - GAP + MARGIN, wide)
    for r, row in enumerate(rows):
        y = top + r * (height + GAP)
        for c, tile in enumerate(upscale(to_array(row), factor)):
            x = left + c * (width + GAP)
            canvas[y : y + height, x : x + width] = tile

    sheet = Image.fromarray(canvas)
    if title:
        put_text(sheet, (MARGIN, MARGIN), title, FONT_PX + 2)
    for r, lines in enumerate(left_texts):
        middle = top + r * (height + GAP) + height // 2
        for i, line in enumerate(lines):
            y = middle + int((i - (len(lines) - 1) / 2) * line_height())
            put_text(sheet, (left - 8, y), line, anchor="rm")
    for c, lines in enumerate(top_texts):
        for i, line in enumerate(lines):
            put_text(sheet, (left + c * (width + GAP) + width // 2, titled + i * line_height()), line, anchor="ma")
    return sheet


def comparison_sheet(
    rows: Mapping[str, UInt8[Tensor, "_ 3 _ _"]], *, column_labels: Sequence[str] | None = None, title: str = ""
) -> Image.Image:
    """Captioned rows: original, reconstruction, AR sample, NAR sample; arguments as for `contact_sheet`."""
    return contact_sheet(list(rows.values()), row_labels=list(rows), column_labels=column_labels, title=title)


def class_sheet(
    images: UInt8[Tensor, "n 3 h w"],
    labels: Int[Tensor, " n"],
    classes: Sequence[str],
    *,
    per_class: int = 10,
    most_classes: int = 24,
) -> Image.Image:
    """A row of samples per class, the class's name to its left, in the classes' order.

    Args:
        images: uint8 samples.
        labels: their classes; -1 (none) makes a row "no class".
        classes: names by number.
        per_class: the first so many of a class are shown.
        most_classes: with more classes present, so many of them evenly spread.
    """
    present = np.unique(labels.cpu().numpy())
    if len(present) > most_classes:
        present = present[evenly(len(present), most_classes)]
    rows = {int(c): images[(labels == int(c)).to(images.device)][:per_class] for c in present}
    names = [classes[c] if 0 <= c < len(classes) else "no class" for c in rows]
    return contact_sheet(list(rows.values()), row_labels=names)
