"""Do tokens understand? Classes told from tokens alone, by linear probes and by nearest neighbours.

Two views of an image. The counts of its codes, over the whole grid and over its four quarters (a spatial pyramid: Lazebnik,
Schmid and Ponce 2006), square-rooted and of length 1: nothing but indices enters, which is all that a proposal network ever
sees, and code vectors of 3 numbers or 1280 are judged alike. And the mean of its code vectors, the field's linear probe, which
sees what the codes mean and depends on their width.
"""

import warnings
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokcli.errors import TokError
from tokcli.progress import passing

NEIGHBOURS = 10
INVERSE_DECAY = 10.0  # scikit-learn's C of bags; fixed, so that nothing is tuned on the images that judge
INVERSE_DECAY_VECTORS = 1.0  # the same of standardised vectors
ROUNDS = 300  # of L-BFGS at most
ROWS = 1024  # of a product with all training images held at once


def bags(indices: Int[Tensor, "b n"], grid: tuple[int, int], codebook_size: int) -> Any:
    """Images as sparse rows (b, 5 k): square roots of code shares in the whole and in each quarter, of length 1.

    Args:
        indices: codes in [0, k) in raster order.
        grid: (h, w), h * w = n.
        codebook_size: k.
    """
    from scipy.sparse import csr_matrix

    at = np.arange(grid[0] * grid[1])
    quarter = 1 + 2 * (at // grid[1] * 2 // grid[0]) + at % grid[1] * 2 // grid[1]
    codes = indices.cpu().numpy().astype(np.int64)
    columns = np.stack([codes, quarter * codebook_size + codes], axis=-1).reshape(len(codes), -1)
    # a quarter holds a quarter of the tokens: each counts four times, so that the whole weighs as much as one of them
    ones = np.broadcast_to(np.array([1.0, 4.0], dtype=np.float32), (*codes.shape, 2)).reshape(-1)
    starts = np.arange(len(codes) + 1) * columns.shape[1]
    found = csr_matrix((ones.copy(), columns.reshape(-1), starts), shape=(len(codes), 5 * codebook_size))
    found.sum_duplicates()
    found.data = np.sqrt(found.data / (5 * len(at)))
    return found


def _checked(train: Any, labels: np.ndarray, test: Any, wanted: np.ndarray) -> None:
    if not len(labels) == train.shape[0] or not len(wanted) == test.shape[0] or not len(wanted):
        raise TokError(
            "understanding",
            "every image needs a class",
            got=f"{len(labels)} and {len(wanted)} classes",
            next="Give data with classes",
        )
    if len(np.unique(labels)) < 2:
        raise TokError("understanding", "needs training images of at least 2 classes", next="Give data with classes")


def probe_accuracy(train: Any, labels: np.ndarray, test: Any, wanted: np.ndarray) -> float:
    """Share of test images whose class a multinomial logistic regression of the training bags tells, in [0, 1].

    Args:
        train, test: `bags` of tokens.
        labels, wanted: their classes, at least 2 among `labels`.

    Raises:
        TokError: images without classes, or of one class only.
    """
    _checked(train, labels, test, wanted)
    return _told_by_a_line(train, labels, test, wanted, INVERSE_DECAY)


def _told_by_a_line(train: Any, labels: np.ndarray, test: Any, wanted: np.ndarray, inverse_decay: float) -> float:
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ROUNDS is the protocol, also where the loss still moves a little
        fitted = LogisticRegression(C=inverse_decay, max_iter=ROUNDS).fit(train, labels)
    return float((fitted.predict(test) == wanted).mean())


def vector_probe_accuracy(
    train: Float[Tensor, "n d"], labels: np.ndarray, test: Float[Tensor, "m d"], wanted: np.ndarray
) -> float:
    """Share of test images whose class a multinomial logistic regression of mean code vectors tells, in [0, 1].

    Args:
        train, test: means of each image's code vectors; standardised here by those of the training images.
        labels, wanted: as for `probe_accuracy`, whose errors it shares.
    """
    _checked(train, labels, test, wanted)
    deviation, mean = torch.std_mean(train.double(), dim=0, correction=0)
    scale = torch.where(deviation > 0, deviation, 1.0)
    learnt, asked = (((x.double() - mean) / scale).numpy() for x in (train, test))
    return _told_by_a_line(learnt, labels, asked, wanted, INVERSE_DECAY_VECTORS)


def knn_accuracy(train: Any, labels: np.ndarray, test: Any, wanted: np.ndarray, k: int = NEIGHBOURS) -> float:
    """Share of test images whose class most of the k nearest training bags (by cosine, which weighs their votes) have.

    Arguments and errors as for `probe_accuracy`.
    """
    _checked(train, labels, test, wanted)
    classes, numbers = np.unique(labels, return_inverse=True)
    k, right = min(k, len(labels)), 0
    starts = range(0, len(wanted), ROWS)
    for start in passing(starts, len(wanted), unit="image", desc="nearest bags of tokens", units=lambda _: ROWS):
        alike = (test[start : start + ROWS] @ train.T).toarray()
        nearest = np.argsort(-alike, axis=1, kind="stable")[:, :k]
        votes = np.zeros((len(alike), len(classes)))
        rows = np.repeat(np.arange(len(alike)), k)
        np.add.at(votes, (rows, numbers[nearest].reshape(-1)), np.take_along_axis(alike, nearest, 1).reshape(-1))
        right += int((classes[votes.argmax(1)] == wanted[start : start + ROWS]).sum())
    return right / len(wanted)
