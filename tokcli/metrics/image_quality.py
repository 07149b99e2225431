"""Pixel metrics, one value per image in float64; the number of a data set is the mean over its images.

Images are uint8 or float in [0, 1] (values outside are clamped, as a screen would). All but sharpness are symmetric.
"""

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from tokcli.errors import TokError

# An exact reconstruction has infinite PSNR and would make the mean of a set useless. 100 dB is a mean squared
# error of 1e-10: about one level in one value of a 256 px image, the smallest error that 8 bits can show.
PSNR_CAP = 100.0
FLAT = 1e-4  # added to both sides of a ratio of edges
FLATTEST = 0.5 / 255  # mean step between pixels under which a target has no edges that a ratio could be over

# Wang et al. 2004, section III-C
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03


def _unit(images: Tensor) -> Float64[Tensor, "b c h w"]:
    if not images.is_floating_point():
        return images.to(torch.float64) / 255
    return images.to(torch.float64).clamp(0, 1)


def _pair(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    if images.shape != targets.shape or images.ndim != 4:
        raise ValueError(
            f"images: must have the shape of their targets, not {tuple(images.shape)} and {tuple(targets.shape)}"
        )
    return _unit(images), _unit(targets)


def l1(images: Shaped[Tensor, "b c h w"], targets: Shaped[Tensor, "b c h w"]) -> Float64[Tensor, " b"]:
    """Mean absolute error of each image, in [0, 1].

    Raises:
        ValueError: the shapes differ.
    """
    x, y = _pair(images, targets)
    return (x - y).abs().mean(dim=(1, 2, 3))


def psnr(images: Shaped[Tensor, "b c h w"], targets: Shaped[Tensor, "b c h w"]) -> Float64[Tensor, " b"]:
    """Peak signal-to-noise ratio of each image in dB, over all its pixels and channels, at most 100.

    Raises:
        ValueError: the shapes differ.
    """
    x, y = _pair(images, targets)
    return (-10 * (x - y).square().mean(dim=(1, 2, 3)).log10()).clamp(max=PSNR_CAP)


def sharpness(images: Shaped[Tensor, "b c h w"], targets: Shaped[Tensor, "b c h w"]) -> Float64[Tensor, " b"]:
    """Mean absolute difference of neighbouring pixels over that of the target: below 1 is blurred, above 1 noisy.

    NaN where the target is flat (a mean step under half a grey level), so that one such image does not decide over a set.
    It says what PSNR hides, that a mean of plausible images scores best where none of them would be taken for real; it does
    not say that edges are in their places.

    Raises:
        ValueError: the shapes differ.
    """
    x, y = (_edges(side) for side in _pair(images, targets))
    return torch.where(y < FLATTEST, torch.nan, (x + FLAT) / (y + FLAT))


def _edges(x: Tensor) -> Tensor:
    """Mean absolute step to the right and downwards of each image; sides of 1 px have none."""
    return sum((x.diff(dim=dim).abs().sum(dim=(1, 2, 3)) / x[0].numel() for dim in (-1, -2)), x.new_zeros(len(x)))


def _blur(x: Tensor) -> Tensor:
    """Gaussian window where it fits whole: (..., h, w) -> (..., h - 10, w - 10)."""
    at = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-at.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()
    # shifted sums: PyTorch's grouped convolution is several times slower in float64
    for dim in (-1, -2):
        length = x.shape[dim] - WINDOW + 1
        out = x.narrow(dim, 0, length) * float(weights[0])
        for i in range(1, WINDOW):
            out.add_(x.narrow(dim, i, length), alpha=float(weights[i]))
        x = out
    return x


def ssim(images: Shaped[Tensor, "b c h w"], targets: Shaped[Tensor, "b c h w"]) -> Float64[Tensor, " b"]:
    """Structural similarity of each image, in [-1, 1], 1 for equal images (Wang et al. 2004).

    11 x 11 Gaussian window of sigma 1.5, population covariances, range 1, mean over positions and colour channels:
    what scikit-image computes for `gaussian_weights=True, sigma=1.5, use_sample_covariance=False`.

    Raises:
        ValueError: the shapes differ.
        TokError: a side is under 11 px.
    """
    x, y = _pair(images, targets)
    if min(x.shape[-2:]) < WINDOW:
        raise TokError(
            "ssim",
            f"needs images of at least {WINDOW} px",
            got=f"{x.shape[-1]} x {x.shape[-2]}",
            next="Use larger images",
        )
    return torch.stack([_ssim_map(a, b).mean() for a, b in zip(x, y, strict=True)]) if len(x) else x.new_zeros(0)


def _ssim_map(x: Tensor, y: Tensor) -> Tensor:
    """Equation 13 at every position of one image (c, h, w)."""
    mean_x, mean_y, xx, yy, xy = _blur(torch.stack([x, y, x * x, y * y, x * y]))
    var_x, var_y, cov = xx - mean_x * mean_x, yy - mean_y * mean_y, xy - mean_x * mean_y
    c1, c2 = K1**2, K2**2
    likeness = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    return likeness / ((mean_x * mean_x + mean_y * mean_y + c1) * (var_x + var_y + c2))
