"""What VQ does to its codebook: EMA, gradient, k-means start, revival."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from tokcli.quantizers.kmeans import Farthest, farthest, join, relocate
from tokcli.quantizers.vq import VQ


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(**keys: Any) -> VQ:
    vq = VQ(**{"codebook_size": 8, "code_dim": 4, "metric": "euclidean", **keys})
    vq.initialise(random(6, 9, 4))
    return vq


def test_cosine_ema_moves_a_used_code_towards_its_normalised_mean() -> None:
    vq = build(metric="cosine", decay=0.9)
    z, before = random(2, 9, 4, seed=1), vq.codebook.clone()
    indices = vq(z).indices
    vq.after_step(0)
    for code in range(8):
        rows = normalize(z, dim=-1)[indices == code]
        mean = normalize(rows.mean(0), dim=0) if len(rows) else before[code]
        expected = normalize(0.9 * before[code] + 0.1 * mean, dim=0)
        torch.testing.assert_close(vq.codebook[code], expected)


def test_euclidean_ema_is_a_ratio_of_running_sums_and_smoothed_counts() -> None:
    vq = build(decay=0.9)
    start, z = vq.codebook.clone(), random(2, 9, 4, seed=1)
    sizes, sums = torch.ones(8), start.clone()
    for step in range(3):
        hits = torch.nn.functional.one_hot(vq(z).indices.flatten(), 8).float()
        vq.after_step(step)
        sizes = 0.9 * sizes + 0.1 * hits.sum(0)
        sums = 0.9 * sums + 0.1 * hits.T @ z.flatten(0, 1)
    smoothed = (sizes + 1e-5) / (sizes.sum() + 8 * 1e-5) * sizes.sum()
    torch.testing.assert_close(vq.codebook, sums / smoothed[:, None])


@pytest.mark.parametrize("learning", ["ema", "gradient"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_training_lowers_the_error(metric: str, learning: str) -> None:
    keys: Any = {"metric": metric, "learning": learning, "init": "uniform", "rescue": "revive", "rescue_after": 4}
    keys |= {"decay": 0.8} if learning == "ema" else {}
    vq = VQ(codebook_size=8, code_dim=4, **keys)
    z, errors = random(40, 9, 4), []
    optimizer = torch.optim.SGD(vq.parameters(), lr=2.0) if learning == "gradient" else None
    for step in range(40):
        losses = vq(z).losses
        errors.append(float(losses["commitment"]))
        if optimizer:
            optimizer.zero_grad()
            sum(losses.values(), torch.zeros(())).backward()
            optimizer.step()
        vq.after_step(step)
    assert errors[-1] < 0.8 * errors[0]


def test_losses_are_weighted_mean_squares_with_the_gradient_on_one_side_each() -> None:
    vq = build(learning="gradient", commitment=0.25)
    z = random(2, 9, 4, seed=1).requires_grad_()
    z_q, _, losses = vq(z)
    torch.testing.assert_close(losses["commitment"], 0.25 * mse_loss(z, z_q))
    torch.testing.assert_close(losses["codebook"], mse_loss(z, z_q))
    assert torch.autograd.grad(losses["commitment"], vq.codebook, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(losses["codebook"], z, allow_unused=True)[0] is None


@pytest.mark.parametrize("learning", ["ema", "gradient"])
def test_cosine_codes_have_unit_length_and_ignore_the_length_of_features(learning: str) -> None:
    vq = build(metric="cosine", learning=learning)
    z = random(2, 9, 4, seed=1)
    small, large = vq(z), vq(100 * z)
    assert torch.equal(small.indices, large.indices)
    torch.testing.assert_close(small.z_q.norm(dim=-1), torch.ones(2, 9))


def test_initialise_places_codes_by_kmeans_once() -> None:
    vq = VQ(codebook_size=8, code_dim=4)
    assert not vq.initialised
    vq.initialise(random(6, 9, 4))
    codes = vq.codebook.clone()
    assert vq.initialised
    vq.initialise(random(6, 9, 4, seed=1))
    assert torch.equal(vq.codebook, codes)


def test_uniform_codes_lie_within_one_over_k_and_need_no_batch() -> None:
    vq = VQ(codebook_size=8, code_dim=4, metric="euclidean", init="uniform")
    assert vq.initialised and vq.codebook.abs().max() <= 1 / 8 and vq.codebook.std() > 0.05


def test_seed_decides_the_initial_codes() -> None:
    first, again, other = (build(seed=seed).codebook for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("learning", ["ema", "gradient"])
def test_idle_codes_move_to_features_after_the_given_steps_and_stay_there(learning: str) -> None:
    vq = build(learning=learning, rescue="revive", rescue_after=3)
    with torch.no_grad():
        vq.codebook[5] = 100.0
    vq.restart_training_state()
    z = random(6, 9, 4)
    for step in range(2):
        vq(z)
        vq.after_step(step)
        assert vq.codebook[5].min() > 90
    vq(z)
    vq.after_step(2)
    assert torch.cdist(vq.codebook[5:6], z.flatten(0, 1)).min() < 1e-3
    assert (vq(z).indices == 5).any()
    vq.after_step(3)
    assert vq.codebook[5].abs().max() < 10  # the old mean did not take it back


def test_without_revival_idle_codes_stay_idle() -> None:
    vq = build(rescue=None)
    vq.codebook[5] = 100.0
    vq.restart_training_state()
    for step in range(5):
        vq(random(6, 9, 4))
        vq.after_step(step)
    assert vq.codebook[5].min() > 90


def test_a_revived_code_is_left_alone_for_as_long_again() -> None:
    vq = build(rescue="revive", rescue_after=3)
    vq.codebook[5] = 100.0
    vq.restart_training_state()
    ages = []
    for step in range(7):
        vq(random(6, 9, 4) if step < 3 else torch.full((1, 1, 4), 50.0))
        vq.after_step(step)
        ages.append(int(vq.age_steps[5]))
    assert ages[:5] == [1, 2, 0, 1, 2]


def test_farthest_rows_do_not_depend_on_order_or_on_how_a_batch_is_split() -> None:
    codes, rows = torch.randint(0, 5, (60,), generator=torch.Generator().manual_seed(0)), random(60, 3)
    errors = rows.square().sum(1).round()  # rounded: many ties
    whole = farthest(codes, errors, rows, 7)
    shuffled = torch.randperm(60)
    for part in (shuffled[:7], shuffled[:0]):
        rest = torch.tensor([i for i in shuffled.tolist() if i not in part.tolist()])
        halves = [farthest(codes[i], errors[i], rows[i], 7) for i in (part, rest)]
        assert all(torch.equal(a, b) for a, b in zip(whole, farthest(*join(*halves), 7), strict=True))
    assert all(errors[codes == code].max() == error for code, error, _ in zip(*whole, strict=True))


def test_idle_codes_go_to_the_worst_clusters_one_each() -> None:
    far = Farthest(torch.tensor([0, 2, 3]), torch.tensor([1.0, 2.0, 0.0]), torch.tensor([[1.0], [2.0], [3.0]]))
    moved, rows = relocate(torch.tensor([4, 5, 6]), torch.tensor([9.0, 0, 5.0, 0, 0, 0, 0]), far)
    assert moved.tolist() == [4, 5] and rows.flatten().tolist() == [1.0, 2.0]


def test_features_pass_unquantized_until_init_after_and_k_means_sees_them_then() -> None:
    quantizer = VQ(codebook_size=4, code_dim=3, init_after=2)
    z = torch.randn(2, 5, 3)
    for step in range(2):
        assert torch.equal(quantizer(z).z_q, quantizer.normalise(z))
        quantizer.after_step(step)
    quantizer.initialise(z)
    assert quantizer(z).indices.unique().numel() > 1
    assert quantizer.initialised


def test_rarely_used_codes_move_where_features_are_crowded() -> None:
    quantizer = VQ(codebook_size=2, code_dim=2, init="uniform", rescue="revive", rescue_after=2, rescue_below=0.5)
    quantizer.codebook.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    angles = torch.cat([torch.linspace(-0.5, 0.5, 99), torch.tensor([3.14159])])
    z = torch.stack([angles.cos(), angles.sin()], -1)[None]
    for step in range(4):
        quantizer(z)
        quantizer.after_step(step)
    assert (quantizer.codebook[1] @ torch.tensor([1.0, 0.0])) > 0


def test_a_codebook_that_few_codes_of_serve_starts_again_by_k_means() -> None:
    vq = VQ(
        codebook_size=8,
        code_dim=4,
        metric="euclidean",
        init="uniform",
        rescue="kmeans",
        rescue_after=2,
        rescue_below=0.9,
    )
    vq.codebook.copy_(torch.eye(8, 4) * 100)
    vq.codebook[0] = 0  # takes every feature
    z = random(6, 9, 4)
    for step in range(2):
        assert vq.initialised
        vq(z)
        vq.after_step(step)
    assert not vq.initialised  # the training stage initialises from the next batch
    vq.initialise(z)
    assert len(vq(z).indices.unique()) == 8
    for step in range(2, 6):
        vq(z)
        vq.after_step(step)
        assert vq.initialised


def test_features_that_do_not_count_take_codes_and_move_none() -> None:
    counted = torch.zeros(2, 9, dtype=torch.bool)
    counted[:, ::2] = True
    z = random(2, 9, 4, seed=1)
    vq, alone = (build(rescue="revive", rescue_after=1) for _ in range(2))
    found = vq(z, counted)
    assert torch.equal(found.z_q, vq.codes(found.indices))
    alone(z[:, ::2])
    for quantizer in (vq, alone):
        quantizer.after_step(0)
    assert all(torch.equal(a, b) for a, b in zip(vq.state_dict().values(), alone.state_dict().values(), strict=True))


def test_k_means_sees_the_features_that_count() -> None:
    z, counted = random(6, 9, 4), torch.zeros(6, 9, dtype=torch.bool)
    counted[:, :6] = True
    vq, alone = (VQ(codebook_size=8, code_dim=4) for _ in range(2))
    vq.initialise(z, counted & False)
    assert not vq.initialised
    vq.initialise(z, counted)
    alone.initialise(z[:, :6])
    assert torch.equal(vq.codebook, alone.codebook)
