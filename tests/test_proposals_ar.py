"""The autoregressive network: published size, causality, cache against no cache, likelihood."""

import pytest
import torch
from test_proposals import livened
from torch import Tensor

from tokcli.proposals import Sampling
from tokcli.proposals.ar import AutoregressiveProposal
from tokcli.proposals.draw import draw, guide
from tokcli.proposals.transformer import rotate, rotation

K, CLASSES = 16, 3


@torch.no_grad()
def uncached(network: AutoregressiveProposal, condition: Tensor, seeds: Tensor, sampling: Sampling) -> Tensor:
    """`generate`, in eval mode, by running the whole prefix for every token: the cache's reference."""
    prefix, noise = network._prefixes(condition, sampling), network._noise(seeds)
    indices = torch.empty(len(seeds), 0, dtype=torch.int64)
    for i, scale in enumerate(sampling.scales(network.tokens)):
        before = indices.repeat(2, 1) if sampling.guided else indices
        logits = network._logits(network._features(before, prefix)[:, -1], network.codebook_size)
        if sampling.guided:
            logits = guide(logits, scale)
        indices = torch.cat([indices, draw(logits, noise[:, i], sampling)[:, None]], dim=1)
    return indices


@pytest.fixture
def network() -> AutoregressiveProposal:
    torch.manual_seed(0)
    return livened(AutoregressiveProposal(K, (4, 8), CLASSES, width=16, depth=2, heads=2, mlp_width=24))


def _batch(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randint(K, (rows, 32)), torch.randint(-1, CLASSES, (rows,)), torch.arange(rows)


def test_published_size_counts_the_published_parameters() -> None:
    with torch.device("meta"):
        big = AutoregressiveProposal(8192, (16, 16), 1000, width=1024, depth=24, heads=16, mlp_width=2816)
    assert sum(p.numel() for p in big.parameters()) == 327_158_784


@pytest.mark.parametrize(
    "settings", [Sampling(), Sampling(cfg_scale=1.75, top_k=9, top_p=0.92), Sampling(temperature=0.0, cfg_scale=3.0)]
)
def test_cache_equals_no_cache_token_for_token(network: AutoregressiveProposal, settings: Sampling) -> None:
    _, labels, seeds = _batch(50)
    cached = network.generate(labels, seeds, settings)
    assert torch.equal(cached, uncached(network, labels, seeds, settings))


def test_a_token_does_not_see_those_after_it(network: AutoregressiveProposal) -> None:
    indices, labels, _ = _batch(4)
    other = indices.clone()
    other[:, 20:] = (other[:, 20:] + 1) % K
    before, after = network.judged(indices, labels).nats, network.judged(other, labels).nats
    assert torch.allclose(before[:, :20], after[:, :20], atol=1e-5)
    assert not torch.allclose(before[:, 21:], after[:, 21:], atol=1e-2)


def test_loss_and_nll_predict_each_token_from_its_prefix(network: AutoregressiveProposal) -> None:
    indices, labels, seeds = _batch(4)
    prefix = network._prefix(labels)
    last = torch.stack([network._features(indices[:, :i], prefix)[:, -1] for i in range(32)], dim=1)
    logits = network._logits(last, network.head_rows)
    loss = network.loss(indices, labels, seeds)["loss"]
    assert torch.allclose(loss, -logits.log_softmax(-1).gather(-1, indices[..., None]).mean(), atol=1e-5)
    nll = -logits[..., :K].log_softmax(-1).gather(-1, indices[..., None])[..., 0]
    assert torch.allclose(network.judged(indices, labels).nats, nll, atol=1e-4)
    hits = network.judged(indices, labels).hits
    assert torch.equal(hits, logits[..., :K].argmax(-1) == indices) and hits.any() and not hits.all()


def test_likelihoods_of_a_token_sum_to_one(network: AutoregressiveProposal) -> None:
    indices, labels, _ = _batch(1)
    every = indices.repeat(K, 1)
    every[:, 31] = torch.arange(K)
    p = (-network.judged(every, labels.repeat(K)).nats[:, 31]).exp()
    assert torch.allclose(p.sum(), torch.tensor(1.0), atol=1e-5)


def test_sampling_draws_from_the_likelihood(network: AutoregressiveProposal) -> None:
    labels, seeds = torch.ones(4000, dtype=torch.int64), torch.arange(4000)
    small = AutoregressiveProposal(K, (1, 1), CLASSES, width=16, depth=2, heads=2, mlp_width=24).eval()
    small.load_state_dict(network.state_dict())
    shares = small.generate(labels, seeds)[:, 0].bincount(minlength=K) / 4000
    p = (-small.judged(torch.arange(K)[:, None], torch.ones(K, dtype=torch.int64)).nats[:, 0]).exp()
    assert torch.allclose(shares, p.detach(), atol=0.03)


def test_the_first_loss_covers_the_whole_vocabulary(network: AutoregressiveProposal) -> None:
    torch.nn.init.zeros_(network.head.weight)  # type: ignore[union-attr]
    indices, labels, seeds = _batch(2)
    loss = network.loss(indices, labels, seeds)["loss"]
    assert torch.allclose(loss, torch.tensor(float(K + CLASSES + 1)).log())
    assert torch.allclose(network.judged(indices, labels).nats, torch.tensor(float(K)).log())


def test_rotary_scores_depend_on_distance_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 8)
    by = rotation(torch.arange(20), 8)
    scores = rotate(q.expand(20, 8), by) @ rotate(k.expand(20, 8), by).T
    assert torch.allclose(scores[3, 1], scores[19, 17], atol=1e-5)
    assert not torch.allclose(scores[3, 1], scores[3, 2], atol=1e-2)
    assert torch.allclose(rotate(q[None], by.at(slice(0, 1))), q[None])
