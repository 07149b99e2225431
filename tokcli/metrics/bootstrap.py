"""How far a Fréchet distance would move with other images of the same kind: its bootstrap standard error.

Resampled sets hold some images twice, and fewer distinct images make the distance larger (its bias falls as 1/N): the
replicates lie above the estimate, and their percentiles would not even contain it. So the interval is the estimate plus
and minus 1.96 standard deviations of the replicates (Efron and Tibshirani 1993, section 13.3).
"""

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tokcli.metrics.fid import Gaussian, Moments, factor_of
from tokcli.progress import passing

WIDTH = 1.96  # standard deviations each way: 95 % of a normal distribution


def bootstrap_error(
    features: Float[Tensor, "n d"], reference: Moments | Gaussian, replicates: int, seed: int = 0
) -> float:
    """Standard error of the Fréchet distance of n images to a fixed reference.

    Args:
        features: of the n images; they are resampled with replacement.
        reference: the other side, which is not resampled.
        replicates: how many resampled sets, at least 2; 20 give the error to about 16 %.
        seed: of the resampling.

    Raises:
        ValueError: fewer than 2 replicates or images, or features of another width than the reference's.
    """
    known = reference.gaussian() if isinstance(reference, Moments) else reference
    if replicates < 2 or len(features) < 2:
        raise ValueError(f"bootstrap: needs at least 2 images and 2 replicates: {len(features)}, {replicates}")
    if features.shape[1] != len(known.mean):
        raise ValueError(f"bootstrap: features differ in width: {features.shape[1]} and {len(known.mean)}")
    x = features.cpu().to(torch.float64)
    centre = x.mean(0)
    x, gap = x - centre, centre - torch.from_numpy(np.array(known.mean, dtype=np.float64))
    projected = x @ torch.from_numpy(factor_of(np.array(known.covariance, dtype=np.float64)))
    draw = torch.Generator().manual_seed(seed)
    n, found = len(x), []
    for _ in passing(range(replicates), replicates, unit="set", desc="intervals"):
        times = torch.bincount(torch.randint(n, (n,), generator=draw), minlength=n).to(torch.float64)
        found.append(_distance(x, projected, times, gap))
    return float(np.std(found, ddof=1))


def _distance(
    x: Float64[Tensor, "n d"], projected: Float64[Tensor, "n r"], times: Float64[Tensor, " n"], gap: Tensor
) -> float:
    """The distance, less the reference's constant trace, of the set that holds image i `times[i]` times."""
    rows = times > 0
    w, x, y, n = times[rows], x[rows], projected[rows], len(x)
    mean = w @ x / n
    trace = (w @ x.square().sum(1) - n * mean @ mean) / (n - 1)
    y = (y - w @ y / n) * w.sqrt()[:, None]
    gram = y @ y.T if len(y) < y.shape[1] else y.T @ y  # equal but for zeros
    roots = (torch.linalg.eigvalsh(gram) / (n - 1)).clamp_min(0).sqrt().sum()
    return float((gap + mean) @ (gap + mean) + trace - 2 * roots)
