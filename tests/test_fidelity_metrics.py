"""Metrics and Inception's taps against other libraries and formulas written here a second time; see docs/fidelity.md."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokcli.metrics.clip_score import clip_score
from tokcli.metrics.code_usage import codebook_perplexity, entropy_bits
from tokcli.metrics.feature_prediction import feature_loss
from tokcli.metrics.fid import Moments, frechet_distance
from tokcli.metrics.inception_score import inception_score
from tokcli.metrics.likelihood import masked_ce, proposal_ppl
from tokcli.metrics.neighbours import neighbours, precision, recall
from tokcli.pretrained import build_network


def draw(n: int, d: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the published file's layout, under which activations do not die out."""
    from torchvision.models import inception_v3

    torch.manual_seed(0)
    body = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    for module in body.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(body.state_dict(), file)
    return file


def test_inceptions_pool_logits_and_spatial_taps_are_torch_fidelitys(inception_file: Path) -> None:
    # FID's pool features; logits without the bias, as torch-fidelity scores them; the first 7 channels of the block that
    # ADM's evaluator calls mixed_6 (arXiv 2105.05233). Theirs scales uint8 by (x - 128) / 128, ours [0, 1] by 2 x - 1.
    theirs = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    judge = theirs("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_file))
    seen: list[Tensor] = []
    judge.Mixed_6d.register_forward_hook(lambda m, given, out: seen.append(out[:, :7].flatten(1)))
    images = torch.randint(256, (1, 3, 299, 299), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted = [judge(images)[0], seen[0], judge(images)[1]]
    for ours, expected in zip(build_network("inception", inception_file).judged(images / 256), wanted, strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(ours / scale, expected / scale, rtol=0, atol=1e-4)


def test_the_frechet_distance_of_gaussians_that_commute_is_that_of_means_and_deviations() -> None:
    # Heusel et al. 2017 (arXiv 1706.08500), equation 6: with one basis the root of the product is that of its eigenvalues
    basis = torch.linalg.qr(draw(6, 6))[0]
    waves = torch.linalg.qr(draw(40, 6, seed=1) - draw(40, 6, seed=1).mean(0))[0] * math.sqrt(39)  # unit covariance
    found = []
    for deviations, mean in (([1.0, 2, 3, 4, 5, 6], 0.0), ([6.0, 1, 4, 2, 2, 3], 0.5)):
        moments = Moments()
        moments.update(waves * torch.tensor(deviations) @ basis.T + mean)
        found.append(moments)
    wanted = 6 * 0.5**2 + sum((a - b) ** 2 for a, b in zip([1, 2, 3, 4, 5, 6], [6, 1, 4, 2, 2, 3], strict=True))
    assert frechet_distance(*found) == pytest.approx(wanted, rel=1e-9)


def test_the_inception_score_of_one_split_is_the_exponential_of_a_mean_divergence() -> None:
    # Salimans et al. 2016 (arXiv 1606.03498), equation 1; splits and order: test_metrics_generative.py
    from scipy.special import softmax
    from scipy.stats import entropy

    p = softmax(draw(50, 7, scale=2).numpy(), axis=1)
    wanted = math.exp(np.mean([entropy(row, p.mean(0)) for row in p]))
    assert inception_score(torch.from_numpy(np.log(p)), splits=1).mean == pytest.approx(wanted, rel=1e-12)


def share_inside(points: np.ndarray, of: np.ndarray) -> float:
    """Share of points in some ball around another set's, each to its third neighbour; scikit-learn finds itself first."""
    from sklearn.neighbors import NearestNeighbors

    radii = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(of).kneighbors(of)[0][:, 3]
    return float((np.linalg.norm(points[:, None] - of, axis=-1) <= radii).any(1).mean())


def test_precision_and_recall_are_those_of_scikit_learns_neighbours() -> None:
    # Kynkäänniemi et al. 2019 (arXiv 1904.06991), equations 1 and 2, k = 3
    real, fake = draw(60, 4).numpy(), draw(50, 4, seed=1, scale=0.8).numpy() + 0.5
    found = neighbours(torch.from_numpy(real), torch.from_numpy(fake))
    assert precision(found) == share_inside(fake, real) and recall(found) == share_inside(real, fake)
    assert precision(found) != recall(found)


def test_codebook_perplexity_is_the_exponential_of_scipys_entropy() -> None:
    from scipy.stats import entropy

    counts = torch.tensor([7, 0, 1, 12, 5, 5, 0, 1])
    assert codebook_perplexity(counts) == pytest.approx(math.exp(entropy(counts.numpy())), rel=1e-12)
    assert entropy_bits(counts) == pytest.approx(entropy(counts.numpy(), base=2), rel=1e-12)


def test_the_feature_loss_is_one_minus_torchs_cosine_similarity() -> None:
    # BEiT v2 (arXiv 2208.06366), equation 2
    a, b = draw(10, 6).view(2, 5, 6), draw(10, 6, seed=1).view(2, 5, 6)
    torch.testing.assert_close(feature_loss(a, b), 1 - F.cosine_similarity(a, b, dim=-1).mean(1))


def test_the_clip_score_is_a_hundred_times_scipys_cosine() -> None:
    # Hessel et al. 2021 (arXiv 2104.08718), equation 1, on the scale that the field reports
    from scipy.spatial.distance import cosine

    a, b = draw(8, 5), draw(8, 5, seed=1)
    wanted = [100 * max(0.0, 1 - cosine(x, y)) for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    assert clip_score(a, b).tolist() == pytest.approx(wanted, abs=1e-9) and 0.0 in wanted and max(wanted) > 10


def test_the_proposals_perplexity_is_that_of_torchs_mean_cross_entropy() -> None:
    logits, targets = draw(20, 9), torch.arange(20) % 9
    total, mean = (float(F.cross_entropy(logits, targets, reduction=r)) for r in ("sum", "mean"))
    assert masked_ce(total, 20) == pytest.approx(mean) and proposal_ppl(total, 20) == pytest.approx(math.exp(mean))


@pytest.mark.slow
def test_the_check_of_the_evaluator_prints_the_numbers_of_both_files(inception_file: Path, tmp_path: Path) -> None:
    # what a person runs on ADM's published samples; the distance of few images by the nuclear norm of their features
    random, judge, told = np.random.RandomState(0), build_network("inception", inception_file), []
    sets = [random.randint(0, 256 >> dark, (n, 40, 40, 3), dtype=np.uint8) for dark, n in ((0, 20), (1, 14))]
    sets[0][:9] //= 2  # some of the samples look like the reference
    for images in sets:
        pooled, spatial, logits = judge.judged(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
        told.append((pooled.double(), spatial.double(), logits))
    np.savez(tmp_path / "samples.npz", arr_0=sets[0])
    statistics = {f"mu{s}": told[1][i].mean(0).numpy() for i, s in enumerate(("", "_s"))}
    statistics |= {f"sigma{s}": np.cov(told[1][i].numpy(), rowvar=False) for i, s in enumerate(("", "_s"))}
    np.savez(tmp_path / "reference.npz", arr_0=sets[1], **statistics)
    script = Path(__file__).parent.parent / "scripts/check_evaluator.py"
    files = [str(tmp_path / name) for name in ("samples.npz", "reference.npz")]
    command = [sys.executable, str(script), *files, "--inception-weights", str(inception_file), "--device", "cpu"]
    said = dict(line.split(maxsplit=1) for line in subprocess.check_output(command, text=True).splitlines())
    for name, i in (("FID", 0), ("sFID", 1)):
        means, rows = zip(*((x[i].mean(0), (x[i] - x[i].mean(0)) / (len(x[i]) - 1) ** 0.5) for x in told), strict=True)
        wanted = (means[0] - means[1]).square().sum() + sum(x.square().sum() for x in rows)
        wanted -= 2 * torch.linalg.svdvals(rows[0] @ rows[1].T).sum()
        assert float(said[name]) == pytest.approx(float(wanted), rel=1e-3, abs=0.01)
    assert said["images"].startswith("20 against 14") and float(said["IS"]) == pytest.approx(
        inception_score(told[0][2]).mean, abs=0.06
    )
    fake, real = (x[0].numpy() for x in told)
    shares = share_inside(fake, real), share_inside(real, fake)
    assert (float(said["precision"]), float(said["recall"])) == pytest.approx(shares, abs=0.006)
    assert shares[0] != shares[1]
