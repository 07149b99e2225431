"""Fréchet distance between two sets of features (Heusel et al. 2017, arXiv 1706.08500), all in float64.

On Inception-v3 pool features it is FID; on any other extractor it is named after the extractor.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from tokcli.errors import TokError

# Inception's pool features have 2,048 dimensions: with fewer images their covariance is singular. For any
# extractor the estimate's bias falls as 1/N and is then large beside the differences one wants to see.
ENOUGH_IMAGES = 2048


@dataclass(frozen=True)
class Gaussian:
    """What the Fréchet distance compares: the mean and covariance of a set of features.

    Args:
        mean: (d,).
        covariance: (d, d), divided by N - 1.
        count: the number of images N, or None where a file of statistics does not tell.
        name: what to call the set in messages.
    """

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]
    count: int | None = None
    name: str = "statistics"


class Moments:
    """Mean and covariance of features that arrive in batches; the features themselves are not kept.

    Scatter is summed about each batch's own mean and merged (Chan, Golub and LeVeque 1979): neither a large
    mean nor the order of the images costs digits.

    Args:
        name: what to call the set in messages ("--reference openmoji/val").
    """

    def __init__(self, name: str = "features") -> None:
        self.name = name
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)  # sum of (x - mean) (x - mean)^T
        self._gaussian: Gaussian | None = None  # of all images so far: several references are compared with it

    @property
    def dim(self) -> int:
        """The number of features d per image; 0 before the first batch."""
        return len(self.mean)

    def update(self, features: Shaped[Tensor, "b d"]) -> None:
        """Add the features of b images.

        Raises:
            TokError: a feature is NaN or infinite.
            ValueError: the width differs from that of the batches before.
        """
        if features.ndim != 2:
            raise ValueError(f"{self.name}: features must be (images, features), not {tuple(features.shape)}")
        # GPUs sum where the features are; Apple's has no float64
        device = features.device if features.device.type in ("cpu", "cuda") else torch.device("cpu")
        x = features.detach().to(device=device).to(torch.float64)
        bad = int((~x.isfinite().all(dim=1)).sum())
        if bad:
            raise TokError(
                self.name,
                "features are not finite",
                got=f"{bad} of the {len(x)} images after image {self.count}",
                next="Look for a broken image or weights of another network",
            )
        if not len(x):
            return
        self._gaussian = None
        mean = x.mean(dim=0)
        if not self.count:
            self.mean = torch.zeros_like(mean)
            self.scatter = mean.new_zeros(len(mean), len(mean))
        if len(mean) != self.dim:
            raise ValueError(f"{self.name}: features change width: {len(mean)} after {self.dim}")
        total = self.count + len(x)
        gap = mean.to(self.mean) - self.mean
        between = gap * (self.count * len(x) / total) ** 0.5
        # the shift between the two means is one more row, so that the (d, d) matrix is passed over once
        rows = torch.cat([(x - mean).to(self.scatter), between[None]])
        self.scatter.addmm_(rows.T, rows)
        self.mean = self.mean + gap * (len(x) / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """The mean and the unbiased covariance.

        Raises:
            TokError: fewer than 2 images, which have no covariance.
        """
        if self.count < 2:
            raise TokError(
                self.name,
                "a covariance needs at least 2 images",
                got=f"{self.count}",
                next=f"Use {ENOUGH_IMAGES:,} or more",
            )
        if self._gaussian is None:
            covariance = (self.scatter + self.scatter.T) / 2 / (self.count - 1)
            self._gaussian = Gaussian(self.mean.cpu().numpy(), covariance.cpu().numpy(), self.count, self.name)
        return self._gaussian


def _checked(given: Moments | Gaussian) -> Gaussian:
    g = given.gaussian() if isinstance(given, Moments) else given
    if g.mean.ndim != 1 or g.covariance.shape != (len(g.mean), len(g.mean)):
        raise TokError(
            g.name,
            "statistics do not fit together",
            got=f"{g.mean.shape}, {g.covariance.shape}",
            next="Make them again",
        )
    if not (np.isfinite(g.mean).all() and np.isfinite(g.covariance).all()):
        raise TokError(g.name, "statistics are not finite", next="Make them again")
    mean, covariance = (x.astype(np.float64, copy=False) for x in (g.mean, g.covariance))
    return replace(g, mean=mean, covariance=covariance)


def factor_of(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d r"]:
    """F with covariance = F F^T, of as many columns as the covariance has rank within rounding.

    Rounding errors of the other directions would come back as their square roots. Cholesky's with pivots (LAPACK's pstrf) stops at
    the rank, which few images make low, where eigenvectors take the whole of their time.
    """
    from scipy.linalg.lapack import dpstrf

    lower, pivots, rank, _ = dpstrf(covariance.T, lower=1)  # symmetric; LAPACK reads columns
    factor = np.zeros((len(covariance), rank))
    factor[pivots - 1] = np.tril(lower[:, :rank])
    return factor


def trace_sqrt(a: Float[np.ndarray, "d d"], b: Float[np.ndarray, "d d"]) -> float:
    """Trace of (a b)^1/2 for symmetric positive semi-definite a, b of any rank.

    a b has the eigenvalues of the symmetric F^T b F with a = F F^T.
    """
    factor = factor_of(a)
    product = np.linalg.eigvalsh(factor.T @ b @ factor)
    return float(np.sqrt(np.clip(product, 0, None)).sum())


def frechet_distance(a: Moments | Gaussian, b: Moments | Gaussian) -> float:
    """|mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2), at least 0, in the features' squared units.

    Equal sets give 0 within rounding. Of fewer than `ENOUGH_IMAGES` the distance is too large by an amount that depends
    on N.

    Raises:
        TokError: fewer than 2 images, features of different width, or statistics that are not finite.
    """
    first, second = _checked(a), _checked(b)
    if len(first.mean) != len(second.mean):
        raise TokError(
            second.name,
            f"has {len(second.mean)} features an image, but {first.name} has {len(first.mean)}",
            next="Make both with the same extractor",
        )
    # the set of lower rank first: its factor is the narrow one
    low, high = sorted((first, second), key=lambda g: float("inf") if g.count is None else g.count)
    gap = first.mean - second.mean
    spread = np.trace(first.covariance) + np.trace(second.covariance)
    return max(0.0, float(gap @ gap + spread - 2 * trace_sqrt(low.covariance, high.covariance)))
