"""Fréchet distance as a multiple of that of real images, which several extractors can be averaged by (arXiv 2604.28190)."""

import math
from collections.abc import Sequence

from tokcli.metrics.fid import Gaussian, Moments, frechet_distance


def frechet_ratio(generated: Moments | Gaussian, held_out: Moments | Gaussian, reference: Moments | Gaussian) -> float:
    """The distance of generated images to the reference over that of held-out ones: 1 is as near as real images; at least 0.

    The bias of a distance falls as 1/N in both, so that the ratio of equally many images hardly depends on N.

    Args:
        generated, held_out: of equally many images.
        reference: of other images of the data, usually those of training.

    Raises:
        TokError: as `frechet_distance`.
    """
    real = frechet_distance(held_out, reference)
    return frechet_distance(generated, reference) / real if real else math.inf


def geometric_mean(values: Sequence[float]) -> float:
    """exp of the mean logarithm of positive values; 0 where one is 0."""
    return math.exp(sum(map(math.log, values)) / len(values)) if min(values) > 0 else 0.0
