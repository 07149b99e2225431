"""The transformer of the proposal networks: pre-norm blocks, Llama's (arXiv 2302.13971) or GPT-2's."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Real
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tokcli.models.blocks import attend

INIT_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes and options of a transformer.

    Args:
        width, depth, heads, mlp_width: sizes.
        causal: each position sees itself and those before it only.
        gated: SwiGLU MLPs.
        biased: GPT-2's LayerNorm, biases and GELU (tanh form) where others have RMSNorm, none and the exact GELU.
        qk_norm: RMSNorm of each head's queries and keys before positions are put in (arXiv 2302.05442).
        dropout: on each block's two branches.
        embedding_dropout: on what comes in.
        attention_dropout: on attention weights.
        checkpointing: keep each block's input only and compute it again for the gradient.
        scale_residual: start the matrices that write to the residual stream smaller, by sqrt(2 depth).
    """

    width: int
    depth: int
    heads: int
    mlp_width: int
    causal: bool
    gated: bool
    biased: bool = False
    qk_norm: bool = False
    dropout: float = 0.0
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    checkpointing: bool = False
    scale_residual: bool = True

    def norm(self) -> nn.Module:
        """A norm over the width."""
        return nn.LayerNorm(self.width) if self.biased else nn.RMSNorm(self.width, eps=1e-5)


class Rotation(NamedTuple):
    """Cosines and sines of rotary positions, each (..., n, head_dim / 2) float32, ... broadcasting over (b, h)."""

    cos: Tensor
    sin: Tensor

    def at(self, places: slice | Int64[Tensor, " m"]) -> "Rotation":
        """The rotation of some of the positions."""
        return Rotation(self.cos[..., places, :], self.sin[..., places, :])

    def of(self, slots: Int64[Tensor, "b n"]) -> "Rotation":
        """The rotation of other positions in each row of a batch, for all of its heads."""
        return Rotation(self.cos[slots][:, None], self.sin[slots][:, None])


def rotation(positions: Real[Tensor, " n"], head_dim: int) -> Rotation:
    """Rotary angles of positions on a line (arXiv 2104.09864), made per call: meta devices lose buffers."""
    frequencies = 10_000.0 ** (-torch.arange(0, head_dim, 2, device=positions.device) / head_dim)
    angles = positions.float()[..., None] * frequencies
    return Rotation(angles.cos(), angles.sin())


