"""Which patches stand for a code, cut out of their images and laid out side by side."""

import numpy as np
from jaxtyping import Int, UInt8
from torch import Tensor

from tokcli.pictures.canvas import PAPER, blank, enlargement, upscale

GAP = 2
PATCH_PX = 56  # patches are enlarged to at most this side
FRAME = (176, 176, 184)  # around each patch: white patches would otherwise run together
OUTLINE = (230, 85, 0)  # where a token's own cell ends and its context begins


def choose_patches(indices: Int[Tensor, "N n"], codebook_size: int, per_code: int = 36) -> Int[np.ndarray, "k m 2"]:
    """Up to `per_code` places (image, position) of each code, -1 where there are fewer.

    As many different images as possible, evenly spread over those that hold the code; a second place in an image only
    when every image has given one. The same indices give the same places.
    """
    image_count, n = indices.shape
    codes = indices.reshape(-1).cpu().numpy().astype(np.int64)
    order = np.argsort(codes, kind="stable")  # by code, then image, then position
    code, image = codes[order], order // n
    # how often the code has occurred in the same image before: 0 for its first place there
    fresh = np.ones(len(order), bool)
    fresh[1:] = (code[1:] != code[:-1]) | (image[1:] != image[:-1])
    starts = np.flatnonzero(fresh)
    repeat = np.arange(len(order)) - starts[np.cumsum(fresh) - 1]
    order = order[np.lexsort((image, repeat, code))]

    counts = np.bincount(codes, minlength=codebook_size)
    images = np.bincount(code[fresh], minlength=codebook_size)  # different images a code
    slot = np.arange(per_code)[None, :]
    spread = (2 * slot + 1) * images[:, None] // (2 * per_code)
    nth = np.where(images[:, None] >= per_code, spread, slot)
    first = np.cumsum(counts) - counts
    there = nth < counts[:, None]
    flat = order[np.where(there, first[:, None] + nth, 0)] if image_count * n else np.zeros_like(nth)
    return np.where(there[..., None], np.stack([flat // n, flat % n], axis=-1), -1)


def crop_patches(
    images: UInt8[Tensor, "N 3 h w"], places: Int[np.ndarray, "*k 2"], grid: tuple[int, int], context: int = 0
) -> UInt8[np.ndarray, "*k p q 3"]:
    """The pixels of each place's cell of the grid, with `context` pixels around it; empty places are grey.

    Context beyond the image's edge repeats the edge.
    """
    pixels = images.cpu().numpy()
    height, width = pixels.shape[2:]
    (rows, columns), empty = grid, places[..., 0] < 0
    # a grid that does not divide the image gives cells of one size, rounded up
    cell_h, cell_w = -(-height // rows), -(-width // columns)
    top = (places[..., 1] // columns) * height // rows
    left = (places[..., 1] % columns) * width // columns
    y = (top[..., None] + np.arange(-context, cell_h + context)).clip(0, height - 1)
    x = (left[..., None] + np.arange(-context, cell_w + context)).clip(0, width - 1)
    # the slice between index arrays puts the channels last, without a copy of all images
    patches = pixels[places[..., 0].clip(0)[..., None, None], :, y[..., :, None], x[..., None, :]]
    patches[empty] = PAPER
    return patches


def tiles_of(patches: UInt8[np.ndarray, "*k p q 3"], context: int) -> UInt8[np.ndarray, "*k P Q 3"]:
    """Enlarged patches in a thin frame; with context, a line around the cell itself."""
    factor = enlargement(max(patches.shape[-3:-1]), PATCH_PX)
    sides = [(0, 0)] * (patches.ndim - 3) + [(1, 1), (1, 1), (0, 0)]
    tiles = np.pad(upscale(patches, factor), sides)
    empty = (patches == PAPER).all(axis=(-3, -2, -1))
    _outline(tiles, np.where(empty[..., None, None], PAPER, FRAME), 0)
    if context:
        _outline(tiles, np.where(empty[..., None, None], PAPER, OUTLINE), context * factor)
    return tiles


def _outline(tiles: UInt8[np.ndarray, "*k P Q 3"], colours: Int[np.ndarray, "*k 1 3"], inset: int) -> None:
    """Draw a rectangle one pixel wide into every tile, `inset` pixels from its edge."""
    inside = tiles[..., inset : tiles.shape[-3] - inset, inset : tiles.shape[-2] - inset, :]
    for side in (inside[..., 0, :, :], inside[..., -1, :, :], inside[..., :, 0, :], inside[..., :, -1, :]):
        side[...] = colours


def mosaic(tiles: UInt8[np.ndarray, "m P Q 3"], columns: int, gap: int = GAP) -> UInt8[np.ndarray, "H W 3"]:
    """Tiles in rows of `columns`, a gap to the right of and below each; the last row is filled up with grey."""
    m, high, wide, _ = tiles.shape
    rows = -(-m // columns)
    board = blank(rows * columns, high + gap, wide + gap)
    board[:m, :high, :wide] = tiles
    board = board.reshape(rows, columns, high + gap, wide + gap, 3).swapaxes(1, 2)
    return board.reshape(rows * (high + gap), columns * (wide + gap), 3)
