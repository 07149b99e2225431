"""SimVQ: a frozen random codebook seen through one learnt linear layer, which moves all codes at once."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from tokcli.data.randomness import generator
from tokcli.quantizers.quantizer import CodebookSize, Quantized, Quantizer, mean_square, straight_through
from tokcli.quantizers.search import nearest


class SimVQ(Quantizer):
    """Zhu et al., arXiv 2411.02038, section 4: codes are C W, with C frozen and W learned by gradient. Euclidean.

    Differs from the authors' code: W starts as the identity, where theirs is torch's linear layer, with its bias and start.
    A gradient through W reaches every code, also those that nothing falls to, so none is left behind.

    Args:
        codebook_size: number of codes k.
        code_dim: width d of a code.
        commitment: weight of the MSE of features to their (constant) codes; that of codes to features has weight 1.
        seed: seed of the frozen codebook.
    """

    basis: Tensor

    def __init__(
        self, *, codebook_size: CodebookSize, code_dim: PositiveInt, commitment: NonNegativeFloat = 0.25, seed: int = 0
    ) -> None:
        super().__init__(codebook_size, code_dim)
        start = torch.randn(codebook_size, code_dim, generator=generator(seed, "codebook"), device="cpu")
        self.register_buffer("basis", (start * code_dim**-0.5).to(self.initialised.device))
        self.weight = nn.Parameter(torch.eye(code_dim))
        self.commitment = commitment

    def table(self) -> Float[Tensor, "k d"]:
        """All codes as they are compared and returned."""
        return self.basis @ self.weight

    def quantize(self, z: Float[Tensor, "b n d"]) -> Quantized:
        """Nearest code, straight-through; terms `commitment` and `codebook`."""
        table = self.table()
        indices = nearest(z.detach().flatten(0, 1), table.detach(), "euclidean").view(z.shape[:2])
        q = F.embedding(indices, table)
        losses = {"commitment": self.commitment * mean_square(z, q.detach()), "codebook": mean_square(q, z.detach())}
        return Quantized(straight_through(z, q), indices, losses)

    def codes(self, indices: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape d"]:
        """The code of each index in [0, k)."""
        return F.embedding(indices.long(), self.table().float())
