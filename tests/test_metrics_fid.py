"""The Fréchet distance: fidelity, independence of batches and order, and inputs that have no distance."""

import math

import numpy as np
import pytest
import torch

from tokcli.errors import TokError
from tokcli.metrics.fid import Gaussian, Moments, frechet_distance, trace_sqrt


def draw(n, d=8, seed=0, shift=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix * scale + shift


def moments(x, batch=7):
    found = Moments()
    for part in x.split(batch):
        found.update(part)
    return found


def textbook(a, b):
    """Heusel et al. 2017, by SciPy's matrix square root."""
    from scipy.linalg import sqrtm

    a, b = a.numpy(), b.numpy()
    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    gap = a.mean(0) - b.mean(0)
    return gap @ gap + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)


@pytest.mark.parametrize(("d", "scale"), [(3, 1.0), (8, 0.01), (32, 100.0)])
def test_distance_equals_the_textbook_formula(d, scale):
    a, b = draw(300, d, seed=1, scale=scale), draw(200, d, seed=2, shift=0.3, scale=scale)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(textbook(a, b), rel=1e-6)


def test_distance_equals_pytorch_fid(monkeypatch):
    score = pytest.importorskip("pytorch_fid.fid_score")
    from scipy.linalg import sqrtm

    # it passes `disp`, which SciPy 1.18 drops, and takes a pair
    monkeypatch.setattr(score.linalg, "sqrtm", lambda matrix, disp=True: sqrtm(matrix) if disp else (sqrtm(matrix), 0))
    a, b = moments(draw(300, 16, seed=1)).gaussian(), moments(draw(200, 16, seed=2, shift=1.0)).gaussian()
    theirs = score.calculate_frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-6)


def test_gaussians_on_one_axis_have_the_distance_of_their_means_and_deviations():
    a, b = Gaussian(np.array([1.0]), np.array([[4.0]])), Gaussian(np.array([4.0]), np.array([[25.0]]))
    assert frechet_distance(a, b) == pytest.approx((4 - 1) ** 2 + (5 - 2) ** 2)


@pytest.mark.parametrize(("n", "d"), [(200, 16), (10, 64), (2, 64)])
def test_identical_sets_are_at_distance_zero_also_when_rank_deficient(n, d):
    x = draw(n, d, scale=10.0)
    assert frechet_distance(moments(x), moments(x.flip(0), batch=3)) < 1e-6 * float(x.square().sum(1).mean())


def test_identical_sets_of_feature_like_scale_are_within_a_millionth():
    x = draw(100, 256, scale=0.05).relu()
    assert frechet_distance(moments(x), moments(x)) < 1e-6


def test_distance_is_symmetric():
    a, b = moments(draw(20, 32, seed=1)), moments(draw(300, 32, seed=2))
    assert frechet_distance(a, b) == frechet_distance(b, a)


def test_rank_deficient_trace_equals_the_nuclear_norm_of_the_features():
    x, y = (v - v.mean(0) for v in (draw(12, 40, seed=1), draw(15, 40, seed=2)))
    direct = torch.linalg.svdvals(x @ y.T).sum() / math.sqrt(11 * 14)
    trace = trace_sqrt(np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False))
    assert trace == pytest.approx(float(direct), rel=1e-9)


def test_constant_images_leave_the_distance_of_the_means():
    a, b = torch.zeros(5, 4), torch.full((9, 4), 2.0)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(16)


def test_a_set_that_grows_after_a_comparison_is_compared_anew():
    x, other = draw(60, seed=1), moments(draw(40, seed=2))
    growing = moments(x[:30])
    first = frechet_distance(growing, other)
    growing.update(x[30:])
    assert frechet_distance(growing, other) == pytest.approx(frechet_distance(moments(x), other), rel=1e-9)
    assert frechet_distance(growing, other) != pytest.approx(first, rel=1e-3)


def test_distance_grows_as_sets_drift_apart():
    x = draw(100)
    near, far = (frechet_distance(moments(x), moments(x + shift)) for shift in (0.1, 0.5))
    assert 0 < near < far


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_moments_do_not_depend_on_the_batch_size(batch):
    x = draw(50, 5, shift=1e4)
    found = moments(x, batch).gaussian()
    assert np.allclose(found.covariance, np.cov(x.numpy(), rowvar=False), rtol=1e-9, atol=1e-9)
    assert np.allclose(found.mean, x.mean(0).numpy(), rtol=1e-14)


def test_a_mean_a_million_times_the_spread_costs_no_digits():
    x = draw(64, 4)
    plain, shifted = moments(x).gaussian(), moments(x + 1e6, batch=5).gaussian()
    assert np.allclose(plain.covariance, shifted.covariance, rtol=1e-7)


def test_float32_features_are_summed_in_float64():
    x = (draw(40, 4) * 1e-3 + 100).float()
    assert np.allclose(moments(x).gaussian().covariance, np.cov(x.double().numpy(), rowvar=False), rtol=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_are_counted_and_refused(bad):
    x = draw(6, 3)
    x[2, 1] = bad
    with pytest.raises(TokError, match=r"clip: features are not finite. Got 1 of the 6 images after image 0"):
        Moments("clip").update(x)


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_images_have_no_distance(n):
    with pytest.raises(TokError, match=f"at least 2 images. Got {n}"):
        frechet_distance(moments(draw(10, 3)), moments(draw(n, 3)))


def test_statistics_of_another_width_are_refused():
    with pytest.raises(TokError, match="has 4 features an image, but features has 3"):
        frechet_distance(moments(draw(10, 3)), moments(draw(10, 4)))


def test_statistics_that_are_not_finite_are_refused():
    broken = Gaussian(np.zeros(2), np.full((2, 2), np.nan), name="val.npz")
    with pytest.raises(TokError, match=r"val.npz: statistics are not finite"):
        frechet_distance(broken, broken)
