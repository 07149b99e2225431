"""Cross-entropy of a linear head without all of its logits: 2^18 codes x 24,576 tokens would take 24 GiB, thrice.

Where the logits fit into one chunk they are computed plainly. Where they do not, each chunk's are computed, turned into
their gradient and forgotten in the forward pass, as in "Cut Your Losses" (arXiv 2411.09009) and Liger (arXiv 2410.10989):
three products of matrices as in the plain one, in float32 also under autocast.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

LARGEST = {"cpu": 1 << 22, "cuda": 1 << 27}
"""Logits held at once: 16 MiB, 512 MiB."""


class CrossEntropy(NamedTuple):
    """The weighted sum to minimise, and each token's plain cross-entropy without a gradient, in nats."""

    loss: Float[Tensor, ""]
    plain: Float[Tensor, " m"]


def head_cross_entropy(
    features: Float[Tensor, "m d"],
    head: Float[Tensor, "k d"],
    targets: Int64[Tensor, " m"],
    weights: Float[Tensor, " m"],
    *,
    smoothing: float = 0.0,
) -> CrossEntropy:
    """Sum of weights times the cross-entropy of softmax(features head^T), its targets smoothed.

    Args:
        features, head: any floating type; computed in float32.
        targets: rows of the head.
        weights: of each token, without a gradient.
        smoothing: probability that a target spreads over all rows, in [0, 1).
    """
    rows = _rows(features, head)
    with torch.autocast(features.device.type, enabled=False):
        if len(features) <= rows:
            return _plain(features.float(), head.float(), targets, weights, smoothing)
        return CrossEntropy(*_in_chunks(features, head, targets, weights, smoothing, rows))


def likeliest(features: Float[Tensor, "m d"], head: Float[Tensor, "k d"]) -> Int64[Tensor, " m"]:
    """The row of the head with the largest logit for each feature; arguments as for `head_cross_entropy`."""
    with torch.autocast(features.device.type, enabled=False):
        parts = features.float().split(_rows(features, head))
        return torch.cat([F.linear(part, head.float()).argmax(-1) for part in parts])


def _rows(features: Tensor, head: Tensor) -> int:
    """So many features at once that their logits may be held."""
    return max(1, LARGEST.get(features.device.type, LARGEST["cpu"]) // len(head))


def _plain(features: Tensor, head: Tensor, targets: Tensor, weights: Tensor, smoothing: float) -> CrossEntropy:
    logits = F.linear(features, head)
    plain = F.cross_entropy(logits, targets, reduction="none")
    smoothed = torch.lerp(plain, logits.logsumexp(-1) - logits.mean(-1), smoothing) if smoothing else plain
    return CrossEntropy((smoothed * weights).sum(), plain.detach())


def _chunked(features: Tensor, head: Tensor, targets: Tensor, weights: Tensor, smoothing: float, rows: int) -> Any:
    return _Chunked.apply(features, head, targets, weights, smoothing, rows)


_in_chunks = _chunked


def keep_eager() -> None:
    """Leave the chunks out of what torch.compile makes from now on; to be called before it.

    As a decorator it would import torch._dynamo with every command, which takes longer than all of our own modules.
    """
    global _in_chunks
    _in_chunks = torch.compiler.disable(_chunked)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, head: Tensor, targets: Tensor, weights: Tensor, smoothing: float, rows: int
    ) -> tuple[Tensor, Tensor]:
        wanted = any(ctx.needs_input_grad[:2])
        matrix = head.float()
        to_features = torch.empty_like(features, dtype=torch.float32) if wanted else None
        to_head = torch.zeros_like(matrix) if wanted else None
        total, plain = torch.zeros((), device=features.device), torch.empty(len(features), device=features.device)
        for start in range(0, len(features), rows):
            part = slice(start, start + rows)
            x, at, weight = features[part].float(), targets[part][:, None], weights[part]
            logits = x @ matrix.T
            norm = logits.logsumexp(-1)
            plain[part] = norm - logits.gather(1, at)[:, 0]
            smoothed = torch.lerp(plain[part], norm - logits.mean(-1), smoothing)
            total += (smoothed * weight).sum()
            if to_features is None or to_head is None:
                continue
            # d loss / d logits = weight (softmax - target); the target is 1 - s there and s / k everywhere
            slope = logits.sub_(norm[:, None]).exp_().sub_(smoothing / len(head))
            slope.scatter_add_(1, at, torch.full_like(norm, smoothing - 1)[:, None]).mul_(weight[:, None])
            to_features[part] = slope @ matrix
            to_head.addmm_(slope.T, x)
        ctx.dtypes = (features.dtype, head.dtype)
        if wanted:
            ctx.save_for_backward(to_features, to_head)
        ctx.mark_non_differentiable(plain)
        return total, plain

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        to_features, to_head = ctx.saved_tensors
        first, second = (g * upstream for g in (to_features, to_head))
        return first.to(ctx.dtypes[0]), second.to(ctx.dtypes[1]), None, None, None, None
