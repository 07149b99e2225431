"""Crops against torchvision's; the others stand in test_data_transforms.py. See docs/fidelity.md."""

import math

import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop as Torchvisions

from tokcli.data.randomness import generator
from tokcli.data.transforms import RandomResizedCrop


@pytest.mark.parametrize("scale", [(0.8, 1.0), (0.08, 1.0)])
def test_random_resized_crops_are_distributed_as_torchvisions(scale: tuple[float, float]) -> None:
    # GoogLeNet (arXiv 1409.4842), section 6, in the form that everybody trains with; 2,000 boxes each of a 3:2 photo
    image, draws = torch.zeros(3, 200, 300, dtype=torch.uint8), 2000
    torch.manual_seed(0)
    theirs = [Torchvisions.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(draws)]
    ours = [RandomResizedCrop(8, scale=scale)._box(200, 300, generator(0, i)) for i in range(draws)]
    for of in (
        lambda top, left, h, w: h * w,
        lambda top, left, h, w: math.log(w / h),
        lambda top, left, h, w: top / max(1, 200 - h),
        lambda top, left, h, w: left / max(1, 300 - w),
    ):
        assert ks_2samp([of(*box) for box in ours], [of(*box) for box in theirs]).pvalue > 1e-3
