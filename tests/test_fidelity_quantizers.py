"""Quantizers against their published formulas, written here a second time; docs/fidelity.md lists them with their sources."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.linalg import expm
from torch import Tensor

from tokcli.methods.reconstruction import TokenizerLoss
from tokcli.models import FeatureDecoder, Tokenizer, ViTEncoder
from tokcli.quantizers.fsq import FSQ
from tokcli.quantizers.kmeans import kmeans
from tokcli.quantizers.lfq import LFQ
from tokcli.quantizers.none import NoQuantizer
from tokcli.quantizers.simvq import SimVQ
from tokcli.quantizers.vq import VQ, rotated


def rows(m: int = 40, d: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(m, d, generator=torch.Generator().manual_seed(seed))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def vqkd() -> VQ:
    """A codebook with the class's defaults, which are VQ-KD's: cosine, EMA 0.99, k-means, commitment 1."""
    vq = VQ(codebook_size=6, code_dim=4)
    vq.initialise(rows()[None])
    return vq


def test_vqkds_codes_follow_normalised_cluster_means_at_99_percent() -> None:
    # BEiT v2 (arXiv 2208.06366), section 2.1 and its published norm_ema_quantizer: EMA of l2-normalised cluster means
    vq = vqkd()
    codes = vq.codebook.double().numpy()
    for step in range(3):
        z = unit(rows(seed=step + 1).double().numpy())
        indices = (z @ codes.T).argmax(1)
        assert vq(rows(seed=step + 1)[None]).indices[0].tolist() == indices.tolist()
        vq.after_step(step)
        for code in set(indices):
            codes[code] = unit(0.99 * codes[code] + 0.01 * unit(z[indices == code].sum(0)))
    assert np.abs(vq.codebook.numpy() - codes).max() < 1e-6


def test_vqkds_commitment_is_the_mse_of_unit_features_to_constant_codes_with_weight_1() -> None:
    # the same, equation 2's last term; its gradient passes through the normalisation: (I - u u^T) / |z|
    vq, z = vqkd(), rows(seed=1).requires_grad_()
    losses = vq(z[None]).losses
    losses["commitment"].backward()
    x = z.detach().double().numpy()
    u = unit(x)
    away = u - vq.codebook.double().numpy()[(u @ vq.codebook.double().numpy().T).argmax(1)]
    wanted = 2 / x.size * (away - u * (u * away).sum(1, keepdims=True)) / np.linalg.norm(x, axis=1, keepdims=True)
    assert set(losses) == {"commitment"} and abs(losses["commitment"].item() - (away**2).mean()) < 1e-6
    assert np.abs(z.grad.numpy() - wanted).max() < 1e-7  # type: ignore[union-attr]


def test_vqkds_objective_is_one_minus_cosine_plus_commitment() -> None:
    # the same, equation 2: maximise the cosine of predicted and teacher's features; both terms have weight 1
    torch.manual_seed(0)
    encoder = ViTEncoder(4, image_size=16, patch_size=4, width=16, depth=1, heads=2)
    tokenizer = Tokenizer(encoder, VQ(codebook_size=8, code_dim=4), FeatureDecoder(4, 6, (4, 4), width=16, heads=2))
    images, targets = torch.rand(2, 3, 16, 16), torch.randn(2, 16, 6, requires_grad=True)
    z = F.normalize(tokenizer.encoder(images), dim=-1)
    tokenizer.quantizer.initialise(z)
    terms = TokenizerLoss(tokenizer)(images, targets)
    codes = tokenizer.codes((z @ tokenizer.quantizer.table().T).argmax(-1))
    predicted = tokenizer.feature_decoder(codes)  # type: ignore[misc]
    cosines = (predicted * targets).sum(-1) / (predicted.square().sum(-1) * targets.square().sum(-1)).sqrt()
    torch.testing.assert_close(terms["loss"], 1 - cosines.mean() + (z - codes).square().mean())
    terms["loss"].backward()
    assert targets.grad is None


def test_spherical_k_means_is_ten_rounds_of_nearest_direction_and_normalised_mean() -> None:
    # VQ-KD's start (BEiT v2's published k-means with cosine similarity; Dhillon and Modha 2001)
    draw = lambda n: kmeans(  # noqa: E731
        rows(200), 8, metric="cosine", iterations=n, generator=torch.Generator().manual_seed(5)
    )
    x, codes = unit(rows(200).double().numpy()), draw(0).double().numpy()
    for _ in range(10):
        nearest = (x @ codes.T).argmax(1)
        codes = np.stack([unit(x[nearest == code].mean(0)) for code in range(8)])
    assert np.abs(draw(10).numpy() - codes).max() < 1e-5


def test_euclidean_k_means_is_scikit_learns() -> None:
    # Lloyd's algorithm from the same seeds
    from sklearn.cluster import KMeans

    draw = lambda n: kmeans(  # noqa: E731
        rows(200), 8, metric="euclidean", iterations=n, generator=torch.Generator().manual_seed(5)
    )
    theirs = KMeans(8, init=draw(0).numpy(), n_init=1, max_iter=7, tol=0, algorithm="lloyd").fit(rows(200).numpy())
    assert np.abs(draw(7).numpy() - theirs.cluster_centers_).max() < 1e-5


def test_a_cosine_codebook_learnt_by_gradient_has_llamagens_terms_and_gradients() -> None:
    # LlamaGen's vector quantizer (arXiv 2406.06525, section 2.1): both sides l2-normalised, codebook 1, commitment 0.25
    vq = VQ(codebook_size=6, code_dim=4, learning="gradient", init="uniform", commitment=0.25)
    mine, theirs = rows(seed=1).requires_grad_(), rows(seed=1).requires_grad_()
    table = vq.codebook.detach().clone().requires_grad_()
    z, codes = theirs / theirs.norm(dim=1, keepdim=True), table / table.norm(dim=1, keepdim=True)
    q = codes[torch.cdist(z, codes).argmin(1)]
    (((q - z.detach()) ** 2).mean() + 0.25 * ((q.detach() - z) ** 2).mean()).backward()
    sum(vq(mine[None]).losses.values()).backward()  # type: ignore[union-attr]
    torch.testing.assert_close((mine.grad, vq.codebook.grad), (theirs.grad, table.grad), atol=1e-7, rtol=1e-5)


def test_cvqs_codes_move_by_its_running_frequencies() -> None:
    # CVQ-VAE (arXiv 2307.15139), section 3.2, and its published code with the nearest feature as anchor
    vq = VQ(codebook_size=12, code_dim=4, metric="euclidean", learning="gradient", init="uniform", rescue="anchors")
    codes, frequency = vq.codebook.detach().double(), torch.zeros(12, dtype=torch.float64)
    for step in range(4):
        z = rows(seed=step).double()
        distances = (z[:, None] - codes).norm(dim=-1)
        shares = distances.argmin(1).bincount(minlength=12) / len(z)
        frequency = 0.99 * frequency + 0.01 * shares
        alpha = 1 - torch.exp(-frequency * 12 * 10 / (1 - 0.99) - 1e-3)[:, None]
        codes = alpha * codes + (1 - alpha) * z[distances.argmin(0)]
        vq(z[None].float())
        vq.after_step(step)
    torch.testing.assert_close(vq.codebook.detach().double(), codes, atol=1e-5, rtol=0)


def test_fsq_bounds_rounds_and_counts_as_published() -> None:
    # FSQ (arXiv 2309.15505), appendix A.1, with the corrected atanh; here with the doubled range that public code has
    sizes = [(size, (size - 1) * (1 - 1e-3), (size - 1) % 2) for size in (8, 5, 4, 3)]
    edge = torch.tensor([math.atanh((1 + odd) / most) - math.atanh(odd / most) for _, most, odd in sizes])  # of a level
    z = torch.cat([3 * rows(300), torch.stack([edge + 99, edge - 99, edge + 1e-4, edge - 1e-4])])
    found, wanted, place = FSQ(levels=[size for size, _, _ in sizes])(z[None]), torch.zeros(304, dtype=torch.int64), 1
    for channel, (size, most, odd) in enumerate(sizes):
        digit = ((torch.tanh(z[:, channel] + math.atanh(odd / most)) * most - odd) / 2).round()
        torch.testing.assert_close(found.z_q[0, :, channel], digit / (size // 2))
        wanted, place = wanted + place * (digit.long() + size // 2), place * size
    assert torch.equal(found.indices[0], wanted) and len(wanted.unique()) > 100


def test_fsqs_gradient_is_that_of_the_bounded_value() -> None:
    # the same: straight-through over the rounding alone, so the derivative is that of tanh scaled to levels
    z, levels = rows(20).requires_grad_(), torch.tensor([8, 5, 4, 3])
    FSQ(levels=levels.tolist())(z[None]).z_q.sum().backward()
    half = (levels - 1) * (1 - 1e-3) / 2
    shift = torch.atanh((1 - levels % 2) / 2 / half)
    slope = half * (1 - torch.tanh(z.detach() + shift) ** 2) / (levels // 2)
    torch.testing.assert_close(z.grad, slope)


def test_the_rotation_is_one_in_the_plane_of_feature_and_code() -> None:
    # rotation trick (arXiv 2410.06424), section 4: the matrix exponential of that plane's generator, and a length
    z, q = rows(seed=1).double(), rows(seed=2).double()
    for row in range(5):
        e, to = unit(z[row].numpy()), unit(q[row].numpy())
        across = unit(to - (e @ to) * e)
        turn = expm(math.acos(e @ to) * (np.outer(across, e) - np.outer(e, across)))
        found = torch.autograd.functional.jacobian(lambda x: rotated(x, q[row]), z[row])  # noqa: B023
        assert np.abs(found.numpy() - turn * float(q[row].norm() / z[row].norm())).max() < 1e-12


def test_lfqs_index_reads_signs_as_bits_and_its_commitment_pulls_to_them() -> None:
    # MAGVIT-v2 (arXiv 2310.05737), section 3.1, equations 2 and 3; its entropy term: test_quantizer_family.py
    lfq, z = LFQ(code_dim=4), rows()
    found = lfq(z[None])
    assert found.indices[0].tolist() == [sum(2**i for i in range(4) if row[i] > 0) for row in z]
    away = torch.stack([z - 1, z + 1]).abs().amin(0)  # the nearer of -1 and 1 has the same sign
    torch.testing.assert_close(found.losses["commitment"], 0.25 * away.square().mean())


def test_simvqs_layer_learns_by_the_codebook_term_and_features_by_commitment() -> None:
    # SimVQ (arXiv 2411.02038), section 4: codes C W with C frozen; gradients written out
    simvq, z = SimVQ(codebook_size=16, code_dim=4, seed=1), rows().requires_grad_()
    with torch.no_grad():
        simvq.weight += 0.3 * rows(4, seed=9)
    found = simvq(z[None])
    codes = simvq.basis @ simvq.weight.detach()
    nearest = (z.detach()[:, None] - codes).square().sum(-1).argmin(1)
    sum(found.losses.values()).backward()  # type: ignore[union-attr]
    away = z.detach() - codes[nearest]
    assert torch.equal(found.indices[0], nearest)
    torch.testing.assert_close(simvq.weight.grad, -2 / z.numel() * simvq.basis[nearest].T @ away)
    torch.testing.assert_close(z.grad, 0.25 * 2 / z.numel() * away)


def test_the_yardstick_without_codes_gives_directions() -> None:
    # no paper's: what VQ-KD's features are before they are quantized
    found = NoQuantizer(code_dim=4)(rows()[None]).z_q[0]
    assert np.abs(found.numpy() - unit(rows().numpy())).max() < 1e-6
