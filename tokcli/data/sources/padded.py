"""Images of a source whole on a square, for networks that were trained on such; see `transforms.Pad`."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import UInt8
from torch import Tensor

from tokcli.data.sources.subset import Subset
from tokcli.data.transforms import Pad, Padding

if TYPE_CHECKING:
    from tokcli.data.sources import ImageSource


class Padded(Subset):
    """An image source whose images are squares of `size` pixels: whatever makes squares of them leaves them as they are.

    Its `id` is that of the source.
    """

    def __init__(self, source: "ImageSource", size: int, padding: Padding) -> None:
        super().__init__(source, len(source))
        self._pad, self.padding = Pad(size, colour=padding), padding

    def image(self, i: int) -> UInt8[Tensor, "3 s s"]:
        """The square of sample i; raises BadImage."""
        return self._pad(self.source.image(i), torch.Generator())


def padded(source: "ImageSource", size: int, padding: Padding | None) -> "ImageSource":
    """The source as a tokenizer of that fact reads it: as it is for None, where images are cropped."""
    return source if padding is None else Padded(source, size, padding)


def padding_of(source: "ImageSource") -> Padding | None:
    """On what the images of a source are laid, or of the one that it is a part of; None where they are cropped."""
    while isinstance(source, Subset):
        if isinstance(source, Padded):
            return source.padding
        source = source.source
    return None
