"""All codes on one sheet, like beside like: what each looks like, and where in images it occurs."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from tokcli.codebook.similarity import grid_side
from tokcli.pictures.canvas import FONT_PX, PAPER, blank, enlargement, line_height, put_text, text_width, upscale

MARGIN = 10
SIDE_PX = 1400  # the sheet's tiles are enlarged until it is about so wide
HEAT = np.array([[247, 251, 255], [158, 202, 225], [49, 130, 189], [8, 48, 107]])  # none to most, readable in grey too


def typical_places(
    indices: Int[Tensor, "N n"], distances: Float[Tensor, "N n"], codebook_size: int
) -> Int[np.ndarray, "k 2"]:
    """Where each code is most itself: the (image, position) of its token with the least distance; -1 for unused codes.

    Args:
        indices: tokens.
        distances: of each token's features to its code, as the quantizer compares them.
        codebook_size: number of codes.
    """
    codes = indices.reshape(-1).cpu().numpy()
    order = np.lexsort((distances.reshape(-1).cpu().numpy(), codes))
    used, first = np.unique(codes[order], return_index=True)
    typical = np.full((codebook_size, 2), -1, np.int64)
    typical[used] = np.stack(np.divmod(order[first], indices.shape[1]), axis=1)
    return typical


def place_counts(indices: Int[Tensor, "N n"], codebook_size: int) -> Int[np.ndarray, "k n"]:
    """How many tokens each code has at each position of the grid."""
    n = indices.shape[1]
    flat = indices.cpu().numpy().astype(np.int64) * n + np.arange(n)
    return np.bincount(flat.reshape(-1), minlength=codebook_size * n).reshape(codebook_size, n)


def place_numbers(counts: Int[np.ndarray, "k n"], grid: tuple[int, int]) -> Iterator[dict[str, int]]:
    """One row for each code and place where it occurs: `index, row, column, tokens`."""
    for index, place in zip(*np.nonzero(counts), strict=True):
        row, column = divmod(int(place), grid[1])
        yield {"index": int(index), "row": row, "column": column, "tokens": int(counts[index, place])}


def heat(shares: "np.ndarray") -> UInt8[np.ndarray, "*n 3"]:
    """Values in [0, 1] as colours from nearly white to dark blue."""
    at = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(shares, at, HEAT[:, c]) for c in range(3)], -1).round().astype(np.uint8)


def place_tiles(counts: Int[np.ndarray, "k n"], grid: tuple[int, int]) -> UInt8[np.ndarray, "k h w 3"]:
    """A heat map of each code's places, white where it never is, darkest where it is most; unused codes are grey."""
    most = counts.max(1, keepdims=True, initial=0)
    tiles = heat(counts / np.maximum(most, 1)).reshape(-1, *grid, 3)
    tiles[most[:, 0] == 0] = PAPER
    return tiles


def atlas_sheet(tiles: UInt8[np.ndarray, "k p q 3"], cells: Int[np.ndarray, "k 2"], title: str) -> Image.Image:
    """Every code's tile in its cell of the grid, under a title.

    Args:
        tiles: one picture a code.
        cells: row and column of each, from `similarity.fill_grid`.
        title: one line.
    """
    rows, columns = grid_side(len(tiles))
    high, wide = tiles.shape[1:3]
    factor = enlargement(max(high, wide), SIDE_PX // columns)
    high, wide = high * factor + 1, wide * factor + 1  # a thin line between tiles
    top = 2 * MARGIN + line_height(FONT_PX + 2)
    board = blank(rows * high, columns * wide)
    for tile, (row, column) in zip(tiles, cells, strict=True):
        y, x = row * high, column * wide
        board[y : y + high - 1, x : x + wide - 1] = upscale(tile, factor)
    canvas = blank(top + len(board) + MARGIN, max(board.shape[1], text_width(title, FONT_PX + 2)) + 2 * MARGIN)
    canvas[top : top + len(board), MARGIN : MARGIN + board.shape[1]] = board
    sheet = Image.fromarray(canvas)
    put_text(sheet, (MARGIN, MARGIN), title, FONT_PX + 2)
    return sheet
