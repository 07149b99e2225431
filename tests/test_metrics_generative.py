"""Metrics of generated images: fidelity to torch-fidelity and to plain formulas, conventions, inputs that have no number."""

import math

import numpy as np
import pytest
import torch

from tokcli.errors import TokError
from tokcli.metrics import neighbours as module
from tokcli.metrics.bootstrap import bootstrap_error
from tokcli.metrics.fid import Moments, frechet_distance
from tokcli.metrics.inception_score import inception_score
from tokcli.metrics.kid import kid
from tokcli.metrics.lpips import lpips
from tokcli.metrics.neighbours import coverage, density, neighbours, precision, radii, recall


def draw(n, d=6, seed=0, scale=1.0, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * scale + shift


REAL, FAKE = draw(90, seed=1), draw(70, seed=2, scale=0.7, shift=0.3)


def moments(x):
    found = Moments()
    found.update(x)
    return found


def test_inception_score_equals_torch_fidelity():
    theirs = pytest.importorskip("torch_fidelity.metric_isc").isc_features_to_metric
    ours, expected = inception_score(draw(203, 20, scale=3)), theirs(draw(203, 20, scale=3))
    assert ours.mean == pytest.approx(expected["inception_score_mean"], rel=1e-9)
    assert ours.deviation == pytest.approx(expected["inception_score_std"], rel=1e-9)


def test_inception_score_of_sure_and_varied_images_is_the_number_of_classes():
    assert inception_score(1e4 * torch.eye(5).repeat(40, 1), splits=1).mean == pytest.approx(5)
    assert inception_score(torch.zeros(20, 5)).mean == pytest.approx(1)


def test_images_sorted_by_class_do_not_lower_the_inception_score():
    by_class = 1e4 * torch.eye(4).repeat_interleave(50, dim=0)
    assert inception_score(by_class).mean > 3.5


def test_kid_equals_torch_fidelity():
    theirs = pytest.importorskip("torch_fidelity.metric_kid").kid_features_to_metric
    a, b = FAKE.double(), REAL.double()
    expected = theirs(a, b, kid_subsets=9, kid_subset_size=40, verbose=False)
    ours = kid(a, b, subsets=9, subset_size=40)
    assert ours.mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-9)
    assert ours.deviation == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-9)


def test_kid_of_whole_sets_is_the_unbiased_formula():
    a, b = FAKE[:30].double(), REAL[:30].double()
    k = lambda x, y: (x @ y.T / 6 + 1) ** 3  # noqa: E731
    pairs = lambda x: (k(x, x).sum() - k(x, x).trace()) / (30 * 29)  # noqa: E731
    expected = pairs(a) + pairs(b) - 2 * k(a, b).mean()
    assert kid(a, b, subsets=1).mean == pytest.approx(float(expected), rel=1e-9)


def test_kid_of_one_distribution_is_around_zero():
    found = kid(draw(400, seed=1), draw(400, seed=2), subsets=30, subset_size=100)
    assert abs(found.mean) < 3 * found.deviation


@pytest.mark.parametrize("batch", [7, 1000])
def test_precision_and_recall_equal_torch_fidelity(batch):
    theirs = pytest.importorskip("torch_fidelity.metric_prc").prc_features_to_metric
    expected = theirs(FAKE.double(), REAL.double(), prc_batch_size=batch, verbose=False)
    found = neighbours(REAL, FAKE)
    assert precision(found) == pytest.approx(expected["precision"], abs=1e-6)
    assert recall(found) == pytest.approx(expected["recall"], abs=1e-6)


def test_density_and_coverage_are_equations_4_and_5():
    real, fake = REAL.double().numpy(), FAKE.double().numpy()
    own = np.sort(np.linalg.norm(real[:, None] - real[None], axis=-1), axis=1)[:, 5]
    inside = np.linalg.norm(real[:, None] - fake[None], axis=-1) <= own[:, None]
    found = neighbours(REAL, FAKE)
    assert density(found) == pytest.approx(inside.sum(0).mean() / 5)
    assert coverage(found) == pytest.approx(inside.any(1).mean())


def test_swapping_real_and_fake_swaps_precision_and_recall():
    one, other = neighbours(REAL, FAKE), neighbours(FAKE, REAL)
    assert (precision(one), recall(one)) == (recall(other), precision(other))
    assert precision(one) != recall(one)


