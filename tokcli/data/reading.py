"""Images once and in order, for measuring and bulk work: the same for any number of workers."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from tokcli.data.batches import _load
from tokcli.data.randomness import generator
from tokcli.data.sources import BadImage, ImageSource
from tokcli.data.transforms import CropViews, Transform, evaluation_transform
from tokcli.errors import TokError

CHUNK = 16  # images that a worker of a bulk job hands over at once


class _Chunks(Dataset[Any]):
    """Chunk of sample numbers -> (stacked images, the numbers they are of, what was bad)."""

    def __init__(self, source: ImageSource, transform: Transform | CropViews, seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __getitem__(self, chunk: list[int]) -> tuple[Tensor, list[tuple[int, str, str]]]:
        images, bad = [], []
        for i in chunk:
            try:
                image = self.source.image(i)
            except BadImage as error:
                bad.append((i, error.key, error.why))
                continue
            views = isinstance(self.transform, CropViews)
            images.append(
                self.transform(image, i) if views else self.transform(image, generator(self.seed, "read", i))  # type: ignore[arg-type]
            )
        return torch.stack(images) if images else torch.empty(0, dtype=torch.uint8), bad


def read_all(
    source: ImageSource,
    transform: Transform | CropViews,
    *,
    indices: Sequence[int],
    workers: int = 0,
    seed: int = 0,
) -> Iterator[tuple[int, UInt8[Tensor, "*views 3 s s"] | BadImage]]:
    """(sample number, transformed image or why there is none), in the order of `indices`.

    `CropViews` give (views, 3, s, s); a random transform is a function of (seed, sample number).

    Raises:
        TokError: a worker died.
    """
    numbers = [int(i) for i in indices]
    chunks = [numbers[at : at + CHUNK] for at in range(0, len(numbers), CHUNK)]
    loaded = _load(_Chunks(source, transform, seed), chunks, workers)
    for chunk, (images, bad) in zip(chunks, loaded, strict=True):
        why = {i: BadImage(key, reason) for i, key, reason in bad}
        good = iter(images)
        for i in chunk:
            yield i, why[i] if i in why else next(good)


log = logging.getLogger("tok")


BATCH = 64  # images at a time; one shape for all, so that numbers do not depend on what fits


def read_batches(
    source: ImageSource, transform: Any, indices: Sequence[int] | None = None, batch: int = BATCH
) -> Iterator[tuple[list[int], UInt8[Tensor, "b 3 s s"]]]:
    """Batches of (sample numbers, images) in order; unreadable images are left out and named once.

    Raises:
        TokError: not one image could be read.
    """
    numbers: list[int] = []
    images: list[Tensor] = []
    bad = good = 0
    for index, image in read_all(source, transform, indices=indices if indices is not None else range(len(source))):
        if isinstance(image, BadImage):
            bad += 1
            log.warning("%s: left out: %s", image.key, image.why)
            continue
        good += 1
        numbers.append(index)
        images.append(image)
        if len(images) == batch:
            yield numbers, torch.stack(images)
            numbers, images = [], []
    if images:
        yield numbers, torch.stack(images)
    if not good and bad:
        raise TokError(f"--data {source.name}", f"none of {bad} images could be read")


def first_readable(
    source: ImageSource, size: int, groups: Iterable[Sequence[int]]
) -> tuple[list[int], list[UInt8[Tensor, "3 s s"]]]:
    """The first readable image of each group of sample numbers, with its number; a group without one is left out."""
    numbers: list[int] = []
    images: list[Tensor] = []
    for group in groups:
        for i in group:
            ((_, image),) = read_all(source, evaluation_transform(size), indices=[i])
            if not isinstance(image, BadImage):
                numbers.append(i)
                images.append(image)
                break
    return numbers, images
