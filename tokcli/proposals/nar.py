"""Non-autoregressive proposal network: a bidirectional masked transformer (MaskGIT, arXiv 2202.04200).

Differs from it in the blocks (pre-norm RMSNorm without biases, as the AR network's, where MaskGIT has
BERT's) and, by default, in the untied head, which starts from zero. Positions are learned as there: sampling
starts from a canvas of equal mask tokens, which rotary attention can tell apart only by their distances to the
prefix.
"""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from tokcli.proposals.cross_entropy import head_cross_entropy, likeliest
from tokcli.proposals.draw import Drawing, Sampling, guide
from tokcli.proposals.masking import (
    RATIOS,
    RatioName,
    decode_by_confidence,
    decode_by_halton,
    decoding_counts,
    mask_counts,
    random_mask,
)
from tokcli.proposals.noise import Purpose, uniform
from tokcli.proposals.packing import packed
from tokcli.proposals.protocol import Judged, refuse_nonfinite
from tokcli.proposals.transformer_proposal import Position, TransformerProposal
from tokcli.recipe.sample_options import keys_of
from tokcli.recipe.sections import DrawnContext, Share

ORDERS = {"confidence": decode_by_confidence, "halton": decode_by_halton}


class MaskedProposal(TransformerProposal):
    """p(masked tokens | class, the other tokens), all at once.

    Its embedding table has the mask's row after the null class.

    Args:
        label_smoothing: probability that the training target spreads over all codes, in [0, 1).
        mask_ratio: distribution of the share of tokens that are masked in training.
    """

    mode = "nar"
    causal = gated = False
    special_rows = 2
    sampling_keys = keys_of("nar")

    def __init__(
        self,
        *supplied: Any,
        position: Position = "learned",
        dropout: Share = 0.1,
        label_smoothing: Share = 0.1,
        mask_ratio: RatioName = "cosine",
        **keys: Any,
    ) -> None:
        super().__init__(*supplied, position=position, dropout=dropout, **keys)
        self.label_smoothing = label_smoothing
        self.ratio = RATIOS[mask_ratio]
        self.mask_row = self.null_row + 1

    def loss(
        self,
        indices: Int64[Tensor, "b n"],
        condition: Shaped[Tensor, "b *c"],
        seeds: Int64[Tensor, " b"],
        progress: Float[Tensor, " b"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Label-smoothed cross-entropy of masked tokens ("loss"), and the plain one ("masked_ce").

        The sum is divided by the expected number of masked tokens, not by the batch's own: so it is a mean
        over samples, and the gradients of micro-batches or ranks average to that of the whole batch.
        """
        first = torch.zeros(1, 1, dtype=torch.int64, device=seeds.device)
        ratio = self.ratio.of(uniform(seeds, Purpose.MASK_RATIO, first)[:, 0])
        mask = random_mask(seeds, mask_counts(ratio, self.tokens), self.tokens)
        features = self._features(torch.where(mask, self.mask_row, indices), self._prefix(condition, seeds))
        weights = mask.flatten().float()
        found = head_cross_entropy(
            features.flatten(0, 1),
            self.head_weight(self.codebook_size),
            indices.flatten(),
            weights,
            smoothing=self.label_smoothing,
        )
        return {
            "loss": found.loss / (mask.numel() * self.ratio.mean),
            "masked_ce": (found.plain * weights).sum() / weights.sum(),
        }

    def judged(
        self,
        indices: Int64[Tensor, "b n"],
        condition: Shaped[Tensor, "b *c"],
        seeds: Int64[Tensor, " b"],
        mask_ratio: Float[Tensor, " b"],
    ) -> Judged:
        """Mean cross-entropy (nats) of each sample's masked tokens, ceil(ratio n) of them chosen by its seed, and their hits."""
        counts = mask_counts(mask_ratio, self.tokens)
        mask = random_mask(seeds, counts, self.tokens)
        features = self._features(torch.where(mask, self.mask_row, indices), self._prefix(condition)).flatten(0, 1)
        head, weights = self.head_weight(self.codebook_size), mask.flatten().float()
        found = head_cross_entropy(features, head, indices.flatten(), weights)
        hits = (likeliest(features, head) == indices.flatten()) * weights
        nats = found.plain * weights
        return Judged(nats.view_as(indices).sum(1) / counts, hits.view_as(indices).sum(1) / counts)

    def _features(self, canvas: Tensor, prefix: Tensor) -> Float[Tensor, "b n d"]:
        """Features of the tokens of a canvas of codes and masks."""
        x = torch.cat([prefix, self.embedding(canvas)], dim=1)
        if self.position is not None:
            x = x + self.position
        return self.transformer(x, self._rotation())[:, self.prefix :]

    @cached_property
    def _compiled(self) -> Callable[[Tensor, Tensor], Tensor]:
        return torch.compile(self._features, fullgraph=True)

    def check_sampling(self, sampling: Sampling, drawn: int) -> None:
        """Refuse also more steps than tokens to draw."""
        super().check_sampling(sampling, drawn)
        decoding_counts(drawn, sampling.steps)

    def drawing(self, sampling: Sampling, drawn: int) -> Drawing:
        """One pass over all positions a step, twice while guidance acts; order halton asks the head for what it keeps alone."""
        length, flop, before = self.prefix + self.tokens, 0.0, drawn
        for scale, left in zip(sampling.scales(sampling.steps), decoding_counts(drawn, sampling.steps), strict=True):
            asked = before - left if sampling.order == "halton" else before
            flop += (2 if scale != 1.0 else 1) * self.pass_flops(length, length, asked)
            before = left
        return Drawing(flop, sampling.steps, 0.0, self.pass_weights)

    def draw_tokens(self, condition: Tensor, seeds: Tensor, sampling: Sampling, known: Tensor) -> Tensor:
        """From a canvas of masks, some tokens a step in the order that is asked for."""
        prefix = self._prefixes(condition, sampling)
        scales = sampling.scales(sampling.steps)
        total = torch.zeros((), device=seeds.device)

        def logits_at(canvas: Tensor, positions: Tensor, step: int) -> Tensor:
            guided = scales[step] != 1.0
            if guided:
                canvas, positions = canvas.repeat(2, 1), positions.repeat(2, 1)
            features = (self._compiled if sampling.compile else self._features)(canvas, prefix[: len(canvas)])
            # The head only where a token is asked for: every row has equally many.
            rows = torch.arange(len(canvas), device=canvas.device)[:, None]
            logits = self._logits(features[rows, positions], self.codebook_size)
            if guided:
                logits = guide(logits, scales[step])
            total.add_(logits.sum())
            return logits

        canvas = torch.where(known < 0, self.mask_row, known)
        unknown = (known < 0).nonzero()[:, 1].view(len(known), -1)
        rows = len(prefix) * (self.prefix + self.tokens)
        with contextlib.nullcontext() if sampling.compile else packed(self.transformer, rows):
            indices = ORDERS[sampling.order](logits_at, canvas, unknown, self.grid, seeds, sampling)
        refuse_nonfinite(total)
        return indices

    def redraw_tokens(
        self, indices: Tensor, mask: Tensor, condition: Tensor, seeds: Tensor, sampling: Sampling, context: DrawnContext
    ) -> Tensor:
        """All at once given those that stay, or by confidence in steps."""
        steps = 1 if context == "real" else min(sampling.steps, int(mask[0].sum()))
        sampling = replace(sampling, steps=steps, order="confidence")
        return self.draw_tokens(condition, seeds, sampling, torch.where(mask, -1, indices))
