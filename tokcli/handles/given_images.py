"""Images as a Python user has them, to the uint8 squares that a tokenizer reads."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from tokcli.data.decode import BadImage, decode, pixels_of
from tokcli.data.transforms import Padding, evaluation_transform
from tokcli.errors import TokError

WHERE = "images"
ACCEPTED = "Give paths, PIL images, (b, 3, h, w) tensors or (b, h, w, 3) arrays, of uint8 or of floats from 0 to 1"


def as_squares(images: Any, size: int, padding: Padding | None = None) -> UInt8[Tensor, "b 3 s s"]:
    """Images as `tok tokenize` reads them: short side to `size` (bicubic, antialiased), centre crop; whole with padding.

    Args:
        images: one image or several: a path; a PIL image; a tensor (3, h, w) or (b, 3, h, w); an array (h, w, 3) or (b, h, w, 3); or
            a sequence of these, of any sizes. Floats must lie in [0, 1] and are rounded to 8 bits, as image files hold them.
        size: of the squares, in pixels.
        padding: what whole pictures are laid on; None: they are cropped.

    Raises:
        TokError: values above 1 in floats, another shape or type, a file that cannot be read, or no image at all.
    """
    transform, unused = evaluation_transform(size, padding), torch.Generator()
    squares = [transform(image, unused) for image in _each(images)]
    if not squares:
        raise TokError(WHERE, "there are none", next=ACCEPTED)
    return torch.stack(squares)


def _each(images: Any) -> Iterable[Tensor]:
    """uint8 (3, h, w) of every image."""
    if isinstance(images, str | Path | Image.Image):
        yield _one(images)
    elif isinstance(images, np.ndarray) and images.dtype.kind in "US":
        yield from _each(images.ravel().tolist())
    elif isinstance(images, Tensor | np.ndarray):
        found = (
            torch.from_numpy(np.array(images))  # a copy: Pillow's are read-only
            if isinstance(images, np.ndarray)
            else images.detach().cpu()
        )
        yield from _of_tensor(found, channels_last=isinstance(images, np.ndarray))
    elif isinstance(images, Iterable):
        for one in images:
            yield from _each(one)
    else:
        raise TokError(WHERE, "are of a type that is not read", got=type(images).__name__, next=ACCEPTED)


def _one(image: str | Path | Image.Image) -> Tensor:
    try:
        if isinstance(image, Image.Image):
            return pixels_of(image, "PIL image")
        return decode(Path(image).expanduser())
    except BadImage as error:
        raise TokError(error.key, error.why, next="Leave it out, or give another file") from None


def _of_tensor(found: Tensor, channels_last: bool) -> Iterable[Tensor]:
    batch = found[None] if found.dim() == 3 else found
    channels = batch.shape[-1 if channels_last else 1] if batch.dim() == 4 else None
    if channels != 3 or 0 in batch.shape:
        wanted = "(h, w, 3) or (b, h, w, 3)" if channels_last else "(3, h, w) or (b, 3, h, w)"
        raise TokError(WHERE, f"must be {wanted}", got=str(tuple(found.shape)), next=ACCEPTED)
    if batch.is_floating_point():
        low, high = float(batch.min()), float(batch.max())
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise TokError(WHERE, "floats must lie in [0, 1]", got=f"{low:g} to {high:g}",
                           next="Divide them by 255, or give uint8")  # fmt: skip
        batch = (batch.float() * 255).round().to(torch.uint8)
    elif batch.dtype != torch.uint8:
        raise TokError(
            WHERE, "must be uint8, or floats in [0, 1]", got=str(batch.dtype).removeprefix("torch."), next=ACCEPTED
        )
    yield from batch.permute(0, 3, 1, 2) if channels_last else batch
