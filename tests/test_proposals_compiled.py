"""The compiled path draws what the plain one draws: steps at fixed shapes, what is kept between batches, the compiler itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_proposals_options import GRID, SIZES, K, N, batch, build
from torch import Tensor

from tokcli.proposals import PROPOSALS, Proposal, Sampling, ar
from tokcli.proposals.ar import FixedSteps
from tokcli.proposals.conditions import TextCondition

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "1D": ("ar", {}),
    "2D": ("ar", {"position": "rope-2d", "qk_norm": True}),
    "LlamaGen": ("ar", {"position": "rope-2d-llamagen"}),
    "learned and 2D": ("nar", {"position": "learned+rope-2d"}),
    "learned": ("ar", {"position": "learned", "head": "tied"}),
    "random orders": ("ar", {"random_order": (0.5, 0.75)}),
    "gpt2": ("gpt2", {}),
    "masked": ("nar", {}),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "greedy": {"temperature": 0.0, "cfg_scale": 3.0},
    "guided": {"cfg_scale": 1.75, "top_k": 9, "top_p": 0.92},
    "guided halfway": {"cfg_scale": 2.0, "cfg_interval": (0.0, 0.5)},
    "guided nowhere": {"cfg_scale": 2.0, "cfg_interval": (0.0, 0.01)},
}


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> list[Callable[..., Any]]:
    """torch.compile gives back what it is given, and a list of that; steps look at buckets of 5 positions."""
    given: list[Callable[..., Any]] = []
    monkeypatch.setattr(torch, "compile", lambda f, **_: given.append(f) or f)
    monkeypatch.setattr(ar, "BUCKET", 5)
    return given


def both(network: Proposal, labels: Tensor, seeds: Tensor, known: Tensor | None = None, **keys: Any) -> list[Tensor]:
    """Tokens of the plain path and of the compiled one."""
    return [network.generate(labels, seeds, Sampling(steps=4, compile=on, **keys), known) for on in (False, True)]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_steps_at_fixed_shapes_draw_the_same_tokens(name: str, settings: str, uncompiled: list[Any]) -> None:
    mode, keys = NETWORKS[name]
    network, (_, labels, seeds) = build(mode, **keys), batch(20)
    plain, fixed = both(network, labels, seeds, **SETTINGS[settings])
    assert torch.equal(fixed, plain) and uncompiled


@pytest.mark.parametrize("depth", [0, 1])
def test_captions_and_codes_to_keep_stand_before_the_steps(depth: int, uncompiled: list[Any]) -> None:
    torch.manual_seed(0)
    network = PROPOSALS["ar"](K, GRID, 0, TextCondition(length=6, depth=depth), **SIZES).eval()
    for parameter in network.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    captions, (indices, _, seeds) = torch.randint(1, 50, (20, 6)), batch(20)
    known = torch.where(torch.arange(N) < 4, indices, -1)
    for given in (None, known):
        plain, fixed = both(network, captions, seeds, given, cfg_scale=2.0)
        assert torch.equal(fixed, plain)


def test_a_step_sees_the_filled_slots_and_no_others(uncompiled: list[Any]) -> None:
    network, (_, labels, seeds) = build("ar"), batch(4)
    plain, fixed = both(network, labels, seeds)
    kept = network._made[1].cache
    with torch.inference_mode():
        for layer in kept.kv:
            layer.fill_(1e3)  # another image's
    assert torch.equal(network.generate(labels, seeds, Sampling(compile=True)), plain) and torch.equal(fixed, plain)
    assert network._made[1].cache is kept


def test_shapes_change_with_the_bucket_alone(uncompiled: list[Any]) -> None:
    network, (_, labels, seeds) = build("ar"), batch(3)
    network.generate(labels, seeds, Sampling(compile=True, cfg_scale=2.0, cfg_interval=(0.0, 0.5)))
    assert sorted(network._made[1].runs) == [(3, 10), (3, 15), (6, 5), (6, 10)]


def test_steps_are_kept_for_fewer_rows_and_made_anew_for_more_or_other_weights(uncompiled: list[Any]) -> None:
    network, (_, labels, seeds) = build("ar"), batch(6)

    def made(rows: int) -> FixedSteps:
        plain, fixed = both(network, labels[:rows], seeds[:rows])
        assert torch.equal(plain, fixed)
        return network._made[1]

    first = made(4)
    assert made(2) is first and made(4) is first and made(6) is not first
    last = made(6)
    network.embedding.weight.data = network.embedding.weight.data.clone()
    assert made(6) is not last
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network.generate(labels, seeds, Sampling(compile=True))
    assert network._made[1] is not last and set(network.state_dict()) == set(build("ar").state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2D", "masked"])
def test_the_compiler_s_code_draws_the_same_tokens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ar, "BUCKET", 8)
    mode, keys = NETWORKS[name]
    network, (_, labels, seeds) = build(mode, **keys | {"depth": 1}), batch(4)
    torch._dynamo.utils.counters.clear()
    plain, compiled = both(network, labels, seeds, cfg_scale=2.0)
    assert torch.equal(compiled, plain)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # one for all places and buckets
