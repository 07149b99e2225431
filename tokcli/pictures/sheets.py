"""Sheets of images with captions: what a model does, at one glance."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from tokcli.data.sources import evenly
from tokcli.errors import TokError
from tokcli.pictures.canvas import (
    FONT_PX,
    blank,
    enlargement,
    line_height,
    put_text,
    text_width,
    to_array,
    upscale,
    wrap,
)

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
    scale: int | None = None,
) -> Image.Image:
    """Images in rows, each row as long as its tensor, on a grey sheet.

    Args:
        rows: uint8 images (n, 3, h, w), one tensor a row, all of one size.
        row_labels: a caption to the left of each row, wrapped.
        column_labels: a caption above each column, wrapped to the column.
        title: one line above everything.
        scale: whole factor of enlargement; None: the largest that keeps a tile within 128 px.

    Raises:
        TokError: no images, images of several sizes, or labels that do not match.
    """
    sizes = {tuple(row.shape[1:]) for row in rows}
    columns = max((len(row) for row in rows), default=0)
    if not columns or len(sizes) != 1:
        raise TokError("contact sheet", "needs images of one size", got=f"sizes {sorted(sizes)}")
    for what, labels, expected in (("rows", row_labels, len(rows)), ("columns", column_labels, columns)):
        if labels is not None and len(labels) != expected:
            raise TokError("contact sheet", f"{expected} {what} but {len(labels)} labels")
    _, height, width = next(iter(sizes))
    factor = scale or enlargement(max(height, width))
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
    rows: Mapping[str, UInt8[Tensor, "_ 3 _ _"]],
    *,
    column_labels: Sequence[str] | None = None,
    title: str = "",
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
