"""Kernel Inception distance (Binkowski et al. 2018, arXiv 1801.01401): unbiased, unlike the Fréchet distance.

Squared maximum mean discrepancy under the kernel (x.y / d + 1)^3, mean over random subsets; the subsets are those of
torch-fidelity.
"""

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tokcli.errors import TokError
from tokcli.metrics.inception_score import SEED, Spread
from tokcli.progress import passing

SUBSETS, SUBSET_SIZE = 100, 1000


def _kernel(x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]) -> Float64[Tensor, "n m"]:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mmd2(x: Float64[Tensor, "n d"], y: Float64[Tensor, "n d"]) -> float:
    """The unbiased estimate: no image is compared with itself."""
    n = len(x)
    within = sum(float(k.sum() - k.diagonal().sum()) for k in (_kernel(x, x), _kernel(y, y)))
    return within / (n * (n - 1)) - 2 * float(_kernel(x, y).mean())


def kid(
    a: Float[Tensor, "n _"], b: Float[Tensor, "m _"], subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE
) -> Spread:
    """Mean over subsets, and their standard deviation; about 0 for equal distributions, and then also below it.

    Args:
        a, b: features of generated and real images.
        subsets: random subsets that are compared.
        subset_size: images of each; the smaller set's size where that is less.

    Raises:
        TokError: fewer than 2 images, features of different width, or not finite.
    """
    size = min(subset_size, len(a), len(b))
    if size < 2:
        raise TokError(
            "kid",
            "needs at least 2 images on each side",
            got=f"{len(a)} and {len(b)}",
            next="Give more images, or set eval.manifold to 0",
        )
    if a.shape[1] != b.shape[1]:
        raise TokError(
            "kid",
            "features differ in width",
            got=f"{a.shape[1]} and {b.shape[1]}",
            next="Make both with the same extractor",
        )
    if not (a.isfinite().all() and b.isfinite().all()):
        raise TokError("kid", "features are not finite", next="Look for a broken image")
    draw = np.random.RandomState(SEED)
    found = []
    for _ in passing(range(subsets), subsets, unit="subset", desc="KID"):
        rows = [torch.from_numpy(draw.choice(len(x), size, replace=False)).to(x.device) for x in (a, b)]
        found.append(_mmd2(a[rows[0]].to(torch.float64), b[rows[1]].to(torch.float64)))
    return Spread(float(np.mean(found)), float(np.std(found)))