def test_few_modes_cost_recall_and_noise_costs_precision():
    collapsed, noisy = neighbours(REAL, REAL[:5].repeat(10, 1)), neighbours(REAL, draw(90, seed=3, scale=4))
    assert precision(collapsed) == 1 and recall(collapsed) < 0.2
    assert precision(noisy) < 0.3 and recall(noisy) > 0.9


def test_one_outlier_among_the_fakes_raises_recall_but_not_coverage():
    far = torch.cat([draw(8, seed=4, scale=0.01) + 9, draw(1) - 90])
    found = neighbours(REAL, far)
    assert recall(found) > 0.9 and coverage(found) == 0


@pytest.mark.parametrize("strip", [1, 70 * 7, 1 << 20])
def test_neighbours_do_not_depend_on_how_many_are_compared_at_once(strip, monkeypatch):
    whole = neighbours(REAL, FAKE)
    monkeypatch.setattr(module, "STRIP", strip)
    for ours, expected in zip(neighbours(REAL, FAKE)[1:], whole[1:], strict=True):
        assert torch.equal(ours, expected)


def test_equal_images_are_at_distance_zero_far_from_the_origin():
    x = draw(20, 64, shift=1e4).repeat(5, 1)
    assert radii(x, (3,)).max() == 0
    assert precision(neighbours(x, x)) == coverage(neighbours(x, x)) == 1


@pytest.mark.parametrize(
    ("real", "fake", "said"),
    [
        (REAL, FAKE[:5], r"generated images: 5 neighbours need more than 5 images. Got 5"),
        (REAL, FAKE[:, :3], r"differ in width. Got 6 and 3"),
        (REAL * math.nan, FAKE, "real images: features are not finite"),
    ],
)
def test_sets_without_neighbours_are_one_clear_error(real, fake, said):
    with pytest.raises(TokError, match=said):
        neighbours(real, fake)


@pytest.mark.parametrize(
    "call",
    [
        lambda: inception_score(draw(9)),
        lambda: inception_score(draw(20) * math.nan),
        lambda: kid(FAKE[:1], REAL),
        lambda: kid(FAKE[:, :2], REAL),
        lambda: kid(FAKE * math.inf, REAL),
        lambda: bootstrap_error(FAKE, moments(REAL), replicates=1),
        lambda: bootstrap_error(FAKE[:, :2], moments(REAL), replicates=5),
        lambda: lpips([draw(2)[..., None, None]], [], [torch.ones(1, 6, 1, 1)]),
    ],
)
def test_what_has_no_number_is_refused(call):
    with pytest.raises((TokError, ValueError)):
        call()


@pytest.mark.parametrize("n", [4, 70])
def test_bootstrap_replicates_are_distances_of_resampled_sets(n):
    x, reference, replicates = FAKE[:n].double(), moments(REAL.double()), 6
    generator = torch.Generator().manual_seed(3)
    sets = [x[torch.randint(n, (n,), generator=generator)] for _ in range(replicates)]
    direct = np.std([frechet_distance(moments(s), reference) for s in sets], ddof=1)
    assert bootstrap_error(x, reference, replicates, seed=3) == pytest.approx(direct, rel=1e-8)


def test_bootstrap_error_is_the_spread_over_new_sets():
    reference = moments(draw(2000, 3))
    distances = [frechet_distance(moments(draw(100, 3, seed=s, shift=0.5)), reference) for s in range(60)]
    error = bootstrap_error(draw(100, 3, seed=99, shift=0.5), reference, 60)
    assert error == pytest.approx(np.std(distances), rel=0.35)


def test_lpips_metric_is_the_published_one():
    theirs = pytest.importorskip("lpips").LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    a, b = (torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    with torch.no_grad():
        maps = [list(theirs.net.forward(theirs.scaling_layer(2 * x - 1))) for x in (a, b)]
        heads = [layer.model[-1].weight for layer in theirs.lins]
        expected = theirs(a, b, normalize=True).flatten()
        assert torch.allclose(lpips(maps[0], maps[1], heads).float(), expected, rtol=1e-4, atol=1e-7)