def grid_rotation(places: Real[Tensor, "n 2"], head_dim: int) -> Rotation:
    """Rotary angles of (row, column): half of the pairs turn by the one, half by the other (LlamaGen)."""
    parts = [rotation(places[:, axis], head_dim // 2) for axis in (0, 1)]
    return Rotation(torch.cat([p.cos for p in parts], -1), torch.cat([p.sin for p in parts], -1))


def rotate(x: Float[Tensor, "*b n e"], by: Rotation) -> Float[Tensor, "*b n e"]:
    """Turn the pairs (x_i, x_{i + e/2}), the pairing of Hugging Face's Llama, in float32."""
    first, second = x.float().chunk(2, dim=-1)
    turned = (first * by.cos - second * by.sin, second * by.cos + first * by.sin)
    return torch.cat(turned, dim=-1).to(x.dtype)


class Cache:
    """Keys and values of the positions seen so far, float32, allocated once for `length` positions.

    Attention reads the filled slice, cut by a Python int: on a CPU that beats a fixed shape with a mask. A batch may go on with
    its first rows alone.
    """

    mask = None

    def __init__(self, depth: int, batch: int, heads: int, length: int, head_dim: int, device: torch.device) -> None:
        # Zeros, not whatever was in memory: what a `Window` masks is still multiplied by 0. A tensor a layer: a compiler
        # would see writes to views of one as writes to all of it.
        self.kv = [torch.zeros(2, batch, heads, length, head_dim, device=device) for _ in range(depth)]
        self.filled = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's keys and values (b, h, t, e) after the filled ones; return all of the layer's."""
        stop = self.filled + k.shape[2]
        keys, values = self.kv[layer][:, : len(k), :, :stop]
        keys[:, :, self.filled :].copy_(k)
        values[:, :, self.filled :].copy_(v)
        return keys, values

    @property
    def rows(self) -> int:
        """Of the batch."""
        return self.kv[0].shape[1]

    def first(self, rows: int, length: int) -> list[Tensor]:
        """Each layer's slots (2, rows, h, length, e), views of the cache."""
        return [layer[:, :rows, :, :length] for layer in self.kv]


class Window:
    """The first slots of a cache for one position more: shapes do not depend on how many are filled.

    Args:
        kv: of each layer, see `Cache.first`; slots after the position hold finite numbers.
        place: the position.
    """

    def __init__(self, kv: list[Tensor], place: Int64[Tensor, " 1"]) -> None:
        self.kv, self.place = kv, place
        self.mask = torch.arange(kv[0].shape[3], device=place.device)[None] <= place
        """Which slots (1, length) the position sees: those before it, and itself."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's keys and values (b, h, 1, e) at the place; return all slots of the layer."""
        keys, values = self.kv[layer].index_copy_(3, self.place, torch.stack([k, v]).float())
        return keys, values


class Attention(nn.Module):
    """Multi-head self-attention, causal or not, with optional rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.causal, self.dropout = shape.heads, shape.causal, shape.attention_dropout
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=shape.biased)
        self.out = nn.Linear(shape.width, shape.width, bias=shape.biased)
        self.norms: nn.ModuleList | None = None
        if shape.qk_norm:
            self.norms = nn.ModuleList(nn.RMSNorm(shape.width // shape.heads, eps=1e-5) for _ in "qk")

    def forward(
        self, x: Float[Tensor, "b n d"], by: Rotation | None, cache: Cache | Window | None = None, layer: int = 0
    ) -> Float[Tensor, "b n d"]:
        """Mix the values that each position may see; with a cache, x are the positions after those in it."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, b, h, n, e)
        v = qkv[2]
        qk = qkv[:2]
        if self.norms is not None:
            qk = torch.stack([norm(x) for norm, x in zip(self.norms, qk, strict=True)])
        q, k = (rotate(qk, by) if by is not None else qk).to(v.dtype).unbind()
        if cache is None:
            mixed = attend(q, k, v, causal=self.causal, dropout=self.dropout if self.training else 0.0)
        else:
            k, v = cache.append(layer, k, v)
            # One query in bfloat16 takes 8 times as long as in float32 on a CPU, so this is out of autocast.
            with torch.autocast(x.device.type, enabled=False):
                mixed = F.scaled_dot_product_attention(q.float(), k, v, cache.mask, is_causal=x.shape[1] > 1)
        return self.out(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202) where gated, else GELU between two linears."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gated, self.gelu = shape.gated, nn.GELU("tanh" if shape.biased else "none")
        self.up = nn.Linear(shape.width, (2 if shape.gated else 1) * shape.mlp_width, bias=shape.biased)
        self.out = nn.Linear(shape.mlp_width, shape.width, bias=shape.biased)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Each position by itself."""
        if not self.gated:
            return self.out(self.gelu(self.up(x)))
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with dropout on both branches."""

    hidden_layer = True  # what `optim.name: muon` trains the matrices of

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm = shape.norm()
        self.attention = Attention(shape)
        self.mlp_norm = shape.norm()
        self.mlp = MLP(shape)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(
        self, x: Float[Tensor, "b n d"], by: Rotation | None, cache: Cache | Window | None = None, layer: int = 0
    ) -> Float[Tensor, "b n d"]:
        """Attention, then MLP, each added to the residual stream."""
        x = x + self.dropout(self.attention(self.attention_norm(x), by, cache, layer))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class Transformer(nn.Module):
    """Dropout, `depth` blocks and a last norm: embeddings in, features for the head out.

    Linears start from N(0, 0.02^2); the two that write to the residual stream, where scaled, from 0.02 / sqrt(2 depth)
    (GPT-2), so that the stream's variance does not grow with depth.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.checkpointing = shape.checkpointing
        self.dropout = nn.Dropout(shape.embedding_dropout)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.norm = shape.norm()
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = shape.scale_residual and name.endswith("out.weight")
                nn.init.normal_(parameter, std=INIT_STD / math.sqrt(2 * shape.depth) if residual else INIT_STD)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(
        self, x: Float[Tensor, "b n d"], by: Rotation | None, cache: Cache | Window | None = None
    ) -> Float[Tensor, "b n d"]:
        """Features of each position; a cache gets x's keys and values, and its owner then counts them as filled."""
        x = self.dropout(x)
        again = self.checkpointing and cache is None and torch.is_grad_enabled()
        for layer, block in enumerate(self.blocks):
            x = checkpoint(block, x, by, use_reentrant=False) if again else block(x, by, cache, layer)
        return self.norm(x)
