"""Autoregressive proposal network: a Llama over a prefix of condition and codes in raster order.

LlamaGen (arXiv 2406.06525), by default with 1D rotary positions and always with one table for codes and classes, as the Llama
that the official code of arXiv 2411.04406 documents (24 blocks of width 1024, 16 heads, MLP 2816). Whether its tables are of that
network or of GPT-2 is not known.
"""

import contextlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from tokcli.proposals.cross_entropy import head_cross_entropy, likeliest
from tokcli.proposals.draw import GPU_CHUNK, Drawing, Sampling, draw, guide
from tokcli.proposals.noise import Purpose, uniform
from tokcli.proposals.packing import packed
from tokcli.proposals.protocol import Judged, refuse_nonfinite
from tokcli.proposals.transformer import INIT_STD, Cache, Rotation, Window
from tokcli.proposals.transformer_proposal import TransformerProposal
from tokcli.recipe.sample_options import keys_of
from tokcli.recipe.sections import DrawnContext, Span


class AutoregressiveProposal(TransformerProposal):
    """p(token | condition, tokens before it): RMSNorm, SwiGLU, no biases.

    The head's softmax covers the whole vocabulary in training, as in that code (LlamaGen's the codes alone); sampling and judging renormalise over the
    codes, because nothing else can be drawn.

    Args:
        random_order: [from, to], shares of the training between which the probability that an image is shown in a random
            order falls from 1 to 0 (RAR, arXiv 2411.00776, uses 0.5 and 0.75); null: always raster order. Each input
            then carries the position of the token that it predicts. Sampling always uses raster order.
    """

    mode = "ar"
    sampling_keys = keys_of("ar")
    causal = gated = True

    def __init__(self, *supplied: Any, random_order: Span | None = None, **keys: Any) -> None:
        super().__init__(*supplied, **keys)
        self.random_order = random_order
        self.target_position = nn.Parameter(torch.empty(self.tokens, self.width)) if random_order else None
        if self.target_position is not None:
            nn.init.normal_(self.target_position, std=INIT_STD)
        self._made: tuple[object, "FixedSteps"] | None = None

    def loss(
        self,
        indices: Int64[Tensor, "b n"],
        condition: Shaped[Tensor, "b *c"],
        seeds: Int64[Tensor, " b"],
        progress: Float[Tensor, " b"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Mean cross-entropy of the tokens over the whole vocabulary, in nats ("loss"); see `Proposal`."""
        order = None
        if self.random_order is not None and self.training and progress is not None:
            order = self._order(seeds, progress)
            indices = indices.gather(1, order)
        features = self._features(indices[:, :-1], self._prefix(condition, seeds), order)
        weights = torch.full_like(features[..., 0], 1 / indices.numel(), dtype=torch.float32).flatten()
        found = head_cross_entropy(features.flatten(0, 1), self.head_weight(self.head_rows), indices.flatten(), weights)
        return {"loss": found.loss}

    def _order(self, seeds: Tensor, progress: Tensor) -> Int64[Tensor, "b n"]:
        """Which place comes when: raster order, or a random one of the sample's seed."""
        places = torch.arange(self.tokens, device=seeds.device)[None]
        random = uniform(seeds, Purpose.ORDER, places).argsort(dim=1)
        return torch.where(self._shuffled(seeds, progress)[:, None], random, places)

    def _shuffled(self, seeds: Tensor, progress: Tensor) -> Bool[Tensor, " b"]:
        start, stop = self.random_order or (0.0, 1.0)
        share = ((stop - progress) / (stop - start)).clamp(0, 1)
        first = torch.zeros(1, 1, dtype=torch.int64, device=seeds.device)
        return uniform(seeds, Purpose.SHUFFLED, first)[:, 0] < share

    def judged(
        self,
        indices: Int64[Tensor, "b n"],
        condition: Shaped[Tensor, "b *c"],
        seeds: Int64[Tensor, " b"] | None = None,
        mask_ratio: Float[Tensor, " b"] | None = None,
    ) -> Judged:
        """-log p of each token given those before it, in nats, and whether it was the likeliest; nothing is masked."""
        features = self._features(indices[:, :-1], self._prefix(condition)).flatten(0, 1)
        head, weights = self.head_weight(self.codebook_size), torch.zeros(len(features), device=features.device)
        found = head_cross_entropy(features, head, indices.flatten(), weights)
        return Judged(found.plain.view_as(indices), likeliest(features, head).view_as(indices) == indices)

    def _features(
        self, indices: Tensor, prefix: Tensor, order: Int64[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Features that predict token 0 (from the prefix alone) to token m, given the first m tokens.

        With an order, "token i" is the one at place order[:, i].
        """
        x, by = torch.cat([prefix, self.embedding(indices)], dim=1), self._rotation()
        return self._run(x, by, order=order)[:, self.prefix - 1 :]

    def _run(
        self,
        x: Tensor,
        by: Rotation | None,
        start: int | Int64[Tensor, " 1"] = 0,
        cache: Cache | Window | None = None,
        order: Int64[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """The transformer on embeddings of positions from `start` on, whatever tells it where they are put in.

        A tensor says where one position is without saying it to a compiler.
        """
        at, c = start if isinstance(start, Tensor) else slice(start, start + x.shape[1]), self.prefix
        if self.target_position is not None:
            targets = F.pad(self.target_position, (0, 0, c - 1, 0))
            if order is not None:  # all zeros before the position that predicts the first token
                targets = torch.cat([targets[: c - 1].expand(len(x), -1, -1), self.target_position[order]], dim=1)
            x = x + targets[..., at, :]
        slots = None
        if order is not None:
            first = torch.arange(c, device=order.device).expand(len(order), -1)
            slots = torch.cat([first, order[:, :-1] + c], dim=1)
        if self.position is not None:
            x = x + (self.position[at] if slots is None else self.position[slots])
        if by is not None:
            by = by.at(at) if slots is None else by.of(slots)
        return self.transformer(x, by, cache)

    def drawing(self, sampling: Sampling, drawn: int) -> Drawing:
        """One pass a token, over what is cached; with its own copy of everything as long as guidance acts."""
        scales, start = sampling.scales(self.tokens), self.tokens - drawn
        guided = max((i for i, scale in enumerate(scales) if scale != 1.0), default=-1)
        flop = cached = 0.0
        for i in range(start, self.tokens):
            keys, copies = self.prefix + i, 2 if i <= guided else 1
            flop += copies * self.pass_flops(keys if i == start else 1, keys, 1)
            cached += copies * 2 * self.depth * self.width * keys * torch.float32.itemsize
        return Drawing(flop, drawn, cached, self.pass_weights)

    def draw_tokens(self, condition: Tensor, seeds: Tensor, sampling: Sampling, known: Tensor) -> Tensor:
        """One token after the other; keys and values of those before it are cached."""
        prefix, noise, b = self._prefixes(condition, sampling), self._noise(seeds), len(seeds)
        scales, start = sampling.scales(self.tokens), int((known >= 0).all(0).int().cumprod(0).sum())
        guided = max((i for i, scale in enumerate(scales) if scale != 1.0), default=-1)  # the last such position
        indices, total = known.clone(), torch.zeros((), device=known.device)
        given = torch.cat([prefix, self.embedding(known[:, :start].repeat(len(prefix) // b, 1))], dim=1)
        by = self._rotation()
        step: Callable[[Tensor], Tensor]
        if sampling.compile:
            step = self._fixed_steps(len(prefix))
            cache = step.cache
        else:
            cache = self._cache(len(prefix), self.length)
            step = lambda codes: self._after(self.embedding(codes), by, cache)  # noqa: E731
        with contextlib.nullcontext() if sampling.compile else packed(self.transformer, len(prefix)):
            for i in range(start, self.tokens):
                copies = 2 if i <= guided else 1
                if i == start:
                    logits = self._after(given[: copies * b], by, cache)
                else:
                    logits = step(indices[:, i - 1 : i].repeat(copies, 1))
                if copies == 2:
                    logits = guide(logits, scales[i])
                total += logits.sum()
                indices[:, i] = torch.where(known[:, i] < 0, draw(logits, noise[:, i], sampling), known[:, i])
        refuse_nonfinite(total)
        return indices

    def redraw_tokens(
        self, indices: Tensor, mask: Tensor, condition: Tensor, seeds: Tensor, sampling: Sampling, context: DrawnContext
    ) -> Tensor:
        """In one pass over the image's own tokens, or one token after the other with those that stay in between."""
        if context == "drawn":
            return self.draw_tokens(condition, seeds, sampling, torch.where(mask, -1, indices))
        prefix, at, found = self._prefixes(condition, sampling), mask.nonzero(), []
        features = self._features(indices[:, :-1].repeat(len(prefix) // len(indices), 1), prefix)
        scales = torch.tensor(sampling.scales(self.tokens), device=mask.device)
        for places in at.split(max(1, GPU_CHUNK // self.codebook_size)):
            rows, columns = places.unbind(1)
            copies = torch.arange(len(prefix) // len(indices), device=mask.device)[:, None] * len(indices)
            logits = self._logits(features[rows + copies, columns].flatten(0, 1))
            if sampling.guided:
                logits = guide(logits, scales[columns][:, None])
            refuse_nonfinite(logits.sum())
            found.append(draw(logits, self._noise(seeds)[rows, columns], sampling))
        return indices.masked_scatter(mask, torch.cat(found))

    def _cache(self, rows: int, length: int) -> Cache:
        device = self.embedding.weight.device
        return Cache(self.depth, rows, self.heads, length, self.width // self.heads, device)

    def _after(self, x: Float[Tensor, "b n d"], by: Rotation | None, cache: Cache) -> Float[Tensor, "b k"]:
        """Logits of what follows embeddings, which are put after all positions in the cache."""
        logits = self._logits(self._run(x, by, cache.filled, cache)[:, -1], self.codebook_size)
        cache.filled += x.shape[1]
        return logits

    def _fixed_steps(self, rows: int) -> "FixedSteps":
        """Compiled steps after an empty cache; those made before, where they are of these weights, arithmetic and rows."""
        weight = self.embedding.weight
        kind = weight.device.type
        key = weight.data_ptr(), torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        if self._made is None or self._made[0] != key or self._made[1].cache.rows < rows:
            step = partial(torch.compile(self._step, fullgraph=True), self._rotation())
            self._made = key, FixedSteps(step, self._cache(rows, rounded(self.length) + 1))
        steps = self._made[1]
        steps.cache.filled = 0
        return steps

    def _step(
        self, by: Rotation | None, codes: Int64[Tensor, "b 1"], place: Int64[Tensor, " 1"], slots: list[Tensor]
    ) -> Float[Tensor, "b k"]:
        """Logits of what follows codes at a place; see `FixedSteps`."""
        x = self._run(self.embedding(codes), by, place, Window(slots, place))
        return self._logits(x[:, -1], self.codebook_size)

    def _noise(self, seeds: Tensor) -> Tensor:
        positions = torch.arange(self.tokens, device=seeds.device)[None]
        return uniform(seeds, Purpose.TOKEN, positions)


BUCKET = 64


class FixedSteps:
    """An autoregressive network's steps from buffers that stay where they are, on GPUs replayed as CUDA graphs.

    Shapes that do not change are what torch.compile and CUDA graphs need. A step attends over the filled length rounded up to a
    multiple of BUCKET, so that one compiled program serves all of an image and few graphs are recorded.

    Args:
        step: (codes (b, 1), place (1,), each layer's slots (2, b, h, length, e)) -> logits (b, k), and the slots have
            the place's keys and values; the same operations wherever the place is.
        cache: of more than any `rounded` length, or a compiler would make another program for a window that is all of it;
            its batch is the largest that is stepped.
    """

    def __init__(self, step: Callable[[Tensor, Tensor, list[Tensor]], Tensor], cache: Cache) -> None:
        self.step, self.cache, self.device = step, cache, cache.kv[0].device
        self.codes = torch.zeros(cache.rows, 1, dtype=torch.int64, device=self.device)
        self.place = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.runs: dict[tuple[int, int], Callable[[], Tensor]] = {}

    def __call__(self, codes: Int64[Tensor, "b 1"]) -> Float[Tensor, "b k"]:
        """Logits of what follows the codes, which are put after all positions in the cache; good until the next call."""
        rows, length = len(codes), rounded(self.cache.filled + 1)
        self.codes[:rows].copy_(codes)
        self.place.fill_(self.cache.filled)
        if (rows, length) not in self.runs:
            slots = self.cache.first(rows, length)
            for layer in slots:
                torch._dynamo.maybe_mark_dynamic(layer, 3)  # one program for all lengths
            run = partial(self.step, self.codes[:rows], self.place, slots)
            self.runs[rows, length] = _recorded(run) if self.device.type == "cuda" else run
        self.cache.filled += 1
        return self.runs[rows, length]()


def rounded(length: int) -> int:
    """The smallest multiple of BUCKET that is not under a length."""
    return BUCKET * math.ceil(length / BUCKET)


def _recorded(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The CUDA graph of a run whose tensors all stay where they are."""
    aside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):  # compiling and what libraries do the first time have no place in a graph
            run()
    torch.cuda.current_stream().wait_stream(aside)
    # thread_local: `tok sample` makes the last batch's pixels in another thread meanwhile
    with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
        result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
