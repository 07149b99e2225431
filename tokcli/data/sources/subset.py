"""Views of a source: some of its samples, evenly spread, or its images whole on squares."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import UInt8
from torch import Tensor

from tokcli.data.transforms import Pad, Padding

if TYPE_CHECKING:
    from tokcli.data.sources import ImageSource


def evenly(total: int, most: int) -> Sequence[int]:
    """At most `most` of the numbers 0 to total - 1, the first and the last among them; all where there are no more."""
    return range(total) if total <= most else [i * (total - 1) // max(1, most - 1) for i in range(most)]


class Subset:
    """At most `count` samples of a source, the first and the last among them; all of them where there are no more.

    An image source itself; its `id` is that of the whole, which alone says what was seen.
    """

    def __init__(self, source: "ImageSource", count: int) -> None:
        self.source = source
        self.name, self.id, self.classes, self.problems = source.name, source.id, source.classes, source.problems
        self.max_pixels = source.max_pixels
        self._numbers = evenly(len(source), count)

    def __len__(self) -> int:
        return len(self._numbers)

    def key(self, i: int) -> str:
        """The name of sample i."""
        return self.source.key(self._numbers[i])

    def label(self, i: int) -> int:
        """The class of sample i, -1 for none."""
        return self.source.label(self._numbers[i])

    def captions(self, i: int) -> list[str]:
        """The captions of sample i."""
        return self.source.captions(self._numbers[i])

    def image(self, i: int) -> UInt8[Tensor, "3 h w"]:
        """RGB pixels of sample i; raises BadImage."""
        return self.source.image(self._numbers[i])


def limited(source: "ImageSource", most: int) -> "ImageSource":
    """The source, or at most `most` of its samples, evenly spread; 0: all of them."""
    return Subset(source, most) if 0 < most < len(source) else source


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
