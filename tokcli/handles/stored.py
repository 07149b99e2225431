"""Stored results from Python: tokens, samples, reference statistics, reports."""

import operator
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from tokcli.artifact.manifest import RESTORE
from tokcli.artifact.weights import load_tensors
from tokcli.data.token_store import TokenStore
from tokcli.errors import TokError
from tokcli.evaluation.references import STATISTICS
from tokcli.handles.networks import Handle
from tokcli.limits import read_json
from tokcli.measure.previews import read_samples
from tokcli.proposals.training_tokens import open_store


def _numbers(asked: Any, count: int) -> list[int] | None:
    """A sequence of whole numbers from 0 to count - 1, of any integer type; None: it is none."""
    try:
        found = [operator.index(one) for one in asked]
    except TypeError:
        return None
    return found if all(0 <= one < count for one in found) else None


class TokensHandle(Handle):
    """The tokens of a data set, mapped into memory."""

    @cached_property
    def store(self) -> TokenStore:
        """The shards: `labels`, `keys`, `captions`, and `batch(rows, views)`."""
        return open_store(self.artifact)

    def __len__(self) -> int:
        return self.store.rows

    def indices(self, rows: Sequence[int], view: int = 0) -> Int[Tensor, "b n"]:
        """Tokens of one view of images; view 0 is the centre crop, others are named by the fact `views`.

        Raises:
            TokError: no such row or view.
        """
        wanted, views = _numbers(rows, len(self)), _numbers([view], self.store.views)
        if wanted is None or views is None:
            held = f"rows 0 to {len(self) - 1} and views 0 to {self.store.views - 1}"
            got = f"rows {str(rows)[:80]}, view {view}"
            raise TokError(
                "indices", f"there are {held}", got=got, next="Ask for a list of rows and a view among these"
            )
        return self.store.batch(np.asarray(wanted, dtype=np.int64), np.full(len(wanted), view))


class SamplesHandle(Handle):
    """Images that `tok sample` drew."""

    def __len__(self) -> int:
        return int(self.facts["number"])

    def images(self, numbers: Sequence[int] | None = None) -> UInt8[Tensor, "b 3 s s"]:
        """Images by number, all of them where none is named.

        Raises:
            TokError: a file is missing or damaged, or there is no such number.
        """
        wanted = _numbers(range(len(self)) if numbers is None else numbers, len(self))
        if not wanted:
            span = f"are numbered 0 to {len(self) - 1}"
            raise TokError("images", span, got=str(numbers)[:80], next="Give a list of numbers in this range")
        return read_samples(self.artifact, wanted)

    @property
    def labels(self) -> list[int]:
        """The class of each image, -1 for none."""
        return list(self.facts["labels"])


class StatisticsHandle(Handle):
    """Mean and covariance of an extractor's features of a data set, float64."""

    @cached_property
    def _state(self) -> dict[str, Tensor]:
        return load_tensors(self.artifact.file(STATISTICS))

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """The features' mean."""
        return self._state["mean"]

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Their covariance."""
        return self._state["covariance"]


class ReportHandle(Handle):
    """What `tok eval` measured."""

    @cached_property
    def metrics(self) -> Mapping[str, Any]:
        """`metrics.json`: every number with its N, reference, extractor and interval.

        Raises:
            TokError: it is damaged.
        """
        file = self.artifact.file("metrics.json")
        try:
            found: Mapping[str, Any] = read_json(file)
        except (OSError, ValueError) as error:
            raise TokError(str(file), "is damaged", why=str(error), next=RESTORE) from None
        return found
