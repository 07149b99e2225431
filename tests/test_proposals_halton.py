"""The Halton order, and decoding in it."""

import itertools
import math

import pytest
import torch
from test_proposals_nar import K, N, _batch, network  # noqa: F401  a fixture

from tokcli.proposals import Sampling
from tokcli.proposals.masking import decoding_counts, halton_order
from tokcli.proposals.nar import MaskedProposal
from tokcli.proposals.noise import Purpose, uniform


def test_begins_with_the_points_of_the_sequence() -> None:
    # (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9), (5/8, 7/9) as columns and rows of a 9x8 grid
    assert halton_order((9, 8))[:5] == (3 * 8 + 4, 6 * 8 + 2, 1 * 8 + 6, 4 * 8 + 1, 7 * 8 + 5)


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (3, 2), (8, 8), (16, 16), (24, 24), (12, 20)])
def test_is_a_permutation_of_the_cells(grid: tuple[int, int]) -> None:
    assert sorted(halton_order(grid)) == list(range(grid[0] * grid[1]))


def test_first_positions_lie_farther_apart_than_random_ones() -> None:
    def nearest(cells: list[int]) -> float:
        points = [divmod(c, 16) for c in cells]
        return sum(min(math.dist(a, b) for b in points if b != a) for a in points) / len(points)

    g = torch.Generator().manual_seed(0)
    random = [nearest(torch.randperm(256, generator=g)[:64].tolist()) for _ in range(200)]
    assert nearest(list(halton_order((16, 16))[:64])) > max(random)


def test_decoding_follows_the_order_and_equals_a_plain_reference(network: MaskedProposal) -> None:  # noqa: F811
    _, labels, seeds = _batch(5)
    sampling = Sampling(steps=5, order="halton", temperature=0.9)
    expected = torch.full((5, N), network.mask_row)
    order = list(halton_order((4, 4)))
    for step, (before, left) in enumerate(itertools.pairwise([N, *decoding_counts(N, 5)])):
        with torch.no_grad():
            logits = network._logits(network._features(expected, network._prefix(labels)))
        u = uniform(seeds, Purpose.TOKEN, step * N + torch.arange(N)[None])
        for row, p in itertools.product(range(5), order[N - before : N - left]):
            mass = (logits[row, p] / 0.9).softmax(-1).double().cumsum(0)
            expected[row, p] = int((mass <= u[row, p] * mass[-1]).sum())
    assert torch.equal(network.generate(labels, seeds, sampling), expected) and int(expected.max()) < K
