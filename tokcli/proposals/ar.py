"""Autoregressive proposal network: a Llama over a class token and codes in raster order.

LlamaGen (arXiv 2406.06525), but with 1D rotary positions and one table for codes and classes, as the network
behind the tables of arXiv 2411.04406 (24 blocks of width 1024, 16 heads, MLP 2816).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from tokcli.errors import TokError
from tokcli.proposals.base import Proposal, refuse_nonfinite
from tokcli.proposals.conditions import TextCondition
from tokcli.proposals.guidance import guide
from tokcli.proposals.noise import Purpose, uniform
from tokcli.proposals.sampling import COMMON_KEYS, Sampling, draw
from tokcli.proposals.transformer import INIT_STD, Cache, Rotation, Transformer, rotation


class AutoregressiveProposal(Proposal):
    """p(token | class, tokens before it): RMSNorm, SwiGLU, rotary positions, no biases, untied head.

    The head starts from zero: the first loss is the log of the vocabulary. Its softmax covers the whole
    vocabulary in training, as published; sampling and `nll` renormalise over the codes, because nothing else
    can be drawn. Arguments: see `Proposal`; width / heads must be even.
    """

    mode = "ar"
    gated = True
    sampling_keys = COMMON_KEYS

    def __init__(
        self,
        codebook_size: int,
        grid: tuple[int, int],
        classes: int,
        text: TextCondition | None = None,
        *,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        dropout: float = 0.0,
        label_drop: float = 0.1,
    ) -> None:
        super().__init__(
            codebook_size, grid, classes, text, width=width, depth=depth, heads=heads, mlp_width=mlp_width,
            dropout=dropout, label_drop=label_drop,
        )  # fmt: skip
        if width // heads % 2:
            got = f"Got {width} / {heads}"
            raise TokError("proposal.heads", "width / heads must be even for rotary positions", got=got)
        vocabulary = self.null_row + 1
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=INIT_STD)
        self.transformer = Transformer(width, depth, heads, mlp_width, dropout, causal=True, gated=True)
        self.head = nn.Linear(width, vocabulary, bias=False)
        nn.init.zeros_(self.head.weight)

    def loss(
        self, indices: Int64[Tensor, "b n"], condition: Shaped[Tensor, "b *c"], seeds: Int64[Tensor, " b"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Mean cross-entropy of the tokens over the whole vocabulary, in nats ("loss"); see `Proposal`."""
        features = self._features(indices[:, :-1], self._prefix(condition, seeds))
        logits = self._logits(features, self.head.out_features)
        return {"loss": F.cross_entropy(logits.flatten(0, 1), indices.flatten())}

    def nll(self, indices: Int64[Tensor, "b n"], condition: Shaped[Tensor, "b *c"]) -> Float[Tensor, "b n"]:
        """-log p of each token, in nats; exp of its mean over held-out tokens is `proposal_ppl`."""
        logits = self._logits(self._features(indices[:, :-1], self._prefix(condition)), self.codebook_size)
        return F.cross_entropy(logits.transpose(1, 2), indices, reduction="none")

    def _rotation(self, length: int) -> Rotation:
        positions = torch.arange(length, device=self.head.weight.device)
        return rotation(positions, self.width // self.heads)

    def _features(self, indices: Tensor, prefix: Tensor) -> Float[Tensor, "b n d"]:
        """Features that predict token 0 (from the prefix alone) to token m, given the first m tokens."""
        x = torch.cat([prefix, self.embedding(indices)], dim=1)
        return self.transformer(x, self._rotation(x.shape[1]))[:, self.prefix - 1 :]

    def _logits(self, features: Tensor, rows: int) -> Float[Tensor, "... k"]:
        """The head's first rows, in float32 even under autocast: bfloat16 moves a logit of 10 by 0.03."""
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.float(), self.head.weight[:rows].float())

    def _check(self, condition: Tensor, sampling: Sampling, known: Tensor) -> None:
        super()._check(condition, sampling, known)
        if ((known[0] >= 0).int().diff() > 0).any():  # a code after a place to draw
            raise ValueError("known tokens of an autoregressive network must come first")

    def _generate(self, condition: Tensor, seeds: Tensor, sampling: Sampling, known: Tensor) -> Tensor:
        prefix, noise, b = self._prefixes(condition, sampling), self._noise(seeds), len(seeds)
        length = self.prefix + self.tokens - 1
        by, scales = self._rotation(length), sampling.scales(self.tokens)
        guided = max((i for i, scale in enumerate(scales) if scale != 1.0), default=-1)  # the last such position
        cache = Cache(self.depth, len(prefix), self.heads, length, self.width // self.heads, prefix.device)
        start = int((known[0] >= 0).sum())
        indices, total = known.clone(), torch.zeros((), device=known.device)
        new = torch.cat([prefix, self.embedding(known[:, :start].repeat(len(prefix) // b, 1))], dim=1)
        for i in range(start, self.tokens):
            if i > guided and len(new) > b:
                new = new[:b]
                cache.keep(b)
            x = self.transformer(new, by.at(cache.filled, cache.filled + new.shape[1]), cache)
            logits = self._logits(x[:, -1], self.codebook_size)
            if len(new) > b:
                logits = guide(logits, scales[i])
            total += logits.sum()
            indices[:, i] = draw(logits, noise[:, i], sampling)
            new = self.embedding(indices[:, i : i + 1].repeat(len(new) // b, 1))
        refuse_nonfinite(total)
        return indices

    @torch.no_grad()
    def generate_uncached(
        self, condition: Shaped[Tensor, "b *c"], seeds: Int64[Tensor, " b"], sampling: Sampling
    ) -> Int64[Tensor, "b n"]:
        """`generate`, in eval mode, by running the whole prefix for every token: the cache's reference."""
        prefix, noise = self._prefixes(condition, sampling), self._noise(seeds)
        indices = torch.empty(len(seeds), 0, dtype=torch.int64, device=seeds.device)
        for i, scale in enumerate(sampling.scales(self.tokens)):
            before = indices.repeat(2, 1) if sampling.guided else indices
            logits = self._logits(self._features(before, prefix)[:, -1], self.codebook_size)
            if sampling.guided:
                logits = guide(logits, scale)
            indices = torch.cat([indices, draw(logits, noise[:, i], sampling)[:, None]], dim=1)
        return indices

    def _noise(self, seeds: Tensor) -> Tensor:
        positions = torch.arange(self.tokens, device=seeds.device)[None]
        return uniform(seeds, Purpose.TOKEN, positions)
