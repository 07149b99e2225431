"""Chunked cross-entropy: value and gradients of the plain one, without its memory."""

import pytest
import torch
from torch import Tensor

from tokcli.proposals import cross_entropy
from tokcli.proposals.cross_entropy import head_cross_entropy

M, D, K = 23, 8, 31


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    features = torch.randn(M, D, generator=g, dtype=dtype).requires_grad_()
    head = torch.randn(K, D, generator=g, dtype=dtype).requires_grad_()
    return features, head, torch.randint(K, (M,), generator=g), torch.rand(M, generator=g).round(decimals=2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [1, 5, 22])
def test_chunks_have_the_value_and_gradients_of_the_whole(rows: int, smoothing: float) -> None:
    found = []
    for largest in (rows * K, M * K):
        features, head, targets, weights = inputs(torch.float32)
        loss, plain = head_cross_entropy(features, head, targets, weights, smoothing=smoothing, largest=largest)
        (3 * loss).backward()
        found.append((loss.detach(), plain, features.grad, head.grad))
    for chunked, whole in zip(*found, strict=True):
        assert torch.allclose(chunked, whole, atol=1e-5, rtol=1e-5)
    assert not found[0][1].requires_grad


@pytest.mark.parametrize("largest", [4 * K, M * K])
def test_it_is_the_smoothed_cross_entropy_of_torch(largest: int) -> None:
    features, head, targets, weights = inputs(torch.float32)
    loss, plain = head_cross_entropy(features, head, targets, weights, smoothing=0.1, largest=largest)
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


def test_no_gradients_are_made_where_none_are_wanted() -> None:
    features, head, targets, weights = inputs(torch.float32)
    with torch.no_grad():
        loss, plain = head_cross_entropy(features, head, targets, weights, largest=2 * K)
    assert not loss.requires_grad and torch.isfinite(plain).all()
    fixed = head.detach()
    loss, _ = head_cross_entropy(features, fixed, targets, weights, largest=2 * K)
    loss.backward()
    assert features.grad is not None and fixed.grad is None


def test_under_bf16_it_is_computed_in_float32() -> None:
    features, head, targets, weights = inputs(torch.float32)
    exact = head_cross_entropy(features, head, targets, weights, largest=2 * K).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head_cross_entropy(features, head, targets, weights, largest=2 * K).loss, exact)
