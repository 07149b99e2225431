"""From logits to codes: filters, draw, guidance, and the values a sampler refuses."""

import math

import pytest
import torch

from tokcli.errors import TokError
from tokcli.proposals import draw as module
from tokcli.proposals.draw import Sampling, draw, keep_likely
from tokcli.proposals.noise import Purpose, uniform

LOGITS = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()


def _kept(logits: torch.Tensor, top_k: int, top_p: float) -> list[int]:
    return keep_likely(logits, top_k, top_p).isfinite().nonzero()[:, 0].tolist()


@pytest.mark.parametrize(("top_k", "kept"), [(0, 4), (1, 1), (2, 2), (4, 4), (9, 4)])
def test_top_k_keeps_k(top_k: int, kept: int) -> None:
    assert _kept(LOGITS, top_k, 1.0) == list(range(kept))


@pytest.mark.parametrize(("top_p", "kept"), [(0.01, 1), (0.5, 1), (0.51, 2), (0.75, 2), (1.0, 4)])
def test_top_p_keeps_the_code_that_crosses_p(top_p: float, kept: int) -> None:
    assert _kept(LOGITS, 0, top_p) == list(range(kept))


def test_codes_equal_to_the_last_kept_are_kept() -> None:
    assert _kept(LOGITS, 3, 1.0) == [0, 1, 2, 3]
    assert _kept(LOGITS, 0, 0.8) == [0, 1, 2, 3]


def test_top_p_counts_what_top_k_left() -> None:
    # Of 0.5 and 0.25 the first has 2/3 of the probability: enough for 0.6, where of all four it has 1/2.
    assert _kept(LOGITS, 2, 0.6) == [0]
    assert _kept(LOGITS, 0, 0.6) == [0, 1]


def test_filters_equal_a_sort_per_row() -> None:
    torch.manual_seed(0)
    logits = torch.randn(20, 50)
    got = keep_likely(logits, 20, 0.7).isfinite()
    for row, mask in zip(logits, got, strict=True):
        order = row.argsort(descending=True)[:20]
        p = row[order].double().softmax(0)
        last = next(i for i in range(20) if p[: i + 1].sum() >= 0.7)
        assert set(mask.nonzero()[:, 0].tolist()) == set(order[: last + 1].tolist())


def test_draws_follow_the_softmax() -> None:
    u = uniform(torch.zeros(1, dtype=torch.int64), Purpose.TOKEN, torch.arange(40_000)[None])[0]
    codes = draw((2 * LOGITS).expand(40_000, 4), u, Sampling(temperature=2.0))
    shares = codes.bincount(minlength=4) / 40_000
    assert torch.allclose(shares, LOGITS.exp(), atol=0.01)


def test_a_code_of_probability_zero_is_never_drawn() -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf]).expand(4, 5)
    edges = torch.tensor([1e-300, 0.5, 0.5 - 1e-16, 1 - 2.0**-53], dtype=torch.float64)
    assert draw(logits, edges, Sampling()).tolist() == [1, 3, 1, 3]


def test_temperature_zero_takes_the_most_likely() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0], [1.0, 0.0, -1.0]])
    assert draw(logits, torch.full((2,), 0.99).double(), Sampling(temperature=0.0)).tolist() == [1, 0]


def test_the_lowest_temperature_draws_the_most_likely() -> None:
    logits = torch.tensor([[0.0, 1.0, 999.0, 998.0]])
    assert draw(logits, torch.tensor([0.999]).double(), Sampling(temperature=1e-6)).item() == 2


def test_drawing_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits, u = torch.randn(3, 7, 11), torch.rand(3, 7, dtype=torch.float64)
    whole = draw(logits, u, Sampling(top_k=5, top_p=0.9))
    monkeypatch.setattr(module, "CHUNK", 20)
    assert torch.equal(draw(logits, u, Sampling(top_k=5, top_p=0.9)), whole)


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1}, {"temperature": math.nan}, {"temperature": 1e-9}, {"top_p": 0.0},
        {"top_p": 1.1}, {"top_p": math.nan}, {"top_k": -1}, {"cfg_scale": math.inf}, {"cfg_scale": -1.0},
        {"steps": 0}, {"choice_temperature": -1.0}, {"cfg_power": 0.0}, {"cfg_interval": (0.5, 0.5)}, {"cfg_interval": (-0.1, 1.0)},
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_name(bad: dict[str, float]) -> None:
    with pytest.raises(TokError, match=f"^sample.{next(iter(bad))}: "):
        Sampling(**bad)  # type: ignore[arg-type]
