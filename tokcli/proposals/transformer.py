"""The transformer of the proposal networks: pre-norm blocks without biases, as Llama's (arXiv 2302.13971)."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Real
from torch import Tensor, nn

from tokcli.attention import attend

INIT_STD = 0.02


class Rotation(NamedTuple):
    """Cosines and sines of rotary positions, each (..., n, head_dim / 2) float32."""

    cos: Tensor
    sin: Tensor

    def at(self, start: int, stop: int) -> "Rotation":
        """The rotation of positions start to stop - 1."""
        return Rotation(self.cos[..., start:stop, :], self.sin[..., start:stop, :])


def rotation(positions: Real[Tensor, " n"], head_dim: int, base: float = 10_000.0) -> Rotation:
    """Rotary angles of positions on a line (arXiv 2104.09864), made per call: meta devices lose buffers."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, device=positions.device) / head_dim)
    angles = positions.float()[..., None] * frequencies
    return Rotation(angles.cos(), angles.sin())


def rotate(x: Float[Tensor, "*b n e"], by: Rotation) -> Float[Tensor, "*b n e"]:
    """Turn the pairs (x_i, x_{i + e/2}), the pairing of Hugging Face's Llama, in float32."""
    first, second = x.float().chunk(2, dim=-1)
    turned = (first * by.cos - second * by.sin, second * by.cos + first * by.sin)
    return torch.cat(turned, dim=-1).to(x.dtype)


class Cache:
    """Keys and values of the positions seen so far, float32, allocated once for `length` positions.

    Attention reads the filled slice, cut by a Python int: on a CPU that beats a fixed shape with a mask.
    """

    def __init__(self, depth: int, batch: int, heads: int, length: int, head_dim: int, device: torch.device) -> None:
        self.kv = torch.empty(depth, 2, batch, heads, length, head_dim, device=device)
        self.filled = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's keys and values (b, h, t, e) after the filled ones; return all of the layer's."""
        stop = self.filled + k.shape[2]
        keys, values = self.kv[layer, 0, :, :, :stop], self.kv[layer, 1, :, :, :stop]
        keys[:, :, self.filled :].copy_(k)
        values[:, :, self.filled :].copy_(v)
        return keys, values

    def keep(self, rows: int) -> None:
        """Go on with the first so many rows of the batch."""
        self.kv = self.kv[:, :, :rows]


class Attention(nn.Module):
    """Multi-head self-attention, causal or not, with optional rotary positions."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Float[Tensor, "b n d"], by: Rotation | None, cache: Cache | None = None, layer: int = 0
    ) -> Float[Tensor, "b n d"]:
        """Mix the values that each position may see; with a cache, x are the positions after those in it."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, b, h, n, e)
        q, k = (rotate(qkv[:2], by) if by is not None else qkv[:2]).unbind()
        v = qkv[2]
        if cache is None:
            mixed = attend(q, k, v, causal=self.causal)
        else:
            k, v = cache.append(layer, k, v)
            # One query in bfloat16 takes 8 times as long as in float32 on a CPU, so this is out of autocast.
            with torch.autocast(x.device.type, enabled=False):
                mixed = F.scaled_dot_product_attention(q.float(), k, v, is_causal=x.shape[1] > 1)
        return self.out(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202) where gated, else GELU between two linears."""

    def __init__(self, width: int, mlp_width: int, *, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        self.up = nn.Linear(width, (2 if gated else 1) * mlp_width, bias=False)
        self.out = nn.Linear(mlp_width, width, bias=False)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Each position by itself."""
        if not self.gated:
            return self.out(F.gelu(self.up(x)))
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with dropout on both branches."""

    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float, *, causal: bool, gated: bool) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=1e-5)
        self.attention = Attention(width, heads, causal=causal)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-5)
        self.mlp = MLP(width, mlp_width, gated=gated)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b n d"], by: Rotation | None, cache: Cache | None = None, layer: int = 0
    ) -> Float[Tensor, "b n d"]:
        """Attention, then MLP, each added to the residual stream."""
        x = x + self.dropout(self.attention(self.attention_norm(x), by, cache, layer))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class Transformer(nn.Module):
    """Dropout, `depth` blocks and a last norm: embeddings in, features for the head out.

    Linears start from N(0, 0.02^2); the two that write to the residual stream have 0.02 / sqrt(2 depth)
    (GPT-2), so that the stream's variance does not grow with depth.
    """

    def __init__(
        self, width: int, depth: int, heads: int, mlp_width: int, dropout: float, *, causal: bool, gated: bool
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_width, dropout, causal=causal, gated=gated) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(width, eps=1e-5)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith("out.weight")
                nn.init.normal_(parameter, std=INIT_STD / math.sqrt(2 * depth) if residual else INIT_STD)

    def forward(
        self, x: Float[Tensor, "b n d"], by: Rotation | None, cache: Cache | None = None
    ) -> Float[Tensor, "b n d"]:
        """Features of each position; a cache is filled with x's keys and values, those of all layers."""
        x = self.dropout(x)
        for layer, block in enumerate(self.blocks):
            x = block(x, by, cache, layer)
        if cache is not None:
            cache.filled += x.shape[1]
        return self.norm(x)
