"""The page to walk through a codebook: `index.html` and `page/`, opened from disk, nothing fetched from elsewhere."""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from tokcli.codebook.patches import crop_patches, mosaic
from tokcli.codebook.similarity import along_curve
from tokcli.codebook.view import Codebook
from tokcli.files import atomic_write, write_text
from tokcli.pictures.canvas import to_array, to_uint8
from tokcli.pictures.theme import fill

WEB = Path(__file__).parent / "web"
SHEET_PX = 2048  # a sheet of images is at most so wide and high: every browser shows it
IMAGE_PX = 128  # larger images are shown at this size
WEBP_PX = 16_383  # no WebP is wider or higher
LOSSLESS_PX = 96  # up to this size images are small enough to be kept exactly
STYLES = ("codebook.css",)
SCRIPTS = ("book.js", "tiles.js", "pane.js", "wall.js", "main.js")


def pack(values: Int[np.ndarray, "*n"] | Sequence[int]) -> dict[str, str]:
    """Numbers as base64 of the smallest little-endian type that holds them: `u1`, `u2`, `u4`, `i4` or `f4`."""
    array = np.asarray(values)
    if array.dtype.kind == "f":
        kind = "f4"
    else:
        low, high = int(array.min(initial=0)), int(array.max(initial=0))
        kind = "i4" if low < 0 else next(k for k, top in (("u1", 2**8), ("u2", 2**16), ("u4", 2**32)) if high < top)
    data = np.ascontiguousarray(array, dtype=f"<{kind}").tobytes()
    return {"type": kind, "data": base64.b64encode(data).decode("ascii")}


def write_page(
    folder: Path,
    books: Sequence[Codebook],
    labels: Int[Tensor, " N"],
    names: Sequence[str],
    classes: Sequence[str],
    *,
    perplexities: Sequence[float],
    context: int,
    title: str,
) -> list[str]:
    """Write the page of one codebook, or of two that saw the same images.

    Args:
        folder: gets `index.html` and `page/`.
        books: from `see`; images are drawn from the one with the largest.
        labels: class of each image, -1 for none.
        names: of the images.
        classes: names by number.
        perplexities: codebook_perplexity of each book.
        context: pixels around a code's typical patch that can be shown with it.
        title: of the page, plain text.

    Returns:
        The files written, relative to `folder`.

    Raises:
        TokError: the disk is full or the folder cannot be written.
    """
    (folder / "page").mkdir(exist_ok=True)
    largest = max(books, key=lambda book: book.images.shape[-1])
    images, files = _image_sheets(folder, largest.images)
    images |= {"labels": pack(labels.cpu().numpy()), "names": list(names), "classes": list(classes)}
    entries = []
    for number, (book, perplexity) in enumerate(zip(books, perplexities, strict=True)):
        tile = _code_sheet(folder, f"page/codes-{number}.webp", book, context)
        files.append(tile["file"])
        entries.append(_entry(book) | {"perplexity": perplexity, "tile": tile})
    text = json.dumps({"images": images, "books": entries}, ensure_ascii=False, separators=(",", ":"))
    write_text(folder / "page" / "data.js", f"window.TOK = {text};\n")
    write_text(folder / "index.html", fill(WEB, "codebook.html", STYLES, SCRIPTS, title=title))
    return ["index.html", "page/data.js", *files]


def _entry(book: Codebook) -> dict[str, Any]:
    """What the page knows of a codebook; the rest it counts itself."""
    k = len(book.counts)
    nothing = np.full(k, -1), np.zeros(k, np.float32)
    owner, purity = (book.purity.owner, book.purity.purity) if book.purity is not None else nothing
    return {
        "name": book.name,
        "size": k,
        "grid": list(book.grid),
        "indices": pack(book.indices.cpu().numpy()),
        "order": pack(along_curve(book.xy)),
        "near": pack(book.near),
        "owner": pack(owner),
        "purity": pack(purity.astype(np.float32)),
    }


def _save(folder: Path, name: str, board: UInt8[np.ndarray, "H W 3"], lossless: bool) -> Mapping[str, Any]:
    with atomic_write(folder / name) as tmp:
        Image.fromarray(board).save(tmp, format="WEBP", lossless=lossless, quality=80 if lossless else 90, method=3)
    return {"file": name, "size": [board.shape[1], board.shape[0]]}


def _image_sheets(folder: Path, images: UInt8[Tensor, "N 3 s s"]) -> tuple[dict[str, Any], list[str]]:
    """All images on as many sheets as they need, none larger than `SHEET_PX`."""
    side = min(images.shape[-1], IMAGE_PX)
    across = max(1, min(SHEET_PX // side, math.ceil(math.sqrt(len(images)))))
    sheets = []
    for number, part in enumerate(torch.split(images, across * across)):
        if part.shape[-1] != side:
            part = to_uint8(F.interpolate(part.float() / 255, (side, side), mode="area"))
        name = f"page/images-{number}.webp"
        sheets.append(_save(folder, name, mosaic(to_array(part), across, gap=0), lossless=side <= LOSSLESS_PX))
    found = {"count": len(images), "side": side, "across": across, "each": across * across, "sheets": sheets}
    return found, [sheet["file"] for sheet in sheets]


def _code_sheet(folder: Path, name: str, book: Codebook, context: int) -> dict[str, Any]:
    """Every code's typical patch with the pixels around it, in the order of their numbers; less of those and of its own where
    there are so many codes that a picture cannot be as wide."""
    columns = max(1, math.ceil(math.sqrt(len(book.typical))))
    cell = max(-(-side // count) for side, count in zip(book.images.shape[2:], book.grid, strict=True))
    most = WEBP_PX // columns
    context = max(0, min(context, (most - cell) // 2))
    tiles = crop_patches(book.images, book.typical, book.grid, context)
    if cell > most:
        shown = torch.from_numpy(tiles).permute(0, 3, 1, 2)
        tiles = to_array(to_uint8(F.interpolate(shown.float() / 255, (most, most), mode="area")))
    saved = _save(folder, name, mosaic(tiles, columns, gap=0), lossless=True)
    high, wide = tiles.shape[1:3]
    return {"file": name, "sheet": saved["size"], "high": high, "wide": wide, "edge": context, "columns": columns}
