"""The pre-norm transformer that encoders and decoders share (Dosovitskiy et al. 2021, section 3.1), and its attention.

As in BEiT, queries and values have a bias and keys have none (a key bias adds the same to all scores of a
query and does nothing). Weights start from a normal of standard deviation 0.02, cut at two deviations; the
two projections that write into the residual stream of block l are divided by sqrt(2 l), so that its variance
does not grow with depth.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tokcli.errors import TokError

Grid = tuple[int, int]  # rows, columns of patches


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise TokError(
                "heads",
                "must divide the width",
                got=f"{heads} heads, width {width}",
                next="Set heads to a divisor of the width",
            )
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
        """Tokens mixed over the sequence."""
        b, n, w = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = F.linear(x, self.qkv.weight, bias).view(b, n, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(attend(q, k, v).transpose(1, 2).reshape(b, n, w))


class Block(nn.Module):
    """Attention and a GELU MLP, each behind a LayerNorm and added to the residual stream."""

    hidden_layer = True  # what `optim.name: muon` trains the matrices of

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp_in, self.mlp_out = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
        """Tokens after attention and MLP."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x)))))


class Trunk(nn.Module):
    """Positions, an optional class token, blocks and a final LayerNorm; tokens of a grid in and out.

    Args:
        grid: rows and columns the position table is made for; other grids get it resized (bicubic).
        width: channels of a token.
        depth: number of blocks.
        heads: attention heads per block; must divide the width.
        mlp_ratio: hidden width of the MLP, as a multiple of the width.
        dropout: share of values dropped where a block adds to the residual stream, in train mode.
        class_token: put a learnt token with a position of its own before the grid, and drop it at the end.
    """

    def __init__(
        self, grid: Grid, width: int, depth: int, heads: int, mlp_ratio: float, dropout: float, class_token: bool
    ) -> None:
        super().__init__()
        self.grid = grid
        self.class_token = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        self.positions = nn.Parameter(torch.zeros(1, class_token + grid[0] * grid[1], width))
        blocks = [Block(width, heads, mlp_ratio, dropout) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        start_weights(self)
        for parameter in (self.class_token, self.positions):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)
        with torch.no_grad():
            for number, block in enumerate(blocks, 1):
                for layer in (block.attention.out, block.mlp_out):
                    layer.weight.div_(math.sqrt(2 * number))

    def forward(self, x: Float[Tensor, "b n w"], grid: Grid | None = None) -> Float[Tensor, "b n w"]:
        """Tokens in row-major order of `grid` (default: the grid of the position table)."""
        extra = 0 if self.class_token is None else 1
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
        x = x + self.positions_at(grid or self.grid)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, extra:]

    def positions_at(self, grid: Grid) -> Float[Tensor, "1 n w"]:
        """The position table, class token's included, resized to a grid."""
        if grid == self.grid:
            return self.positions
        extra = self.positions.shape[1] - self.grid[0] * self.grid[1]
        image = self.positions[:, extra:].unflatten(1, self.grid).permute(0, 3, 1, 2)
        resized = F.interpolate(image.float(), size=grid, mode="bicubic", align_corners=False)
        return torch.cat([self.positions[:, :extra], resized.flatten(2).transpose(1, 2).to(self.positions)], 1)


def task_layers(width: int, out: int) -> nn.Sequential:
    """Linear-tanh-Linear, the head of VQ-KD's networks (Peng et al. 2022)."""
    head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out))
    start_weights(head)
    return head


def start_weights(module: nn.Module) -> None:
    """Linear and convolution weights from the truncated normal, biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


LONGEST = 512  # tokens up to which the matrix of weights is small beside everything else


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(e)) v, each query seeing itself and earlier keys only where `causal`; `dropout` is the share of weights dropped.

    q, k, v and the result are float (b, h, n, e). They are not declared so, because a checked declaration cannot be compiled.

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
