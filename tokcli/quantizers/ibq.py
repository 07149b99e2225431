"""Index back-propagation quantization: every code gets a gradient, through a softmax over all of them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tokcli import distributed
from tokcli.data.randomness import generator
from tokcli.device import full_precision
from tokcli.quantizers.quantizer import CodebookSize, Quantized, Quantizer, mean_square
from tokcli.quantizers.search import rows_at_once

EPS = 1e-5  # beside the mean assignment's probabilities, as in the authors' code: some are 0


class IBQ(Quantizer):
    """Shi et al., arXiv 2412.02692, section 3: the one-hot index has the gradient of the softmax over z C^T.

    Terms, weights, temperature and first codebook are those of the authors' code (SEED-Voken, IndexPropagationQuantize and
    the configuration of 16,384 codes). Differs from it: all in float32, and the mean assignment is that of all ranks.
    Matrices of features x codes are made a part at a time, and again in the backward pass, so that none is kept.

    Args:
        codebook_size: number of codes k.
        code_dim: width d of a code.
        double: weight of the MSE between features and codes whose gradient reaches both: the features, and all codes through
            the index (double quantization).
        commitment: weight of the MSE of features to their (constant) codes.
        codebook: weight of the MSE of codes to their (constant) features.
        entropy: weight of the entropy term: mean entropy of each feature's assignment, minus entropy of the mean assignment over
            all ranks.
        temperature: temperature of the assignment in that term; the index uses 1.
        seed: seed of the initial codebook, drawn from N(0, 1).
    """

    def __init__(
        self,
        *,
        codebook_size: CodebookSize,
        code_dim: PositiveInt,
        double: NonNegativeFloat = 1.0,
        commitment: NonNegativeFloat = 1.0,
        codebook: NonNegativeFloat = 0.25,
        entropy: NonNegativeFloat = 0.05,
        temperature: PositiveFloat = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__(codebook_size, code_dim)
        start = torch.randn(codebook_size, code_dim, generator=generator(seed, "codebook"), device="cpu")
        self.codebook = nn.Parameter(start.to(self.initialised.device))
        self.weights = {"double": double, "commitment": commitment, "codebook": codebook}
        self.entropy, self.temperature = entropy, temperature

    def quantize(self, z: Float[Tensor, "b n d"]) -> Quantized:
        """The code of the greatest product; terms `double`, `commitment`, `codebook` and, in train mode, `entropy`."""
        flat = z.flatten(0, 1)
        rows = rows_at_once(self.codebook)
        run: Callable[[Tensor], Any] = self._part
        if len(flat) > rows and torch.is_grad_enabled():
            run = partial(checkpoint, self._part, use_reentrant=False, preserve_rng_state=False)
        q, indices, each, uses = zip(*(run(part) for part in flat.split(rows)), strict=True)
        z_q, found = torch.cat(q), torch.cat(indices)
        hard = F.embedding(found, self.codebook)
        losses = {
            "double": mean_square(z_q, flat),
            "commitment": mean_square(flat, hard.detach()),
            "codebook": mean_square(hard, flat.detach()),
        }
        losses = {name: self.weights[name] * term for name, term in losses.items()}
        if self.training and self.entropy:
            mean = distributed.mean_over_ranks(sum(uses, torch.zeros_like(uses[0])), len(flat))
            own = sum(each, torch.zeros_like(each[0])) / max(len(flat), 1)
            losses["entropy"] = self.entropy * (own + (mean * (mean + EPS).log()).sum())
        return Quantized(z_q.view(z.shape), found.view(z.shape[:2]), losses)

    def codes(self, indices: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape d"]:
        """The code of each index in [0, k)."""
        return F.embedding(indices.long(), self.codebook.float())

    def _part(
        self, z: Float[Tensor, "m d"]
    ) -> tuple[Float[Tensor, "m d"], Int64[Tensor, " m"], Float[Tensor, ""], Float[Tensor, " k"]]:
        """Codes, indices, and summed over these features: the entropies of their assignments, and these themselves."""
        with full_precision(z.device):
            logits = z @ self.codebook.T  # (m, k)
            indices = logits.argmax(1)
            # the value of the code, and the gradient of (one-hot + softmax - constant softmax) @ codebook
            through = logits.softmax(1) @ self.codebook.detach()
            q = F.embedding(indices, self.codebook) + (through - through.detach())
        if not (self.training and self.entropy):
            return q, indices, logits.new_zeros(()), logits.new_zeros(self.codebook_size)
        log_p = (logits / self.temperature).log_softmax(1)
        p = log_p.exp()
        return q, indices, -(p * log_p).sum(), p.sum(0)
