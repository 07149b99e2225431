"""Inception score (Salimans et al. 2016, arXiv 1606.03498) in torch-fidelity's convention.

The 1008 logits of FID's Inception without the bias, ten splits of the images in one fixed random order. It looks at
generated images only and means something for ImageNet's classes only.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tokcli.errors import TokError

SPLITS, SEED = 10, 2020  # torch-fidelity's


class Spread(NamedTuple):
    """A mean over parts and their standard deviation."""

    mean: float
    deviation: float


def inception_score(logits: Float[Tensor, "n classes"], splits: int = SPLITS) -> Spread:
    """exp(mean KL(p(y|x) || p(y))) over each split; mean and population deviation over the splits, in [1, classes].

    Args:
        logits: of n images.
        splits: parts of the images; the score falls with fewer images in each, so N belongs beside it.

    Raises:
        TokError: fewer images than splits, or logits that are not finite.
    """
    if len(logits) < splits:
        raise TokError(
            "inception score",
            f"{splits} splits need as many images",
            got=f"{len(logits)}",
            next="Draw more samples with -n",
        )
    if not logits.isfinite().all():
        raise TokError("inception score", "logits are not finite", next="Check the network's weights")
    # images come sorted by class: splits of them must not be
    order = torch.from_numpy(np.random.RandomState(SEED).permutation(len(logits))).to(logits.device)
    log_p = logits[order].to(torch.float64).log_softmax(1)
    edges = [i * len(logits) // splits for i in range(splits + 1)]
    scores = []
    for start, stop in pairwise(edges):
        part = log_p[start:stop]
        marginal = part.exp().mean(0).log()
        scores.append(float((part.exp() * (part - marginal)).nan_to_num(0.0).sum(1).mean().exp()))
    return Spread(float(np.mean(scores)), float(np.std(scores)))
