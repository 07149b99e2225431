"""Non-autoregressive proposal network: a bidirectional masked transformer (MaskGIT, arXiv 2202.04200).

Differs from it in the blocks (pre-norm RMSNorm without biases, as the AR network's, where MaskGIT has
BERT's) and in the untied head, which starts from zero. Positions are learned as there: sampling starts from
a canvas of equal mask tokens, which rotary attention could tell apart only by their distances to the class
token.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from tokcli.errors import TokError
from tokcli.proposals.base import Proposal, refuse_nonfinite
from tokcli.proposals.conditions import TextCondition
from tokcli.proposals.confidence import decode_by_confidence
from tokcli.proposals.guidance import guide
from tokcli.proposals.halton import decode_by_halton
from tokcli.proposals.masking import cosine_counts, decoding_counts, random_mask
from tokcli.proposals.noise import Purpose, uniform
from tokcli.proposals.sampling import COMMON_KEYS, Sampling
from tokcli.proposals.transformer import INIT_STD, Transformer
from tokcli.registry import lookup

ORDERS = {"confidence": decode_by_confidence, "halton": decode_by_halton}
MEAN_RATIO = 2 / math.pi  # of cos(pi r / 2) over r ~ U(0, 1)


class MaskedProposal(Proposal):
    """p(masked tokens | class, the other tokens), all at once.

    Its embedding table has the mask's row after the null class. Arguments: see `Proposal`, and
        label_smoothing: probability that the training target spreads over all codes, in [0, 1).
    """

    mode = "nar"
    gated = False
    sampling_keys = COMMON_KEYS | {"steps", "order", "choice_temperature"}

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
        dropout: float = 0.1,
        label_drop: float = 0.1,
        label_smoothing: float = 0.1,
    ) -> None:
        super().__init__(
            codebook_size, grid, classes, text, width=width, depth=depth, heads=heads, mlp_width=mlp_width,
            dropout=dropout, label_drop=label_drop,
        )  # fmt: skip
        if not 0 <= label_smoothing < 1:
            raise TokError("proposal.label_smoothing", "must be at least 0 and under 1", got=f"Got {label_smoothing}")
        self.label_smoothing = label_smoothing
        self.mask_row = self.null_row + 1
        self.embedding = nn.Embedding(self.mask_row + 1, width)
        self.position = nn.Parameter(torch.empty(self.prefix + self.tokens, width))
        nn.init.normal_(self.embedding.weight, std=INIT_STD)
        nn.init.normal_(self.position, std=INIT_STD)
        self.transformer = Transformer(width, depth, heads, mlp_width, dropout, causal=False, gated=False)
        self.head = nn.Linear(width, codebook_size, bias=False)
        nn.init.zeros_(self.head.weight)

    def loss(
        self, indices: Int64[Tensor, "b n"], condition: Shaped[Tensor, "b *c"], seeds: Int64[Tensor, " b"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Label-smoothed cross-entropy of masked tokens ("loss"), and the plain one ("masked_ce").

        The sum is divided by the expected number of masked tokens, not by the batch's own: so it is a mean
        over samples, and the gradients of micro-batches or ranks average to that of the whole batch.
        """
        first = torch.zeros(1, 1, dtype=torch.int64, device=seeds.device)
        counts = cosine_counts(uniform(seeds, Purpose.MASK_RATIO, first)[:, 0], self.tokens)
        mask = random_mask(seeds, counts, self.tokens)
        logits = self._masked_logits(indices, mask, self._prefix(condition, seeds))
        plain = F.cross_entropy(logits.transpose(1, 2), indices, reduction="none")  # (b, n)
        uniform_target = logits.logsumexp(-1) - logits.mean(-1)  # cross-entropy with equal probabilities
        smoothed = torch.lerp(plain, uniform_target, self.label_smoothing)
        return {
            "loss": (smoothed * mask).sum() / (mask.numel() * MEAN_RATIO),
            "masked_ce": (plain.detach() * mask).sum() / mask.sum(),
        }

    def masked_ce(
        self,
        indices: Int64[Tensor, "b n"],
        condition: Shaped[Tensor, "b *c"],
        seeds: Int64[Tensor, " b"],
        ratio: float,
    ) -> Float[Tensor, " b"]:
        """Mean cross-entropy (nats) of each sample's masked tokens, ceil(ratio n) of them chosen by its seed.

        Args:
            ratio: share of masked tokens, in (0, 1].
        """
        if not 0 < ratio <= 1:
            raise TokError("eval.mask_ratio", "must be over 0 and at most 1", got=f"Got {ratio}")
        count = max(1, math.ceil(ratio * self.tokens))
        mask = random_mask(seeds, torch.full_like(seeds, count), self.tokens)
        logits = self._masked_logits(indices, mask, self._prefix(condition))
        return (F.cross_entropy(logits.transpose(1, 2), indices, reduction="none") * mask).sum(1) / count

    def _masked_logits(self, indices: Tensor, mask: Tensor, prefix: Tensor) -> Float[Tensor, "b n k"]:
        return self._logits(self._features(torch.where(mask, self.mask_row, indices), prefix))

    def _features(self, canvas: Tensor, prefix: Tensor) -> Float[Tensor, "b n d"]:
        """Features of the tokens of a canvas of codes and masks."""
        x = torch.cat([prefix, self.embedding(canvas)], dim=1) + self.position
        return self.transformer(x, None)[:, self.prefix :]

    def _logits(self, features: Tensor) -> Float[Tensor, "... k"]:
        """The head, in float32 also under autocast: bfloat16 moves a logit of 10 by up to 0.03."""
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.float(), self.head.weight.float())

    def _check(self, condition: Tensor, sampling: Sampling, known: Tensor) -> None:
        super()._check(condition, sampling, known)
        lookup("order", ORDERS, sampling.order)
        decoding_counts(int((known[0] < 0).sum()), sampling.steps)  # refuses more steps than tokens

    def _generate(self, condition: Tensor, seeds: Tensor, sampling: Sampling, known: Tensor) -> Tensor:
        prefix = self._prefixes(condition, sampling)
        scales = sampling.scales(sampling.steps)
        total = torch.zeros((), device=seeds.device)

        def logits_at(canvas: Tensor, positions: Tensor, step: int) -> Tensor:
            guided = scales[step] != 1.0
            if guided:
                canvas, positions = canvas.repeat(2, 1), positions.repeat(2, 1)
            features = self._features(canvas, prefix[: len(canvas)])
            # The head only where a token is asked for: every row has equally many.
            at = positions[..., None].expand(-1, -1, self.width)
            logits = self._logits(features.gather(1, at))
            if guided:
                logits = guide(logits, scales[step])
            total.add_(logits.sum())
            return logits

        canvas = torch.where(known < 0, self.mask_row, known)
        unknown = (known < 0).nonzero()[:, 1].view(len(known), -1)
        indices = ORDERS[sampling.order](logits_at, canvas, unknown, self.grid, seeds, sampling)
        refuse_nonfinite(total)
        return indices
