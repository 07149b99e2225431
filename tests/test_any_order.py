"""Bits of an image under a masked network: the bound over all orders of its tokens, and its number beside the exact one."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_proposals import livened
from torch import Tensor, nn

from tokcli.errors import TokError
from tokcli.measure.predicting import DRAWS, HeldOut, any_order_nats, judge
from tokcli.metrics.likelihood import bits_per_image
from tokcli.proposals import PROPOSALS, Proposal
from tokcli.proposals.protocol import Judged

CPU = torch.device("cpu")
K = 5


def build(mode: str, grid: tuple[int, int]) -> Proposal:
    torch.manual_seed(0)
    return livened(PROPOSALS[mode](K, grid, 2, width=16, depth=1, heads=2, mlp_width=16), std=0.5)


def chain(network: Any, tokens: Tensor, order: tuple[int, int]) -> Tensor:
    """-log p of two tokens (b, 2), the one at order[0] first, by two passes of a masked network."""
    prefix, total = network._prefix(torch.zeros(len(tokens), dtype=torch.int64)), torch.zeros(len(tokens))
    canvas = torch.full_like(tokens, network.mask_row)
    for place in order:
        log_p = network._logits(network._features(canvas, prefix)).log_softmax(-1)
        total -= log_p[torch.arange(len(tokens)), place, tokens[:, place]]
        canvas[:, place] = tokens[:, place]
    return total


@torch.no_grad()
def test_the_bound_is_the_mean_over_the_orders_of_the_tokens() -> None:
    network, tokens = build("nar", (1, 2)), torch.tensor([[1, 3]])
    exact = (chain(network, tokens, (0, 1)) + chain(network, tokens, (1, 0))) / 2
    many = any_order_nats(network, tokens.expand(4000, -1), torch.zeros(4000, dtype=torch.int64), torch.arange(4000))
    assert many.mean().item() == pytest.approx(exact.item(), rel=0.02)
    p_first, p_second = (chain(network, tokens, order) for order in ((0, 1), (1, 0)))
    assert abs(p_first - p_second) > 0.1  # the orders differ, so that the mean over them is not either


def test_each_number_of_masked_tokens_is_as_likely_and_each_draw_has_its_share() -> None:
    n, seen = 6, []

    def judged(indices: Tensor, condition: Tensor, seeds: Tensor, ratio: Tensor) -> Judged:
        counts = (ratio * n).ceil()
        seen.append(counts)
        return Judged(counts, counts)  # nats a token: as many as are masked

    tokens, seeds = torch.zeros(6000, n, dtype=torch.int64), torch.arange(6000)
    found = any_order_nats(SimpleNamespace(judged=judged), tokens, seeds, seeds)  # type: ignore[arg-type]
    assert found.mean().item() == pytest.approx(n * (n + 1) / 2, rel=0.01)
    assert [(int(c.min()), int(c.max())) for c in seen] == [(1, 2), (2, 3), (4, 5), (5, 6)] and len(seen) == DRAWS
    shares = torch.cat(seen).long().bincount(minlength=n + 1)[1:] / (6000 * DRAWS)
    assert (shares - 1 / n).abs().max() < 0.01


def test_an_image_is_judged_alike_in_any_batch() -> None:
    network, tokens, labels = build("nar", (2, 2)), torch.randint(0, K, (6, 4)), torch.zeros(6, dtype=torch.int64)
    together = any_order_nats(network, tokens, labels, torch.arange(6))
    alone = any_order_nats(network, tokens[4:5], labels[4:5], torch.tensor([4]))
    torch.testing.assert_close(together[4:5], alone)


@pytest.mark.parametrize("mode", ["ar", "nar"])
def test_both_kinds_of_network_report_bits_an_image_of_the_same_scale(mode: str) -> None:
    network = build(mode, (2, 2))
    nn.init.zeros_(network.get_parameter("head.weight"))
    batches = [HeldOut(torch.arange(3), torch.randint(0, K, (3, 4)), torch.zeros(3, dtype=torch.int64))] * 2
    found = judge(network, batches, CPU, mask_ratio=0.5)
    (bits,) = [one for one in found.found if one.what.metric == "bits_per_image"]
    assert bits.value == pytest.approx(4 * math.log2(K)) and (bits.number, bits.of) == (6, "images")


def test_bits_of_an_autoregressive_network_are_the_sum_of_its_tokens() -> None:
    network, tokens = build("ar", (2, 2)), torch.randint(0, K, (3, 4))
    labels = torch.zeros(3, dtype=torch.int64)
    found = judge(network, [HeldOut(torch.arange(3), tokens, labels)], CPU, mask_ratio=0.5).flat
    nats = network.judged(tokens, labels, torch.arange(3), torch.ones(3)).nats
    assert found["bits_per_image"] == pytest.approx(nats.sum(1).mean().item() / math.log(2))
    assert found["proposal_ppl"] == pytest.approx(2 ** (found["bits_per_image"] / 4))


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(TokError, match="not finite"):
        bits_per_image(torch.tensor([1.0, math.nan]))
