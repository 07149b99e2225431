"""The masked network: schedules, masks, what the loss looks at, and MaskGIT's decoding."""

import math
from itertools import pairwise

import pytest
import torch
from test_proposals import livened
from torch import Tensor

from tokcli.errors import TokError
from tokcli.proposals import Sampling
from tokcli.proposals.masking import RATIOS, decode_by_confidence, decoding_counts, mask_counts, random_mask
from tokcli.proposals.nar import MaskedProposal
from tokcli.proposals.noise import Purpose, uniform

K, N = 16, 16


@pytest.fixture
def network() -> MaskedProposal:
    torch.manual_seed(0)
    return livened(MaskedProposal(K, (4, 4), 3, width=16, depth=2, heads=2, mlp_width=24, dropout=0.0))


def masked_logits(network: MaskedProposal, indices: Tensor, mask: Tensor, prefix: Tensor) -> Tensor:
    return network._logits(network._features(torch.where(mask, network.mask_row, indices), prefix))


def _batch(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randint(K, (rows, N)), torch.randint(-1, 3, (rows,)), torch.arange(rows)


def test_decoding_follows_the_cosine() -> None:
    assert decoding_counts(256, 8) == [251, 236, 212, 181, 142, 97, 49, 0]
    assert decoding_counts(256, 1) == [0]


@pytest.mark.parametrize("n", [1, 2, 3, 16, 17, 64, 255, 256])
def test_every_step_finds_a_token(n: int) -> None:
    for steps in range(1, n + 1):
        counts = [n, *decoding_counts(n, steps)]
        assert len(counts) == steps + 1 and counts[-1] == 0
        assert all(a > b for a, b in pairwise(counts))


def test_more_steps_than_tokens_are_refused(network: MaskedProposal) -> None:
    _, labels, seeds = _batch(2)
    with pytest.raises(TokError, match="more steps than the 16 tokens of an image"):
        network.generate(labels, seeds, Sampling(steps=17))


def test_training_counts_run_from_1_to_n() -> None:
    cosine = RATIOS["cosine"].of(torch.tensor([0.0, 0.5, 1 - 1e-7]).double())
    assert mask_counts(cosine, 16).tolist() == [16, 12, 1]


@pytest.mark.parametrize("name", RATIOS)
def test_a_ratio_has_the_mean_that_the_loss_divides_by(name: str) -> None:
    ratio = RATIOS[name]  # type: ignore[index]
    r = (torch.arange(200_000).double() + 0.5) / 200_000
    shares = ratio.of(r)
    assert shares.min() > 0 and shares.max() <= 1 and abs(shares.mean().item() - ratio.mean) < 1e-4
    assert (mask_counts(shares, 16) >= 1).all()


def test_cosine_has_muse_s_density_and_arccos_another() -> None:
    r, x = (torch.arange(100_000).double() + 0.5) / 100_000, torch.linspace(0.1, 0.9, 9).double()
    below = {name: (RATIOS[name].of(r)[:, None] < x).double().mean(0) for name in ("cosine", "arccos")}
    grid = (torch.arange(10_000).double() + 0.5) / 10_000
    muse = (2 / math.pi) * (1 - grid**2) ** -0.5  # its section on masking: the density of the ratio
    integral = torch.stack([muse[grid < upto].sum() / 10_000 for upto in x])
    torch.testing.assert_close(below["cosine"], integral, atol=1e-3, rtol=0)
    torch.testing.assert_close(below["arccos"], 1 - torch.cos(math.pi * x / 2), atol=1e-3, rtol=0)


def test_mage_masks_at_least_half_and_most_often_a_little_more() -> None:
    drawn = RATIOS["truncated-normal"].of(torch.rand(100_000, dtype=torch.float64))
    share = lambda a, b: ((drawn >= a) & (drawn < b)).double().mean().item()  # noqa: E731
    assert share(0, 0.5) == 0
    density = lambda x: math.exp(-(((x - 0.55) / 0.25) ** 2) / 2)  # noqa: E731
    assert abs(share(0.9, 0.91) / share(0.5, 0.51) - density(0.905) / density(0.505)) < 0.1


def test_masks_have_the_asked_size_and_favour_no_position() -> None:
    counts = torch.arange(4000) % N + 1
    mask = random_mask(torch.arange(4000), counts, N)
    assert torch.equal(mask.sum(1), counts)
    assert (mask.double().mean(0) - 8.5 / 16).abs().max() < 0.04


def test_the_network_does_not_see_masked_codes(network: MaskedProposal) -> None:
    indices, labels, seeds = _batch(4)
    mask = random_mask(seeds, torch.full((4,), 6), N)
    other = torch.where(mask, (indices + 1) % K, indices)
    prefix = network._prefix(labels)
    assert torch.equal(masked_logits(network, indices, mask, prefix), masked_logits(network, other, mask, prefix))


def test_the_loss_counts_masked_tokens_only(network: MaskedProposal) -> None:
    indices, labels, seeds = _batch(8)
    network.label_smoothing = 0.0
    ratios = uniform(seeds, Purpose.MASK_RATIO, torch.zeros(1, 1, dtype=torch.int64))[:, 0]
    mask = random_mask(seeds, mask_counts(RATIOS["cosine"].of(ratios), N), N)
    logits = masked_logits(network, indices, mask, network._prefix(labels))
    ce = -logits.log_softmax(-1).gather(-1, indices[..., None])[..., 0]
    got = network.loss(indices, labels, seeds)
    assert torch.allclose(got["masked_ce"], ce[mask].mean())
    assert torch.allclose(got["loss"], ce[mask].sum() / (8 * N * (2 / math.pi)))


def test_label_smoothing_is_that_of_torch(network: MaskedProposal) -> None:
    indices, labels, seeds = _batch(8)
    ratios = uniform(seeds, Purpose.MASK_RATIO, torch.zeros(1, 1, dtype=torch.int64))[:, 0]
    mask = random_mask(seeds, mask_counts(RATIOS["cosine"].of(ratios), N), N)
    logits = masked_logits(network, indices, mask, network._prefix(labels))
    ce = torch.nn.functional.cross_entropy(logits[mask], indices[mask], label_smoothing=0.1, reduction="sum")
    assert torch.allclose(network.loss(indices, labels, seeds)["loss"], ce / (8 * N * (2 / math.pi)))


def test_masked_ce_of_one_ratio_masks_equally_many(network: MaskedProposal) -> None:
    indices, labels, seeds = _batch(4)
    mask = random_mask(seeds, torch.full((4,), 8), N)
    logits = masked_logits(network, indices, mask, network._prefix(labels))
    ce = -logits.log_softmax(-1).gather(-1, indices[..., None])[..., 0]
    half = torch.full((4,), 0.5)
    got = network.judged(indices, labels, seeds, half).nats
    assert torch.allclose(got, (ce * mask).sum(1) / 8) and got.shape == (4,)
    hits = network.judged(indices, labels, seeds, half).hits
    assert torch.equal(hits, ((logits.argmax(-1) == indices) & mask).sum(1) / 8)
    shares = network.judged(indices, labels, seeds, torch.tensor([1 / N, 0.5, 0.5, 1.0])).nats
    assert torch.allclose(shares[1:3], got[1:3]) and torch.allclose(shares[3], network_ce(network, indices, labels)[3])


def network_ce(network: MaskedProposal, indices: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of all tokens where all are masked."""
    logits = masked_logits(network, indices, torch.ones_like(indices, dtype=torch.bool), network._prefix(labels))
    return torch.nn.functional.cross_entropy(logits.mT, indices, reduction="none").mean(1)


def _reference(network: MaskedProposal, label: int, seed: int, sampling: Sampling) -> list[int]:
    """MaskGIT for one image in plain Python: two runs for guidance, the head everywhere, a sum per code."""
    canvas = [network.mask_row] * N
    seeds, every = torch.tensor([seed]), torch.arange(N)[None]
    for step, left in enumerate(decoding_counts(N, sampling.steps)):
        prefixes = [network._prefix(torch.tensor([c])) for c in (label, -1)]
        features = [network._features(torch.tensor([canvas]), c) for c in prefixes]
        conditional, free = network._logits(features[0])[0], network._logits(features[1])[0]
        logits = free + sampling.cfg_scale * (conditional - free)
        u = uniform(seeds, Purpose.TOKEN, step * N + every)[0]
        v = uniform(seeds, Purpose.CHOICE, step * N + every)[0]
        found: dict[int, tuple[float, int]] = {}
        for i in (i for i in range(N) if canvas[i] == network.mask_row):
            p = (logits[i] / sampling.temperature).softmax(-1).double()
            code = next(c for c in range(K) if p[: c + 1].sum() > u[i] * p.sum())
            heat = sampling.choice_temperature * (1 - (step + 1) / sampling.steps)
            noise = -math.log(-math.log(v[i].item()))
            found[i] = (logits[i].log_softmax(-1)[code].item() + heat * noise, code)
        ranked = sorted(found, key=lambda i: -found[i][0])
        for i in ranked[: len(ranked) - left]:
            canvas[i] = found[i][1]
    return canvas


def test_decoding_equals_a_plain_reference(network: MaskedProposal) -> None:
    _, labels, seeds = _batch(6)
    settings = Sampling(steps=5, cfg_scale=2.0, temperature=0.9)
    with torch.no_grad():
        expected = [_reference(network, int(c), int(s), settings) for c, s in zip(labels, seeds, strict=True)]
    assert network.generate(labels, seeds, settings).tolist() == expected


def test_without_noise_the_most_confident_come_first() -> None:
    logits = torch.zeros(1, 4, 3)
    logits[0, :, 1] = torch.tensor([1.0, 4.0, 2.0, 3.0])
    seen = []

    def logits_at(canvas: Tensor, positions: Tensor, step: int) -> Tensor:
        seen.append(positions[0].tolist())
        return logits.gather(1, positions[..., None].expand(-1, -1, 3))

    greedy = Sampling(steps=4, temperature=0.0, choice_temperature=0.0)
    unknown, seeds = torch.arange(4)[None], torch.zeros(1, dtype=torch.int64)
    canvas = decode_by_confidence(logits_at, torch.full((1, 4), 9), unknown, (2, 2), seeds, greedy)
    assert seen == [[0, 1, 2, 3], [0, 2, 3], [0, 2], [0]] and canvas.tolist() == [[1, 1, 1, 1]]


def test_more_choice_temperature_is_another_order(network: MaskedProposal) -> None:
    _, labels, seeds = _batch(16)
    cold = network.generate(labels, seeds, Sampling(steps=8, choice_temperature=0.0))
    assert not torch.equal(cold, network.generate(labels, seeds, Sampling(steps=8, choice_temperature=9.0)))
