"""One picture per code of the patches that share it, and the most and least used codes on one sheet."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from tokcli.codebook.patches import GAP, choose_patches, crop_patches, mosaic, tiles_of
from tokcli.files import disk_error
from tokcli.pictures.canvas import FONT_PX, blank, line_height, put_text, text_width
from tokcli.progress import passing

MARGIN = 6
RANKED = 16  # codes on each side of the ranking
CHUNK_CODES = 256  # codes cropped at once: the patches of 16,384 codes take half a gigabyte


def code_sheet(
    patches: UInt8[np.ndarray, "m p q 3"], caption: str, *, columns: int = 6, context: int = 0
) -> Image.Image:
    """The patches of one code in rows of `columns` under a caption.

    Args:
        patches: from `crop_patches`.
        caption: one line; the sheet grows to hold it.
        columns: patches a row.
        context: the context the patches were cropped with; their own cell is outlined.
    """
    board = mosaic(tiles_of(patches, context), columns)
    top = MARGIN + line_height()
    wide = max(board.shape[1] - GAP, text_width(caption)) + 2 * MARGIN
    canvas = blank(top + board.shape[0] - GAP + MARGIN, wide)
    board = board[:-GAP, :-GAP]
    canvas[top : top + board.shape[0], MARGIN : MARGIN + board.shape[1]] = board
    sheet = Image.fromarray(canvas)
    put_text(sheet, (MARGIN, MARGIN - 2), caption)
    return sheet


def _share(count: int, total: int) -> str:
    return f"{count / total:.2%}" if count >= total / 10_000 else "<0.01%"


def _caption(code: int, count: int, total: int) -> str:
    return f"code {code}  ·  {count:,} of {total:,} tokens ({_share(count, total)})"


def write_code_sheets(
    folder: str | Path,
    images: UInt8[Tensor, "N 3 h w"],
    indices: Int[Tensor, "N n"],
    grid: tuple[int, int],
    codebook_size: int,
    *,
    columns: int = 6,
    context: int = 0,
) -> Iterator[Path]:
    """Write `code-00042.png` into `folder` for every code that occurs, columns x columns patches; yields each path.

    They are written in place, not atomically: the artifact they belong to is complete when its manifest says so.

    Raises:
        TokError: the disk is full or the folder cannot be written.
    """
    if indices.shape != (len(images), grid[0] * grid[1]):
        raise ValueError(f"code sheets: indices {tuple(indices.shape)} do not fit {len(images)} images, grid {grid}")
    counts = np.bincount(indices.reshape(-1).cpu().numpy(), minlength=codebook_size)
    places = choose_patches(indices, codebook_size, columns * columns)
    used = np.flatnonzero(counts)
    digits = max(5, len(str(codebook_size - 1)))
    chunks = np.split(used, range(CHUNK_CODES, len(used), CHUNK_CODES))
    for chunk in passing(chunks, len(used), unit="code", desc="sheets of codes", units=len):
        for code, patches in zip(chunk, crop_patches(images, places[chunk], grid, context), strict=True):
            caption = _caption(int(code), int(counts[code]), int(counts.sum()))
            path = Path(folder) / f"code-{code:0{digits}d}.png"
            try:
                code_sheet(patches, caption, columns=columns, context=context).save(path, compress_level=1)
            except OSError as error:
                raise disk_error(path, error) from error
            yield path


def ranking_sheet(
    images: UInt8[Tensor, "N 3 h w"],
    indices: Int[Tensor, "N n"],
    grid: tuple[int, int],
    codebook_size: int,
    *,
    context: int = 0,
) -> Image.Image:
    """The 16 most used codes to the left and the least used ones (of those used at all) to the right."""
    counts = np.bincount(indices.reshape(-1).cpu().numpy(), minlength=codebook_size)
    ranked = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    sides = [
        (f"most used of {codebook_size:,} codes", ranked[:RANKED]),
        (f"least used  ·  {codebook_size - len(ranked):,} codes never used", ranked[-RANKED:][::-1]),
    ]
    places = choose_patches(indices, codebook_size, 12)
    total = int(counts.sum())
    boards = [
        _ranking_side(title, codes, counts, total, crop_patches(images, places[codes], grid, context), context)
        for title, codes in sides
    ]
    width, height = sum(b.width for b in boards), max(b.height for b in boards)
    sheet = Image.fromarray(blank(height, width))
    for i, board in enumerate(boards):
        sheet.paste(board, (i * boards[0].width, 0))
    return sheet


def _ranking_side(
    title: str,
    codes: Int[np.ndarray, " r"],
    counts: Int[np.ndarray, " k"],
    total: int,
    patches: UInt8[np.ndarray, "r m p q 3"],
    context: int,
) -> Image.Image:
    """A title over one captioned row of patches a code."""
    tiles = tiles_of(patches, context)
    captions = [(f"code {code}", f"{counts[code]:,}  ({_share(int(counts[code]), total)})") for code in codes]
    left = 2 * MARGIN + max((text_width(line) for caption in captions for line in caption), default=0) + 6
    top = 2 * MARGIN + line_height(FONT_PX + 2)
    board = mosaic(tiles.reshape(-1, *tiles.shape[2:]), tiles.shape[1])
    step = max(tiles.shape[2] + GAP, 2 * line_height(FONT_PX) + GAP)
    wide = max(left + board.shape[1], MARGIN + text_width(title, FONT_PX + 2)) + 3 * MARGIN
    canvas = blank(top + len(codes) * step + MARGIN, wide)
    for r, line in enumerate(np.split(board, len(codes))):
        canvas[top + r * step : top + r * step + line.shape[0], left : left + line.shape[1]] = line
    side = Image.fromarray(canvas)
    put_text(side, (MARGIN, MARGIN), title, FONT_PX + 2)
    for r, lines in enumerate(captions):
        middle = top + r * step + tiles.shape[2] // 2
        for text, shift in zip(lines, (-line_height() // 2, line_height() // 2), strict=True):
            put_text(side, (left - 6, middle + shift), text, anchor="rm")
    return side
