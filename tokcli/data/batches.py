"""Images in batches for training, endless: the same for any number of workers and ranks."""

import contextlib
import itertools
import logging
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from tokcli.data.randomness import Order, generator
from tokcli.data.reading import load
from tokcli.data.sources import BadImage, ImageSource
from tokcli.data.transforms import Transform
from tokcli.errors import TokError
from tokcli.terminal import printable

log = logging.getLogger("tok")


MOST_NAMED = 20  # bad images that are named on stderr; all are in `skipped`


class Batch(NamedTuple):
    """What one rank trains on in one step; `indices` are sample numbers in the source."""

    images: UInt8[Tensor, "b 3 s s"]
    labels: Int[Tensor, " b"]
    indices: Int[Tensor, " b"]

    @property
    def numbers(self) -> Int[Tensor, " b"]:
        """Of its samples in the data."""
        return self.indices


class _Steps(Dataset[Any]):
    """Step -> (batch, what was bad in it), in whichever process asks."""

    def __init__(
        self, source: ImageSource, transform: Transform, order: Order, seed: int, rank: int, allowed: int
    ) -> None:
        self.source, self.transform, self.order = source, transform, order
        self.seed, self.rank, self.allowed = seed, rank, allowed

    def __getitem__(self, step: int) -> tuple[Batch | None, dict[int, tuple[str, str]]]:
        epochs, samples = self.order.of_rank(step, self.rank)
        images = torch.empty(len(samples), 3, self.transform.size, self.transform.size, dtype=torch.uint8)
        bad: dict[int, tuple[str, str]] = {}
        used = []
        for row, (epoch, sample) in enumerate(zip(epochs.tolist(), samples.tolist(), strict=True)):
            found = self._good(sample, bad)
            if found is None:
                return None, bad
            number, image = found
            images[row] = self.transform(image, generator(self.seed, "transform", epoch, number))
            used.append(number)
        labels = torch.tensor([self.source.label(number) for number in used], dtype=torch.int64)
        return Batch(images, labels, torch.tensor(used, dtype=torch.int64)), bad

    def _good(self, sample: int, bad: dict[int, tuple[str, str]]) -> tuple[int, Tensor] | None:
        """A bad sample's place is taken by the next good one, by number: the same one in every process."""
        count = len(self.source)
        for number in range(sample, sample + count):
            number %= count
            if number in bad:
                continue
            try:
                return number, self.source.image(number)
            except BadImage as error:
                bad[number] = (error.key, error.why)
                if len(bad) > self.allowed:
                    break  # the training will stop: do not try a million others first
        return None


class TrainBatches:
    """Endless batches of transformed images; iterate, or start anywhere with `from_step`.

    Step s takes samples [s * batch_size, (s + 1) * batch_size) of the epochs' permutations laid end to end,
    of which this rank takes every `world`-th. An image's crop and flip are a function of (seed, epoch, sample
    number). So neither workers, ranks nor the step to start at change what any step sees.

    Args:
        source: where images come from.
        transform: makes them squares of one size.
        batch_size: images in a step over all ranks.
        seed: of the order and of the transform.
        workers: processes that decode; 0 decodes here.
        max_bad: share of unreadable images that is put up with, rounded up to a whole image.
        rank, world: this process among those that share a step.

    Raises:
        TokError: `batch_size` does not divide over the ranks; while iterating, more bad images than
            `max_bad`, or a worker that died.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Transform,
        *,
        batch_size: int,
        seed: int,
        workers: int = 0,
        max_bad: float = 0.01,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.source, self.workers = source, workers
        self.order = Order(len(source), batch_size, seed, world)
        self.allowed = math.ceil(max_bad * (len(source) + len(source.problems)))
        self.skipped: list[tuple[str, str]] = []
        self._bad: set[int] = set()
        self._steps = _Steps(source, transform, self.order, seed, rank, self.allowed)
        for key, why in source.problems:
            self._note(key, why)

    def __iter__(self) -> Iterator[Batch]:
        return self.from_step(0)

    def epoch(self, step: int) -> float:
        """How many passes over the data `step` steps are."""
        return self.order.epoch(step)

    def from_step(self, step: int) -> Iterator[Batch]:
        """Batches of steps `step`, `step` + 1, ... without end."""
        if self.workers and len(self.source):
            with contextlib.suppress(BadImage):
                self.source.image(0)  # embedded sets render into their cache once, not once in each worker
        for batch, bad in load(self._steps, itertools.count(step), self.workers):
            for number in sorted(bad.keys() - self._bad):
                self._bad.add(number)
                self._note(*bad[number])
            if batch is None:
                raise TokError(
                    f"--data {self.source.name}", "no image in it can be read", next="Run tok data check to see why"
                )
            yield batch

    def _note(self, key: str, why: str) -> None:
        key, why = printable(key), printable(why)
        self.skipped.append((key, why))
        if len(self.skipped) <= MOST_NAMED:
            log.warning("skipped %s: %s", key, why)
        elif len(self.skipped) == MOST_NAMED + 1:
            log.warning("skipped more images; no more are named")
        if len(self.skipped) > self.allowed:
            raise TokError(
                f"--data {self.source.name}",
                f"more than {self.allowed} of {len(self.source):,} images cannot be read, the last one {key}: {why}",
                next="Repair them or raise data.max_bad",
            )
