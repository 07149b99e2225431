"""What a masked network says of a whole image: the order-agnostic bound (Uria et al. 2014; arXiv 2110.02037, section 3).

A network that predicts any tokens from any others is an autoregressive one in every order of the tokens. For the mean over all
orders, -log p(x) is at most n E[mean cross-entropy of m masked tokens], with m uniform in 1 to n and the m tokens at random.
"""

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from tokcli.proposals.noise import Purpose, uniform
from tokcli.proposals.protocol import Proposal

DRAWS = 4
"""Masks of each image, one in each quarter of the numbers of masked tokens: passes over all images."""


def any_order_nats(
    network: Proposal, indices: Int64[Tensor, "b n"], condition: Shaped[Tensor, "b *c"], seeds: Int64[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """An unbiased estimate of the bound on -log p of each image's tokens, in nats, from DRAWS masks of each.

    Args:
        network: of mode nar, in eval mode.
        indices, condition: as in `Proposal.loss`.
        seeds: numbers of the images, which choose the masks.
    """
    n, total = indices.shape[1], torch.zeros(len(indices), dtype=torch.float64, device=indices.device)
    for draw in range(DRAWS):
        at = torch.full((1, 1), draw, device=seeds.device)
        counts = (n * (draw + uniform(seeds, Purpose.MASK_RATIO, at)[:, 0]) / DRAWS).floor() + 1
        ratio = (counts.clamp(max=n) - 0.5) / n  # half a token less: rounding must not make ceil(ratio n) one more
        total += network.judged(indices, condition, seeds, ratio).nats.double()
    return (total * (n / DRAWS)).float()
