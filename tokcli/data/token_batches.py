"""Batches of tokens for proposal networks, in an order that depends on the seed alone."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tokcli.data.randomness import Order, seed_of
from tokcli.data.token_store import TokenStore


class TokenBatch(NamedTuple):
    """What one rank trains on in one step; labels are -1 where there are none.

    `captions` are numbers among all captions of the store, -1 where an image has none or nobody asked. `seeds` are what a sample's other random choices (mask, dropped label) are made from: functions of
    (seed, epoch, row).
    """

    indices: Int[Tensor, "b n"]
    labels: Int[Tensor, " b"]
    rows: Int[Tensor, " b"]
    seeds: Int[Tensor, " b"]
    captions: Int[Tensor, " b"]

    @property
    def numbers(self) -> Int[Tensor, " b"]:
        """Of its samples in the data."""
        return self.rows


class TokenBatches:
    """Endless batches of tokens in `TrainBatches`' order; the view is a function of (seed, epoch, row).

    So is, if `captions` are asked for, which caption of an image stands for it.
    """

    def __init__(
        self, store: TokenStore, *, batch_size: int, seed: int, rank: int = 0, world: int = 1, captions: bool = False
    ) -> None:
        self.store, self.seed, self.rank, self.captions = store, seed, rank, captions
        self.order = Order(store.rows, batch_size, seed, world)

    def __iter__(self) -> Iterator[TokenBatch]:
        return self.from_step(0)

    def epoch(self, step: int) -> float:
        """How many passes over the rows `step` steps are."""
        return self.order.epoch(step)

    def from_step(self, step: int) -> Iterator[TokenBatch]:
        """Batches of steps `step`, `step` + 1, ... without end."""
        for at in itertools.count(step):
            epochs, rows = self.order.of_rank(at, self.rank)
            pairs = list(zip(epochs.tolist(), rows.tolist(), strict=True))
            views = np.array([seed_of(self.seed, "view", epoch, row) % self.store.views for epoch, row in pairs])
            labels = torch.from_numpy(self.store.labels[rows].astype(np.int64))
            seeds = torch.tensor([seed_of(self.seed, "sample", epoch, row) for epoch, row in pairs])
            captions = torch.tensor([self._caption(epoch, row) for epoch, row in pairs])
            batch = TokenBatch(self.store.batch(rows, views), labels, torch.from_numpy(rows), seeds, captions)
            # copies to a GPU wait for it unless they come from pinned memory
            yield TokenBatch(*(t.pin_memory() for t in batch)) if torch.cuda.is_available() else batch

    def _caption(self, epoch: int, row: int) -> int:
        if not self.captions:
            return -1
        first, stop = self.store.caption_ends[row : row + 2].tolist()
        return first + seed_of(self.seed, "caption", epoch, row) % (stop - first) if stop > first else -1
