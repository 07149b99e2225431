"""Index back-propagation quantization: every code gets a gradient, through a softmax over all of them."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from tokcli import distributed
from tokcli.data.randomness import generator
from tokcli.quantizers.quantizer import Quantized, Quantizer, mean_square


class IBQ(Quantizer):
    """Shi et al., arXiv 2412.02692, section 3.2: the one-hot index has the gradient of the softmax over z C^T.

    Training keeps matrices of features x codes, unlike any other quantizer here: mind the memory with large codebooks.

    Args:
        codebook_size: number of codes k.
        code_dim: width d of a code.
        commitment: weight of the MSE of features to their (constant) codes; that of codes to features has weight 1.
        entropy: weight of the term mean entropy of a feature's assignment - entropy of the mean assignment over all ranks.
        seed: of the first codebook.
    """

    def __init__(
        self,
        *,
        codebook_size: int,
        code_dim: int,
        commitment: NonNegativeFloat = 0.25,
        entropy: NonNegativeFloat = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__(codebook_size, code_dim)
        start = torch.randn(codebook_size, code_dim, generator=generator(seed, "codebook"), device="cpu")
        self.codebook = nn.Parameter((start * code_dim**-0.5).to(self.initialised.device))
        self.commitment, self.entropy = commitment, entropy

    def quantize(self, z: Float[Tensor, "b n d"]) -> Quantized:
        """The code of the greatest product; terms `commitment`, `codebook` and, in train mode, `entropy`."""
        flat = z.flatten(0, 1)
        logits = flat @ self.codebook.T  # (m, k)
        indices = logits.argmax(1)
        hard = F.embedding(indices, self.codebook)
        losses = {
            "commitment": self.commitment * mean_square(flat, hard.detach()),
            "codebook": mean_square(hard, flat.detach()),
        }
        q = hard
        if torch.is_grad_enabled():
            soft = logits.softmax(1)
            mixed = soft @ self.codebook
            # hard's value; the gradient of (one-hot + soft - constant soft) @ codebook
            q = hard + mixed - (soft.detach() @ self.codebook)
            q = hard.detach() + (q - q.detach())
            if self.training and self.entropy:
                losses["entropy"] = self.entropy * self._entropy(soft, logits)
        return Quantized(q.view(z.shape), indices.view(z.shape[:2]), losses)

    def codes(self, indices: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape d"]:
        """The code of each index in [0, k)."""
        return F.embedding(indices.long(), self.codebook.float())

    def _entropy(self, soft: Float[Tensor, "m k"], logits: Float[Tensor, "m k"]) -> Float[Tensor, ""]:
        each = -(soft * logits.log_softmax(1)).sum() / max(len(soft), 1)
        mean = distributed.mean_over_ranks(soft.sum(0), len(soft))
        return each + torch.special.xlogy(mean, mean).sum()
