"""Guidance: the extrapolation, how its scale moves, and that networks are doubled where it acts and nowhere else."""

import math

import pytest
import torch
from test_proposals import WARM, batch, build

from tokcli.errors import TokError
from tokcli.proposals import PROPOSALS, Sampling
from tokcli.proposals.draw import guide, scales
from tokcli.proposals.transformer_proposal import TransformerProposal
from tokcli.sampling.sample_recipe import Sample, sampling_of

MODES = [name for name, one in sorted(PROPOSALS.items()) if issubclass(one, TransformerProposal)]


def test_guidance_extrapolates_from_the_unconditional() -> None:
    c, u = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.allclose(guide(torch.cat([c, u]), 1.75), u + 1.75 * (c - u))
    assert torch.allclose(guide(torch.cat([c, u]), 0.0), u)


def test_the_constant_and_the_linear_schedule() -> None:
    assert scales(4, 3.0) == [3.0, 3.0, 3.0, 3.0]
    assert scales(4, 3.0, "linear") == [1.0, 1.5, 2.0, 2.5]  # 1 + (s / n) (scale - 1)


def test_power_cosine_is_rar_s_at_every_position() -> None:
    published = []
    for position in range(256):  # RAR-B: scale 16, power 2.75
        rise = (1 - math.cos(math.pi * (position / 256) ** 2.75)) / 2
        published.append((16.0 - 1) * rise + 1)
    assert scales(256, 16.0, "power-cosine", 2.75) == pytest.approx(published)
    assert published[0] == 1.0 and 15.99 < published[-1] < 16.0


def test_a_rising_schedule_starts_without_guidance() -> None:
    assert [scales(1, 2.0, schedule) for schedule in ("constant", "linear", "power-cosine")] == [[2.0], [1.0], [1.0]]


def test_an_interval_switches_guidance_off_outside() -> None:
    assert scales(8, 2.0, interval=(0.25, 0.5)) == [1, 1, 2, 2, 1, 1, 1, 1]
    halves = zip(scales(7, 2.0, interval=(0.0, 0.5)), scales(7, 2.0, interval=(0.5, 1.0)), strict=True)
    assert all(a + b == 3 for a, b in halves)  # every step is in one of them


@pytest.mark.parametrize("mode", MODES)
def test_the_batch_is_doubled_until_guidance_ends_and_no_longer(mode: str) -> None:
    network, (_, labels, seeds) = build(mode), batch(3)
    rows: list[int] = []
    network.transformer.register_forward_hook(lambda m, args, out: rows.append(out.shape[0]))
    network.generate(labels, seeds, Sampling(steps=9, cfg_scale=2.0, cfg_interval=(0.0, 0.5)))
    assert rows == [6, 6, 6, 6, 3, 3, 3, 3, 3]  # of 9 middles, 4 are under 0.5


@pytest.mark.parametrize("mode", MODES)
def test_outside_the_interval_pictures_are_those_without_guidance(mode: str) -> None:
    network, (_, labels, seeds) = build(mode), batch(16)
    plain = network.generate(labels, seeds, WARM["plain"])
    never = network.generate(labels, seeds, Sampling(steps=4, cfg_scale=3.0, cfg_interval=(0.0, 0.01)))
    late = network.generate(labels, seeds, Sampling(steps=4, cfg_scale=3.0, cfg_interval=(0.5, 1.0)))
    assert torch.equal(plain, never) and not torch.equal(plain, late)
    if network.mode == "ar":  # positions before the interval are drawn without guidance
        assert torch.equal(plain[:, :4], late[:, :4])


@pytest.mark.parametrize("schedule", ["linear", "power-cosine"])
@pytest.mark.parametrize("mode", MODES)
def test_every_schedule_draws_other_pictures_than_constant(mode: str, schedule: str) -> None:
    network, (_, labels, seeds) = build(mode), batch(16)
    constant = network.generate(labels, seeds, Sampling(steps=4, cfg_scale=3.0))
    moving = network.generate(labels, seeds, Sampling(steps=4, cfg_scale=3.0, cfg_schedule=schedule, cfg_power=2.0))
    assert not torch.equal(constant, moving)


def test_the_old_way_of_a_moving_schedule_is_one_step_ahead() -> None:
    moving = Sample(number=1, cfg_scale=3.0, cfg_schedule="linear")
    assert sampling_of(moving, PROPOSALS["ar"]).scales(4) == [1.0, 1.5, 2.0, 2.5]
    old = Sample(number=1, cfg_scale=3.0, cfg_schedule="linear", cfg_done="after")
    assert sampling_of(old, PROPOSALS["ar"]).scales(4) == [1.5, 2.0, 2.5, 3.0]
    with pytest.raises(TokError, match="cfg_done: cfg_schedule constant does not read it"):
        sampling_of(Sample(number=1, cfg_done="after"), PROPOSALS["ar"])
