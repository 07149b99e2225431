"""PSNR, SSIM and L1 against scikit-image and by hand."""

import math

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from tokcli.errors import TokError
from tokcli.metrics.image_quality import PSNR_CAP, l1, psnr, sharpness, ssim
from tokcli.metrics.reported import Number, number_of


def pair(side=20, count=2):
    generator = torch.Generator().manual_seed(side)
    x = torch.randint(0, 256, (count, 3, side, side + 3), dtype=torch.uint8, generator=generator)
    y = (x.float() + 30 * torch.randn(x.shape, generator=generator)).clamp(0, 255).round().byte()
    return x, y


@pytest.mark.parametrize("side", [11, 12, 33])
def test_ssim_equals_scikit_image(side):
    metrics = pytest.importorskip("skimage.metrics")
    for x, y in zip(*pair(side), strict=True):
        theirs = metrics.structural_similarity(
            *(image.permute(1, 2, 0).numpy() / 255.0 for image in (x, y)),
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=2, data_range=1.0,
        )  # fmt: skip
        assert float(ssim(x[None], y[None])) == pytest.approx(theirs, abs=1e-12)


def test_psnr_equals_scikit_image_image_by_image():
    metrics = pytest.importorskip("skimage.metrics")
    x, y = pair()
    theirs = [metrics.peak_signal_noise_ratio(a.numpy(), b.numpy()) for a, b in zip(x, y, strict=True)]
    assert np.allclose(psnr(x, y).numpy(), theirs, rtol=1e-12)


def test_one_level_of_error_everywhere_is_48_db():
    x = torch.full((1, 3, 4, 4), 100, dtype=torch.uint8)
    assert float(psnr(x, x + 1)) == pytest.approx(20 * math.log10(255))
    assert float(l1(x, x + 1)) == pytest.approx(1 / 255)


def test_equal_images_have_the_capped_psnr_and_full_similarity():
    x, _ = pair()
    assert psnr(x, x).tolist() == [PSNR_CAP] * 2
    assert torch.allclose(ssim(x, x), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("metric", [psnr, ssim, l1, sharpness])
def test_uint8_and_unit_floats_give_the_same_number(metric):
    x, y = pair()
    assert torch.allclose(metric(x, y), metric(x / 255, y.double() / 255), rtol=1e-6)


@pytest.mark.parametrize("metric", [psnr, ssim, l1])
def test_swapping_image_and_target_changes_nothing(metric):
    x, y = pair()
    assert torch.allclose(metric(x, y), metric(y, x), rtol=1e-12)


def test_sharpness_is_one_for_a_copy_less_for_a_blur_and_more_for_noise():
    x, noisy = pair()
    blurred = torch.nn.functional.avg_pool2d(x.float(), 3, stride=1, padding=1).byte()
    assert sharpness(x, x).tolist() == [1, 1]
    assert bool((sharpness(blurred, x) < 0.7).all())
    smooth = torch.linspace(0, 200, 23).byte().expand(2, 3, 20, 23)
    assert bool((sharpness(noisy, smooth) > 2).all())


def test_sharpness_of_a_ramp_by_hand():
    ramp = torch.arange(5.0).view(1, 1, 1, 5) / 10  # four steps of .1, and none downwards
    assert float(sharpness(ramp, 2 * ramp)) == pytest.approx((0.08 + 1e-4) / (0.16 + 1e-4), rel=1e-6)


def test_a_flat_target_has_no_sharpness_and_does_not_decide_over_a_set():
    noisy = pair()[0]
    flat = torch.full_like(noisy[:1], 7)
    found = sharpness(noisy, torch.cat([flat, noisy[1:]]))
    assert found.isnan().tolist() == [True, False] and number_of(found) == Number(1.0, images=1)
    assert number_of(sharpness(flat, flat)) is None


def test_values_outside_the_range_are_clamped_as_a_screen_would():
    x = torch.ones(1, 3, 12, 12)
    assert float(l1(x + 5, x)) == 0


def test_constant_images_have_a_finite_similarity():
    flat = torch.zeros(1, 3, 16, 16)
    assert 0 <= float(ssim(flat, flat + 1)) < 0.001


def test_ssim_needs_room_for_its_window():
    with pytest.raises(TokError, match=r"at least 11 px. Got 13 x 10"):
        ssim(*pair(10))


def test_images_of_another_shape_than_their_targets_are_refused():
    x, y = pair()
    with pytest.raises((ValueError, TypeCheckError), match=r"(?i)shape"):
        psnr(x, y[:, :, 1:])
