"""Edits: which tokens of a picture stay, and which are drawn anew (in- and outpainting, arXiv 2202.04200, section 4.4)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from tokcli.data.decode import BadImage, decode
from tokcli.data.transforms import CenterCrop
from tokcli.errors import Misuse, TokError
from tokcli.files import sha256


@dataclass(frozen=True)
class Edit:
    """A picture at the tokenizer's size, its pixels that a user wants anew, and the tokens over them."""

    image: UInt8[Tensor, "3 s s"]
    anew: Bool[Tensor, "s s"]
    drawn: Bool[Tensor, " n"]
    inputs: dict[str, dict[str, str]]
    """Role -> id and path, for the manifest."""

    def paste(self, images: UInt8[Tensor, "b 3 s s"]) -> UInt8[Tensor, "b 3 s s"]:
        """Images with the picture's own pixels wherever none were wanted anew."""
        return torch.where(self.anew, images, self.image)


def read_edit(
    image: Path, mask: Path | None, keep_top: int | float | None, *, mode: str, size: int, grid: tuple[int, int]
) -> Edit:
    """A picture and what is to be drawn anew in it: the mask's light pixels, or all below the rows that stay.

    The picture's short side is resized to `size` and its centre cropped, the mask with it. A token is drawn anew where
    at least one pixel of its patch is.

    Args:
        mask: a picture of the same size; None where `keep_top` says it.
        keep_top: rows of tokens that stay, or a share of them.
        mode: of the proposal network.
        size: pixels at which the tokenizer is used.
        grid: its tokens, (h, w).

    Raises:
        Misuse: a mask and `keep_top`, or neither.
        TokError: a file that is no image, a mask of another size, nothing or a place that the network cannot draw.
    """
    where, cell = f"--mask {mask}", (size // grid[0], size // grid[1])
    if (mask is None) == (keep_top is None):
        raise Misuse("--edit", "needs --mask or --keep-top", got="both" if mask else "neither")
    if mask is not None and mode == "ar":
        next_step = "Complete a picture with --keep-top, or fill masks with --mode nar"
        raise TokError(where, "an autoregressive network draws after what it knows, not between", next=next_step)
    original, crop = _pixels("--edit", image), CenterCrop(size)
    inputs = {"image": {"id": f"image-{sha256(image)[:12]}", "path": str(image.resolve())}}
    if mask is not None:
        light = _pixels("--mask", mask)
        if light.shape != original.shape:
            got = f"{light.shape[2]}x{light.shape[1]}, and {original.shape[2]}x{original.shape[1]}"
            raise TokError(where, f"is not of the size of {image}", got=got)
        inputs["mask"] = {"id": f"image-{sha256(mask)[:12]}", "path": str(mask.resolve())}
        grey = light.float().mean(0, keepdim=True).expand(3, -1, -1).to(torch.uint8).contiguous()
        anew = crop(grey, torch.Generator())[0] > 127
    else:
        anew = torch.zeros(size, size, dtype=torch.bool)
        anew[rows_kept(keep_top or 0, grid[0]) * cell[0] :] = True
    drawn = anew.unflatten(1, (grid[1], cell[1])).unflatten(0, (grid[0], cell[0])).any(3).any(1).flatten()
    if not drawn.any():
        outside = mask is not None and bool((grey > 127).any())
        got = "its light pixels lie outside of the centre crop" if outside else ""
        raise TokError(
            where,
            "marks nothing to draw anew",
            why=got,
            next="Mark with light pixels (over half white) what is drawn anew",
        )
    return Edit(crop(original, torch.Generator()), anew, drawn, inputs)


def rows_kept(keep_top: int | float, rows: int) -> int:
    """How many of the rows of tokens stay: a whole number of them, or a share with a point.

    Raises:
        TokError: none, or all of them.
    """
    kept = round(keep_top * rows) if isinstance(keep_top, float) else keep_top  # 1.0 is all of them, not one
    if not 0 < kept < rows:
        known = f"1 to {rows - 1} rows of tokens, or a share such as 0.5"
        raise TokError(
            "--keep-top", f"must leave some of the {rows} rows and keep some", got=str(keep_top), next=f"Give {known}"
        )
    return kept


def _pixels(flag: str, path: Path) -> UInt8[Tensor, "3 h w"]:
    try:
        return decode(path)
    except BadImage as bad:
        raise TokError(f"{flag} {path}", bad.why) from None
