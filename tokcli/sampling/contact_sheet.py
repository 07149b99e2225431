"""The contact sheet of a samples artifact: classes in rows, or edits under the picture that they change."""

from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from PIL.Image import Image
from torch import Tensor

from tokcli import pictures
from tokcli.data.sources import evenly
from tokcli.sampling.edits import Edit

COLUMNS, ROWS = 10, 24  # of a sheet that nobody asked to be otherwise
UNCLASSED = 6  # rows, where there are no classes
GREY = 128  # of pixels that are to be drawn anew


def layout(grid: str | None) -> tuple[int, int]:
    """Rows and columns of `10x8`, or the default."""
    if grid is None:
        return ROWS, COLUMNS
    rows, columns = grid.split("x")
    return int(rows), int(columns)


def shown(labels: Sequence[int], grid: str | None) -> list[int]:
    """The numbers of the images that a sheet shows: the first few of each class, or of all where there are no classes.

    Of more classes than rows as many are taken, evenly spread.
    """
    rows, columns = layout(grid)
    present = sorted(set(labels))
    if len(present) > rows:
        present = [present[i] for i in evenly(len(present), rows)]
    left = {label: columns if label >= 0 else columns * (rows if grid else UNCLASSED) for label in present}
    numbers = []
    for number, label in enumerate(labels):
        if left.get(label, 0):
            left[label] -= 1
            numbers.append(number)
    return numbers


def sheet(
    images: UInt8[Tensor, "m 3 s s"], labels: Sequence[int], names: Sequence[str], grid: str | None, edit: Edit | None
) -> Image:
    """The sheet of the images that `shown` chose.

    Args:
        labels: their classes, -1 for none.
        names: of the classes.
        edit: the picture that they are edits of.
    """
    rows, columns = layout(grid)
    if edit is None and any(label >= 0 for label in labels):
        return pictures.class_sheet(images, torch.tensor(labels), names, per_class=columns, most_classes=rows)
    lines = list(images.split(columns))
    if edit is None:
        return pictures.contact_sheet(lines)
    captions = ["edits", *[""] * (len(lines) - 1)]
    if any(label >= 0 for label in labels):
        present, of = sorted(set(labels))[:rows], torch.tensor(labels)
        lines = [images[of == label][:columns] for label in present]
        captions = [f"edits: {names[label]}" for label in present]
    gone = torch.where(edit.anew, GREY, edit.image)
    above = ["original; grey is drawn anew"]
    originals = torch.stack([edit.small(edit.image), edit.small(gone)])
    return pictures.contact_sheet([originals, *lines], row_labels=above + captions)
