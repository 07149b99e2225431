"""Which sample is seen at which step: epochs' permutations laid end to end, dealt to steps and ranks."""

import numpy as np

from tokcli.data.randomness import permutation
from tokcli.errors import TokError


class Order:
    """Step s is samples [s * batch_size, (s + 1) * batch_size) of the stream; a rank takes every `world`-th.

    Nothing is dropped and no epoch is padded: a batch may end one epoch and begin the next.

    Raises:
        TokError: no samples, or a batch size that does not divide over the ranks.
    """

    def __init__(self, count: int, batch_size: int, seed: int, world: int = 1) -> None:
        if count < 1 or batch_size < 1:
            raise TokError("batch_size", "there must be samples and a batch size", got=f"{count} and {batch_size}")
        if batch_size % world:
            raise TokError("batch_size", f"does not divide over {world} processes", got=str(batch_size))
        self.count, self.batch_size, self.seed, self.world = count, batch_size, seed, world
        self._known: dict[int, np.ndarray] = {}

    def epoch(self, step: int) -> float:
        """How many passes over the data `step` steps are."""
        return step * self.batch_size / self.count

    def of_rank(self, step: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Epochs and sample numbers, each int64 (batch_size / world,)."""
        places = np.arange(step * self.batch_size + rank, (step + 1) * self.batch_size, self.world)
        epochs, slots = np.divmod(places, self.count)
        samples = np.empty_like(slots)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            samples[here] = self._permutation(epoch)[slots[here]]
        return epochs, samples

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._known:
            self._known = {e: p for e, p in self._known.items() if e == epoch - 1}
            self._known[epoch] = permutation(self.seed, epoch, self.count)
        return self._known[epoch]
