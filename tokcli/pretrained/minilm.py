"""BERT's encoder (arXiv 1810.04805) at the size of all-MiniLM-L6-v2, with Hugging Face's names of weights."""

from typing import Any

from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, LAYERS, HEADS, MLP, WORDS, LONGEST, EPS = 384, 6, 12, 1536, 30522, 512, 1e-12


class _Parts(nn.Module):
    """Modules under the given names."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)


def _written(inputs: int) -> nn.Module:
    return _Parts(dense=nn.Linear(inputs, WIDTH), LayerNorm=nn.LayerNorm(WIDTH, eps=EPS))


class _Layer(nn.Module):
    """Attention, then MLP, each added and then normalised."""

    output: Any

    def __init__(self) -> None:
        super().__init__()
        qkv = _Parts(**{name: nn.Linear(WIDTH, WIDTH) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"self": qkv, "output": _written(WIDTH)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, MLP)})
        self.output = _written(MLP)

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        qkv: Any = self.attention["self"]
        out: Any = self.attention["output"]
        heads = [layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (qkv.query, qkv.key, qkv.value)]
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=given[:, None, None])
        x = out.LayerNorm(x + out.dense(mixed.transpose(1, 2).flatten(2)))
        return self.output.LayerNorm(x + self.output.dense(F.gelu(self.intermediate["dense"](x))))


class Bert(nn.Module):
    """Word pieces to features."""

    encoder: Any

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = _Parts(
            word_embeddings=nn.Embedding(WORDS, WIDTH),
            position_embeddings=nn.Embedding(LONGEST, WIDTH),
            token_type_embeddings=nn.Embedding(2, WIDTH),
            LayerNorm=nn.LayerNorm(WIDTH, eps=EPS),
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Layer() for _ in range(LAYERS))})

    def forward(self, numbers: Int64[Tensor, "b t"], given: Bool[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Features of each word piece, which sees those that are `given`."""
        e = self.embeddings
        x = e.word_embeddings(numbers) + e.position_embeddings.weight[: numbers.shape[1]]
        x = e.LayerNorm(x + e.token_type_embeddings.weight[0])
        for layer in self.encoder["layer"]:
            x = layer(x, given)
        return x
