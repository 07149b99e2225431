"""How well features are predicted, as 1 - cosine, and the yardsticks that make such a number readable."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from tokcli.errors import TokError

CHUNK_ROWS = 1024  # rows of a product with the centroids held at once


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.to(torch.float64), dim=-1)


def feature_loss(predicted: Float[Tensor, "b n d"], target: Float[Tensor, "b n d"]) -> Float64[Tensor, " b"]:
    """Mean over an image's n features of 1 - cosine(predicted, target), in [0, 2], one value per image.

    Raises:
        ValueError: the shapes differ.
        TokError: a feature is not finite.
    """
    if predicted.shape != target.shape:
        raise ValueError(f"features: shapes differ: {tuple(predicted.shape)} and {tuple(target.shape)}")
    for name, features in (("predicted", predicted), ("target", target)):
        if not features.isfinite().all():
            raise TokError(f"{name} features", "are not finite", next="Check the weights behind them")
    return (1 - (_unit(predicted) * _unit(target)).sum(dim=-1)).mean(dim=-1)


def constant_loss(features: Float[Tensor, "b n d"], constant: Float[Tensor, " d"]) -> Float64[Tensor, " b"]:
    """The feature loss of always answering `constant`, one value per image.

    With the training set's mean feature it is the yardstick that any predictor must beat; the mean of their
    unit vectors is the best constant.
    """
    return feature_loss(constant.to(features).expand_as(features), features)


def centroid_loss(features: Float[Tensor, "b n d"], centroids: Float[Tensor, "k d"]) -> Float64[Tensor, " b"]:
    """The feature loss of answering the centroid nearest by cosine, one value per image.

    With spherical k-means of the teacher's own features at the codebook's size, it is about the best that k
    codes can do one feature at a time.

    Raises:
        ValueError: the dimensions differ.
    """
    if features.shape[-1] != centroids.shape[-1]:
        got = f"{centroids.shape[-1]} and {features.shape[-1]}"
        raise ValueError(f"centroids: their width is not the features': {got}")
    directions = _unit(centroids)
    rows = features.reshape(-1, features.shape[-1])
    best = [(_unit(chunk) @ directions.T).amax(dim=-1) for chunk in rows.split(CHUNK_ROWS)]
    return (1 - torch.cat(best)).reshape(features.shape[:-1]).mean(dim=-1)
