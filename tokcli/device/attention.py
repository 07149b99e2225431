"""Attention for training, by whichever way is fastest where it runs."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LONGEST = 512  # tokens up to which the matrix of weights is small beside everything else


def attend(
    q: Float[Tensor, "b h n e"],
    k: Float[Tensor, "b h n e"],
    v: Float[Tensor, "b h n e"],
    *,
    causal: bool = False,
    dropout: float = 0.0,
) -> Float[Tensor, "b h n e"]:
    """softmax(q k^T / sqrt(e)) v, each query seeing itself and earlier keys only where `causal`; `dropout` is the share of weights dropped.

    On CPUs the fused kernel's backward pass takes 6 times as long in bfloat16 as three plain operators on short sequences
    (65 tokens: 127 ms against 19 ms); without gradients, on GPUs and on long sequences the fused kernel is used.
    """
    if q.device.type != "cpu" or not torch.is_grad_enabled() or q.shape[2] > LONGEST:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, dropout_p=dropout)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return F.dropout(scores.softmax(-1).to(v.dtype), dropout) @ v
