"""Counter-based noise: uniform, unrelated between streams, and a function of the sample alone."""

import numpy as np
import torch

from tokcli.proposals.noise import Purpose, gumbel, uniform

COUNTERS = torch.arange(512)[None]


def _mask64(x: int) -> int:
    return x & (1 << 64) - 1


def _mix(x: int) -> int:
    x = _mask64((x ^ x >> 30) * 0xBF58476D1CE4E5B9)
    x = _mask64((x ^ x >> 27) * 0x94D049BB133111EB)
    return x ^ x >> 31


def test_matches_splitmix64_in_python_integers() -> None:
    golden = 0x9E3779B97F4A7C15
    for seed, counter in [(0, 0), (1, 7), (2**63 - 1, 255), (-5, 3)]:
        stream = _mix(_mask64(_mix(_mask64(seed)) + Purpose.TOKEN * golden))
        expected = ((_mix(_mask64(stream + counter * golden)) >> 12) + 0.5) / 2**52
        got = uniform(torch.tensor([seed]), Purpose.TOKEN, torch.tensor([[counter]]))
        assert got.item() == expected


def test_mixer_is_the_published_one() -> None:
    # The first two outputs of SplitMix64 seeded with 1234567, as listed by Rosetta Code.
    golden = 0x9E3779B97F4A7C15
    assert _mix(_mask64(1234567 + golden)) == 6457827717110365317
    assert _mix(_mask64(1234567 + 2 * golden)) == 3203168211198807973


def test_is_uniform_over_many_neighbouring_seeds() -> None:
    u = uniform(torch.arange(512), Purpose.MASK, COUNTERS).numpy().ravel()
    counts, _ = np.histogram(u, bins=256, range=(0, 1))
    chi2 = ((counts - u.size / 256) ** 2 / (u.size / 256)).sum()
    assert 170 < chi2 < 350  # 255 degrees of freedom: mean 255, deviation 22.6
    assert u.min() > 0 and u.max() < 1 and np.unique(u).size == u.size


def test_streams_are_uncorrelated() -> None:
    a = uniform(torch.arange(512), Purpose.MASK, COUNTERS)
    others = {
        "next seed": uniform(torch.arange(512) + 1, Purpose.MASK, COUNTERS),
        "next counter": uniform(torch.arange(512), Purpose.MASK, COUNTERS + 1),
        "other purpose": uniform(torch.arange(512), Purpose.TOKEN, COUNTERS),
        "sign bit": uniform(torch.arange(512) - 2**63, Purpose.MASK, COUNTERS),
    }
    for name, b in others.items():
        r = np.corrcoef(a.numpy().ravel(), b.numpy().ravel())[0, 1]
        assert abs(r) < 0.01, name  # deviation 1 / 512


def test_a_row_does_not_depend_on_its_batch() -> None:
    seeds = torch.tensor([5, -3, 2**62])
    together = uniform(seeds, Purpose.CHOICE, COUNTERS)
    alone = torch.cat([uniform(s[None], Purpose.CHOICE, COUNTERS) for s in seeds.flip(0)]).flip(0)
    assert torch.equal(together, alone)


def test_gumbel_has_its_mean_and_variance() -> None:
    g = gumbel(torch.arange(512), Purpose.CHOICE, COUNTERS)
    assert abs(g.mean().item() - 0.5772) < 0.01
    assert abs(g.var().item() - np.pi**2 / 6) < 0.03
