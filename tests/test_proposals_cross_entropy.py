"""Chunked cross-entropy: value and gradients of the plain one, without its memory."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tokcli.data.token_batches import TokenBatches
from tokcli.data.token_store import TokenStore, merge, write_shard
from tokcli.proposals import PROPOSALS, cross_entropy
from tokcli.proposals.cross_entropy import LARGEST, head_cross_entropy, likeliest

M, D, K = 23, 8, 31


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    features = torch.randn(M, D, generator=g, dtype=dtype).requires_grad_()
    head = torch.randn(K, D, generator=g, dtype=dtype).requires_grad_()
    return features, head, torch.randint(K, (M,), generator=g), torch.rand(M, generator=g).round(decimals=2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [1, 5, 22])
def test_chunks_have_the_value_and_gradients_of_the_whole(
    rows: int, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for largest in (rows * K, M * K):
        monkeypatch.setitem(LARGEST, "cpu", largest)
        features, head, targets, weights = inputs(torch.float32)
        loss, plain = head_cross_entropy(features, head, targets, weights, smoothing=smoothing)
        (3 * loss).backward()
        found.append((loss.detach(), plain, features.grad, head.grad))
    for chunked, whole in zip(*found, strict=True):
        assert torch.allclose(chunked, whole, atol=1e-5, rtol=1e-5)
    assert not found[0][1].requires_grad


@pytest.mark.parametrize("largest", [4 * K, M * K])
def test_it_is_the_smoothed_cross_entropy_of_torch(largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LARGEST, "cpu", largest)
    features, head, targets, weights = inputs(torch.float32)
    loss, plain = head_cross_entropy(features, head, targets, weights, smoothing=0.1)
    theirs = torch.nn.functional.cross_entropy(features @ head.T, targets, reduction="none", label_smoothing=0.1)
    assert torch.allclose(loss, (theirs * weights).sum(), rtol=1e-5)
    assert torch.allclose(
        plain, torch.nn.functional.cross_entropy(features @ head.T, targets, reduction="none"), atol=1e-5
    )


def test_a_large_codebook_is_never_held_as_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    matmul = Tensor.__matmul__

    def watched(a: Tensor, b: Tensor) -> Tensor:
        nonlocal largest
        out = matmul(a, b)
        largest = max(largest, out.numel())
        return out

    monkeypatch.setattr(Tensor, "__matmul__", watched)
    k = 1 << 18
    features, head = torch.randn(64, 2, requires_grad=True), torch.randn(k, 2, requires_grad=True)
    loss, _ = head_cross_entropy(features, head, torch.full((64,), k - 1), torch.ones(64))
    loss.backward()
    assert 0 < largest <= cross_entropy.LARGEST["cpu"] < 64 * k


def test_no_gradients_are_made_where_none_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LARGEST, "cpu", 2 * K)
    features, head, targets, weights = inputs(torch.float32)
    with torch.no_grad():
        loss, plain = head_cross_entropy(features, head, targets, weights)
    assert not loss.requires_grad and torch.isfinite(plain).all()
    fixed = head.detach()
    loss, _ = head_cross_entropy(features, fixed, targets, weights)
    loss.backward()
    assert features.grad is not None and fixed.grad is None


def test_under_bf16_it_is_computed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LARGEST, "cpu", 2 * K)
    features, head, targets, weights = inputs(torch.float32)
    exact = head_cross_entropy(features, head, targets, weights).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head_cross_entropy(features, head, targets, weights).loss, exact)


@pytest.mark.parametrize("mode", ["ar", "nar"])
def test_networks_over_2_to_the_18_codes_learn_from_uint32_shards(mode: str, tmp_path: Path) -> None:
    k = 1 << 18
    indices = torch.randint(k, (4, 1, 9), generator=torch.Generator().manual_seed(0))
    indices[0, 0, 0] = k - 1
    write_shard(tmp_path, 0, indices, [-1] * 4, list("abcd"), [[]] * 4, codebook_size=k)
    merge(tmp_path, 1)
    store = TokenStore(tmp_path)
    batch = next(iter(TokenBatches(store, batch_size=4, seed=0)))
    assert store.dtype == np.uint32 and set(batch.indices.flatten().tolist()) == set(indices.flatten().tolist())
    network = PROPOSALS[mode](k, (3, 3), 0, width=4, depth=1, heads=1, mlp_width=4)
    loss = network.loss(batch.indices, batch.labels, batch.seeds)
    loss["loss"].backward()
    assert 4 * 9 * k > cross_entropy.LARGEST["cpu"]  # so it went by chunks
    assert loss["loss" if mode == "ar" else "masked_ce"].item() == pytest.approx(np.log(network.head_rows), abs=1e-3)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_the_likeliest_rows_do_not_depend_on_how_many_logits_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    features, head = torch.randn(9, 4), torch.randn(7, 4)
    expected = (features @ head.T).argmax(-1)
    for held in (1, 14, 1000):
        monkeypatch.setitem(LARGEST, "cpu", held)
        assert torch.equal(likeliest(features, head), expected)


def test_chunks_stay_eager_where_the_rest_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "_in_chunks", cross_entropy._in_chunks)  # so that it is put back
    monkeypatch.setitem(LARGEST, "cpu", 16)
    draw = torch.Generator().manual_seed(0)
    features, head = torch.randn(6, 4, generator=draw), torch.randn(8, 4, generator=draw)
    targets, weights = torch.arange(6), torch.full((6,), 1 / 6)
    eager = head_cross_entropy(features, head, targets, weights).loss
    PROPOSALS["ar"](8, (1, 2), 0, width=4, depth=1, heads=1, mlp_width=4).prepare_compile()
    assert cross_entropy._in_chunks is not cross_entropy._chunked
    compiled = torch.compile(lambda x: 2 * head_cross_entropy(x, head, targets, weights).loss, backend="aot_eager")
    features.requires_grad_()
    compiled(features).backward()
    assert torch.allclose(compiled(features), 2 * eager) and features.grad is not None
    assert cross_entropy._in_chunks is not cross_entropy._chunked
