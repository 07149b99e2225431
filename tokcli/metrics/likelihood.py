"""What a proposal network thinks of held-out tokens: perplexity where it is autoregressive, else cross-entropy."""

import math

from jaxtyping import Float
from torch import Tensor

from tokcli.errors import TokError


def masked_ce(total: float, tokens: int) -> float:
    """Mean cross-entropy in nats of the masked tokens of one mask ratio, which belongs in the name.

    Args:
        total: negative log-likelihood summed over the masked tokens, nats.
        tokens: how many were masked.

    Raises:
        TokError: no tokens, or a sum that is not finite.
    """
    if tokens < 1:
        raise TokError(
            "proposal",
            "no held-out tokens to judge it by",
            next="Give a val split beside the training images, or --tokens",
        )
    if not math.isfinite(total):
        raise TokError("proposal", "its likelihood is not finite", got=f"{total}", next="Check its training log")
    return total / tokens


def proposal_ppl(total: float, tokens: int) -> float:
    """exp(mean token cross-entropy) of an autoregressive proposal: k for a uniform guess over k codes.

    A masked network has no such likelihood: it reports `masked_ce`.

    Args:
        total: negative log-likelihood summed over all tokens, nats.
        tokens: how many; report it beside the number.

    Raises:
        TokError: no tokens, or a sum that is not finite.
    """
    mean = masked_ce(total, tokens)
    return math.exp(mean) if mean < 700 else math.inf


def bits_per_image(nats: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Bits of each image's tokens, on one scale for both kinds of network: lower is better, n log2 k is a uniform guess.

    Args:
        nats: -log p of all tokens of an image given its condition: exact of an autoregressive network, an upper bound of a masked one.

    Raises:
        TokError: no images, or nats that are not finite.
    """
    masked_ce(float(nats.double().sum()), len(nats))
    return nats / math.log(2)


def token_accuracy(correct: int | float, tokens: int) -> float:
    """Share of held-out tokens that were the network's likeliest ones, in [0, 1].

    An autoregressive network is asked for each token given those before it, a masked one for the masked tokens of one ratio.

    Raises:
        TokError: no tokens.
    """
    if tokens < 1:
        raise TokError(
            "proposal",
            "no held-out tokens to judge it by",
            next="Give a val split beside the training images, or --tokens",
        )
    return correct / tokens
