"""One codebook seen through images: everything its pictures and its page are drawn from, and the pictures themselves."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tokcli.codebook import atlas
from tokcli.codebook.codes import ranking_sheet, write_code_sheets
from tokcli.codebook.patches import choose_patches, crop_patches
from tokcli.codebook.purity import Purity, draw_purity, measure_purity, purity_numbers
from tokcli.codebook.similarity import fill_grid, lay_out, neighbours
from tokcli.pictures import plots
from tokcli.pictures.canvas import save_png

NEIGHBOURS = 12


class Codebook(NamedTuple):
    """A codebook and its tokens on some images.

    Args:
        name: of the tokenizer.
        images: uint8, all of one size.
        indices: their tokens, row-major on the grid.
        grid: rows and columns of tokens.
        counts: tokens per code.
        xy: each code's place in the plane, like beside like.
        cells: row and column of each code in the atlas.
        typical: the (image, position) whose features are nearest to each code, -1 for unused ones.
        near: each code's nearest other codes, nearest first.
        purity: None where no image has a class.
    """

    name: str
    images: UInt8[Tensor, "N 3 h w"]
    indices: Int[Tensor, "N n"]
    grid: tuple[int, int]
    counts: Int[Tensor, " k"]
    xy: Float[np.ndarray, "k 2"]
    cells: Int[np.ndarray, "k 2"]
    typical: Int[np.ndarray, "k 2"]
    near: Int[np.ndarray, "k m"]
    purity: Purity | None


def see(
    name: str,
    images: UInt8[Tensor, "N 3 h w"],
    indices: Int[Tensor, "N n"],
    labels: Int[Tensor, " N"],
    grid: tuple[int, int],
    codes: Float[Tensor, "k d"],
    distances: Float[Tensor, "N n"],
    *,
    perplexity: float = 30.0,
    seed: int = 0,
) -> Codebook:
    """Work out what the pictures need.

    Args:
        name: of the tokenizer.
        images, indices, grid: see `Codebook`.
        labels: class of each image, -1 for none.
        codes: as the quantizer compares them: l2-normalised where it uses the cosine.
        distances: of each token's features to its code.
        perplexity: of the t-SNE that lays the codes out.
        seed: of that layout and of the shuffled classes.
    """
    table = codes.detach().float().cpu().numpy()
    counts = torch.bincount(indices.reshape(-1).cpu(), minlength=len(table))
    xy = lay_out(table, perplexity=perplexity, seed=seed)
    typical = atlas.typical_places(indices, distances, len(table))
    purity = measure_purity(indices, labels, len(table), seed)
    near = neighbours(table, NEIGHBOURS)
    return Codebook(name, images, indices, grid, counts, xy, fill_grid(xy), typical, near, purity)


def write_pictures(
    folder: Path, book: Codebook, classes: Sequence[str], *, usage: float, perplexity: float, columns: int, context: int
) -> tuple[list[str], list[str], list[str]]:
    """Write a codebook's pictures and the CSV behind each into `folder`.

    Args:
        folder: must exist.
        book: from `see`.
        classes: names by number.
        usage, perplexity: of the codebook, printed in the usage plot.
        columns: a code's sheet shows columns x columns patches.
        context: pixels around a patch that are shown too.

    Returns:
        Names of the code sheets, of the CSV files, and of the other pictures, all relative to `folder`.

    Raises:
        TokError: the disk is full or the folder cannot be written.
    """
    k, (rows, wide) = len(book.counts), book.grid
    (folder / "codes").mkdir(exist_ok=True)
    kinds = dict(columns=columns, context=context)
    sheets = [
        f"codes/{p.name}" for p in write_code_sheets(folder / "codes", book.images, book.indices, book.grid, k, **kinds)
    ]
    ranking = ranking_sheet(book.images, book.indices, book.grid, k, context=context)
    save_png(ranking, folder / "ranking.png")
    plots.write_csv(folder / "usage.csv", plots.usage_numbers(book.counts))
    plots.draw_usage(book.counts, folder / "usage.png", usage=usage, perplexity=perplexity)
    places = atlas.place_counts(book.indices, k)
    look = f"{book.name}: {k:,} codes, like beside like; unused ones are grey"
    where = f"where each code of the atlas occurs on the {rows} x {wide} grid, darkest where most"
    for name, tiles, title in (
        ("atlas", crop_patches(book.images, book.typical, book.grid), look),
        ("places", atlas.place_tiles(places, book.grid), where),
    ):
        save_png(atlas.atlas_sheet(tiles, book.cells, title), folder / f"{name}.png")
    plots.write_csv(folder / "atlas.csv", _atlas_numbers(book))
    plots.write_csv(folder / "places.csv", list(atlas.place_numbers(places, book.grid)))
    plots.write_csv(folder / "patches.csv", _patch_numbers(book, columns * columns))
    tables, pictures = ["usage", "atlas", "places", "patches"], ["ranking", "usage", "atlas", "places"]
    if book.purity is not None:
        plots.write_csv(folder / "purity.csv", purity_numbers(book.purity, classes))
        draw_purity(book.purity, folder / "purity.png", title=book.name)
        tables, pictures = [*tables, "purity"], [*pictures, "purity"]
    return sheets, [f"{name}.csv" for name in tables], [f"{name}.png" for name in pictures]


def _atlas_numbers(book: Codebook) -> list[dict[str, object]]:
    """One row a code: its cell in the atlas, its place in the plane, and the token drawn there (-1: unused)."""
    names = ("index", "row", "column", "x", "y", "image", "position")
    return [
        dict(zip(names, (i, *map(int, cell), f"{x:.4f}", f"{y:.4f}", *map(int, token)), strict=True))
        for i, (cell, (x, y), token) in enumerate(zip(book.cells, book.xy, book.typical, strict=True))
    ]


def _patch_numbers(book: Codebook, per_code: int) -> list[dict[str, int]]:
    """One row a patch of the code sheets, in the order drawn: `index, image, row, column`."""
    places = choose_patches(book.indices, len(book.counts), per_code)
    return [
        {"index": i, "image": int(image), "row": int(place) // book.grid[1], "column": int(place) % book.grid[1]}
        for i, of_code in enumerate(places)
        for image, place in of_code[of_code[:, 0] >= 0]
    ]
