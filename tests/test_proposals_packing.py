"""Packed weights: the same products, only within the block, and a fallback where the operators are missing."""

import pytest
import torch
from test_proposals import WARM, batch, build
from torch import nn

from tokcli.proposals import packing
from tokcli.proposals.packing import packed

needs_onednn = pytest.mark.skipif(
    not packing._available(torch.float32), reason="this build of PyTorch has no such operators"
)


@needs_onednn
def test_products_are_the_same_and_only_packed_inside() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(24, 40, bias=False), nn.Linear(40, 8, bias=False), nn.Linear(8, 3))
    x = torch.randn(5, 1, 24)
    with torch.inference_mode():
        expected = network(x)
        with packed(network, 5):
            assert ["forward" in layer.__dict__ for layer in network] == [True, True, False]
            assert torch.allclose(network(x), expected, atol=1e-6)
            network[0].weight.fill_(0.0)  # it is the copy that is read
            assert torch.allclose(network(x), expected, atol=1e-6)
        assert not any("forward" in layer.__dict__ for layer in network)
        with packed(network, 5):  # a weight that has changed is packed anew
            assert torch.equal(network(x), network[2](torch.zeros(5, 1, 8)))


@needs_onednn
def test_weights_are_packed_once_for_equal_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    network, made, product = nn.Linear(4, 4, bias=False), [], packing._product
    monkeypatch.setattr(packing, "_product", lambda w, rows: made.append(rows) or product(w, rows))
    for rows in (3, 3, 5):
        with packed(network, rows):
            pass
    assert made == [3, 5]


@needs_onednn
def test_an_error_inside_leaves_no_packed_layer() -> None:
    network = nn.Sequential(nn.Linear(4, 4, bias=False))
    with pytest.raises(ZeroDivisionError), packed(network, 2):
        raise ZeroDivisionError
    assert "forward" not in network[0].__dict__


@pytest.mark.skipif(not packing._available(torch.bfloat16), reason="no such operators for bfloat16 on this CPU")
def test_under_autocast_the_copies_are_bfloat16() -> None:
    network, x = nn.Linear(24, 40, bias=False), torch.randn(5, 24)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = network(x)
        with packed(network, 5):
            got = network(x)
    assert got.dtype == torch.bfloat16 and torch.allclose(got, expected, atol=0.02)


@pytest.mark.parametrize("mode", ["ar", "nar"])
def test_without_the_operators_the_same_tokens_are_drawn(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, (_, labels, seeds) = build(mode), batch(16)
    fast = network.generate(labels, seeds, WARM["guided"])
    monkeypatch.setattr(packing, "_available", lambda dtype: False)
    assert torch.equal(network.generate(labels, seeds, WARM["guided"]), fast)
