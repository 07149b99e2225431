"""Edits: which parts of a photo are drawn anew (in- and outpainting, arXiv 2202.04200, section 4.4), and in what surroundings.

The photo keeps its size. Each part is drawn in a square window around it, which is resized to the network's pixels and back;
where the window's pixels were not wanted anew, the photo's own stay.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor
from torch.nn import functional

from tokcli.data.decode import BadImage, decode, open_image
from tokcli.data.transforms import Padding, fill_colour, resize
from tokcli.errors import Misuse, TokError
from tokcli.files import sha256
from tokcli.recipe import MAX_PIXELS

MOST = 64  # windows of one edit: more is a mask full of specks
LIGHT = 127  # of 255: what is lighter is drawn anew
SHOWN = 192  # pixels of the long side of a photo on a contact sheet


@dataclass(frozen=True)
class Window:
    """A square of the photo at the network's size, and the tokens that are drawn in it.

    Args:
        top, left, side: in pixels of the photo; it reaches over the photo's edge where a part is longer than its short side.
        image: what the network sees.
        drawn: the tokens over pixels that are wanted anew.
    """

    top: int
    left: int
    side: int
    image: UInt8[Tensor, "3 s s"]
    drawn: Bool[Tensor, " n"]


@dataclass(frozen=True)
class Edit:
    """A photo, its pixels that a user wants anew, and the windows over them, which do not overlap.

    Args:
        image: the photo.
        anew: the pixels.
        windows: at least one.
        inputs: role -> id and path, for the manifest.
    """

    image: UInt8[Tensor, "3 h w"]
    anew: Bool[Tensor, "h w"]
    windows: Sequence[Window]
    inputs: dict[str, dict[str, str]]

    @property
    def drawn(self) -> list[int]:
        """How many tokens are drawn in each window."""
        return [int(window.drawn.sum()) for window in self.windows]

    @property
    def fact(self) -> dict[str, Any]:
        """What the manifest says of it."""
        known = [{"top": w.top, "left": w.left, "side": w.side, "drawn": w.drawn.int().tolist()} for w in self.windows]
        return {"size": list(self.anew.shape), "windows": known}

    def paste(self, parts: UInt8[Tensor, "w 3 s s"]) -> UInt8[Tensor, "3 h w"]:
        """The photo with what was drawn in each window; all pixels that were not wanted anew are the photo's own."""
        result = self.image.clone()
        for window, part in zip(self.windows, parts, strict=True):
            drawn = resize(part.contiguous(), window.side, window.side)
            rows, columns, inside = _overlap(window.top, window.left, window.side, self.anew.shape)
            place = result[:, rows, columns]
            place.copy_(torch.where(self.anew[rows, columns], drawn[(slice(None), *inside)], place))
        return result

    def small(self, image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 h2 w2"]:
        """A photo of this size for a contact sheet."""
        h, w = image.shape[1:]
        factor = min(1.0, SHOWN / max(h, w))
        return resize(image.contiguous(), max(1, round(h * factor)), max(1, round(w * factor)))


def read_edit(
    image: Path,
    mask: Path | None,
    keep_top: int | float | None,
    *,
    mode: str,
    size: int,
    grid: tuple[int, int],
    margin: float = 0.0,
    padding: Padding | None = None,
) -> Edit:
    """A photo and what is to be drawn anew in it: the mask's light pixels, or all below the rows that stay.

    A token is drawn anew where at least one pixel of its patch is. For `keep_top` there is one window, the whole photo on a
    square; for a mask one around each part, or around several that are near each other.

    Args:
        mask: a picture of the same size; None where `keep_top` says it.
        keep_top: rows of tokens that stay, or a share of them.
        mode: of the proposal network.
        size: pixels at which the tokenizer is used.
        grid: its tokens, (h, w).
        margin: surroundings of a part on each side, as a share of its longer side.
        padding: the tokenizer's; windows that reach over the edge are filled so, or with the pixels at the edge.

    Raises:
        Misuse: a mask and `keep_top`, or neither.
        TokError: a file that is no image, a mask of another size, with transparent pixels, of nothing or of too many parts, a
            place that the network cannot draw.
    """
    where = f"--mask {mask}"
    if (mask is None) == (keep_top is None):
        raise Misuse(
            "--edit", "needs --mask or --keep-top", got="both" if mask else "neither", next="Give one of the two"
        )
    if mask is not None and mode == "ar":
        next_step = "Complete a picture with --keep-top, or fill masks with --mode nar"
        raise TokError(where, "an autoregressive network draws after what it knows, not between", next=next_step)
    photo = _pixels("--edit", image)
    inputs = {"image": {"id": f"image-{sha256(image)[:12]}", "path": str(image.resolve())}}
    if mask is None:
        anew, window = _below(photo, keep_top or 0, size, grid, padding)
        return Edit(photo, anew, [window], inputs)
    light = _pixels("--mask", mask)
    if light.shape != photo.shape:
        got = f"{light.shape[2]}x{light.shape[1]}, and {photo.shape[2]}x{photo.shape[1]}"
        raise TokError(where, f"is not of the size of {image}", got=got, next="Resize the mask to it")
    _refuse_transparent(where, mask)
    inputs["mask"] = {"id": f"image-{sha256(mask)[:12]}", "path": str(mask.resolve())}
    anew = light.sum(0, dtype=torch.int16) > 3 * LIGHT
    if not anew.any():
        how = "Mark with light pixels (over half white) what is drawn anew"
        raise TokError(where, "marks nothing to draw anew", next=how)
    squares = squares_of(anew.numpy(), size, margin)
    if len(squares) > MOST:
        how = f"Mark at most {MOST}, join them, or raise sample.margin"
        raise TokError(where, "marks too many parts that lie apart", got=str(len(squares)), next=how)
    return Edit(photo, anew, [_window(photo, anew, *square, size, grid, padding) for square in squares], inputs)


def squares_of(anew: Bool[np.ndarray, "h w"], size: int, margin: float) -> list[tuple[int, int, int]]:
    """(top, left, side) of squares around all parts of a mask, from top to bottom; parts whose squares touch share one.

    A side is the part's longer side and `margin` of it on both sides, at least `size` pixels. It is at most the photo's short
    side, or, for a part that is longer, its long side.
    """
    from scipy.ndimage import find_objects, label  # takes a tenth of a second to import

    near = np.ones((3, 3), dtype=bool)
    areas, known = anew, -1
    while True:
        numbered, count = label(areas, near)
        squares = []
        for number, area in enumerate(find_objects(numbered), 1):
            rows, columns = np.nonzero(anew[area] & (numbered[area] == number))
            top, left = area[0].start + rows.min(), area[1].start + columns.min()
            box = int(top), int(left), int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
            squares.append(_around(*box, anew.shape, size, margin))
        if count == known:
            return squares
        known, areas = count, np.zeros_like(anew)
        for top, left, side in squares:
            areas[max(0, top) : top + side, max(0, left) : left + side] = True


def _around(
    top: int, left: int, height: int, width: int, photo: tuple[int, ...], size: int, margin: float
) -> tuple[int, int, int]:
    """The square around one part, inside of the photo as far as it is no larger."""
    longer, (short, long) = max(height, width), sorted(photo)
    side = min(max(round(longer * (1 + 2 * margin)), size), short if longer <= short else long)

    def start(first: int, length: int, whole: int) -> int:
        middle = first + (length - side) // 2
        return (whole - side) // 2 if side > whole else min(max(middle, 0), whole - side)

    return start(top, height, photo[0]), start(left, width, photo[1]), side


def _below(
    photo: UInt8[Tensor, "3 h w"], keep_top: int | float, size: int, grid: tuple[int, int], padding: Padding | None
) -> tuple[Bool[Tensor, "h w"], Window]:
    """All below the rows that stay, in the whole photo on a square; counted are the rows of tokens that the photo takes."""
    height, width = photo.shape[1:]
    side = max(height, width)
    rows = max(1, round(height / side * grid[0]))
    kept = (grid[0] - rows) // 2 + rows_kept(keep_top, rows)
    top = -((side - height) // 2)
    anew = torch.zeros(height, width, dtype=torch.bool)
    anew[min(max(1, round(kept * side / grid[0]) + top), height - 1) :] = True
    drawn = torch.arange(grid[0]).ge(kept)[:, None].expand(grid).flatten()
    square = (top, -((side - width) // 2), side)
    return anew, Window(*square, _square(photo, *square, size, padding), drawn)


def rows_kept(keep_top: int | float, rows: int) -> int:
    """How many of the rows of tokens stay: a whole number of them, or a share with a point.

    Raises:
        TokError: none, or all of them.
    """
    kept = round(keep_top * rows) if isinstance(keep_top, float) else keep_top  # 1.0 is all of them, not one
    if not 0 < kept < rows:
        how = (
            f"Give 1 to {rows - 1} rows of tokens, or a share such as 0.5"
            if rows > 1
            else "Say with --mask what is drawn"
        )
        what = (
            f"must leave some of the {rows} rows and keep some" if rows > 1 else "the picture is one row of tokens high"
        )
        raise TokError("--keep-top", what, got=str(keep_top), next=how)
    return kept


def _window(
    photo: Tensor,
    anew: Tensor,
    top: int,
    left: int,
    side: int,
    size: int,
    grid: tuple[int, int],
    padding: Padding | None,
) -> Window:
    wanted = torch.zeros(side, side)
    rows, columns, inside = _overlap(top, left, side, anew.shape)
    wanted[inside] = anew[rows, columns].float()
    drawn = functional.adaptive_max_pool2d(wanted[None, None], grid)[0, 0].flatten() > 0
    return Window(top, left, side, _square(photo, top, left, side, size, padding), drawn)


def _square(
    photo: UInt8[Tensor, "3 h w"], top: int, left: int, side: int, size: int, padding: Padding | None
) -> UInt8[Tensor, "3 s s"]:
    """A square of a photo at `size` pixels; what lies outside is filled, see `read_edit`."""
    height, width = photo.shape[1:]
    rows, columns = torch.arange(top, top + side), torch.arange(left, left + side)
    found = photo[:, rows.clamp(0, height - 1)][:, :, columns.clamp(0, width - 1)]
    if padding is not None:
        outside = ((rows < 0) | (rows >= height))[:, None] | ((columns < 0) | (columns >= width))
        found = torch.where(outside, fill_colour(photo, padding)[:, None, None], found)
    return resize(found.contiguous(), size, size)


def _overlap(top: int, left: int, side: int, photo: tuple[int, ...]) -> tuple[slice, slice, tuple[slice, slice]]:
    """Rows and columns of the photo that a window covers, and these as rows and columns of the window."""
    found = []
    for start, whole in zip((top, left), photo, strict=True):
        first, last = max(0, start), min(whole, start + side)
        found.append((slice(first, last), slice(first - start, last - start)))
    return found[0][0], found[1][0], (found[0][1], found[1][1])


def _refuse_transparent(where: str, mask: Path) -> None:
    """Some programs mean what is clear, others what is painted on it."""
    with open(mask, "rb") as file, open_image(file, str(mask), MAX_PIXELS) as picture:
        clear = picture.has_transparency_data and picture.convert("RGBA").getchannel("A").getextrema()[0] != 255
    if clear:
        how = "Make it black where the photo stays, and white where it is drawn anew"
        raise TokError(where, "has transparent pixels", next=how)


def _pixels(flag: str, path: Path) -> UInt8[Tensor, "3 h w"]:
    try:
        return decode(path)
    except BadImage as bad:
        raise TokError(f"{flag} {path}", bad.why, next="Give a picture that can be read, such as a PNG") from None
