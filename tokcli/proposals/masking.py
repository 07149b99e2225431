"""How many tokens are masked, and which: MaskGIT's schedules (arXiv 2202.04200, section 3.1), TiTok's and MAGE's."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from tokcli.errors import TokError
from tokcli.proposals.noise import Purpose, uniform


class Ratio(NamedTuple):
    """The share of tokens that are masked, of r uniform in (0, 1), and its mean."""

    of: Callable[[Tensor], Tensor]
    mean: float


MEAN, DEVIATION, LEAST = 0.55, 0.25, 0.5  # of MAGE's normal distribution (arXiv 2211.09117), cut to LEAST..1


def _normal_below(x: float) -> float:
    return math.erfc(-(x - MEAN) / DEVIATION / math.sqrt(2)) / 2


def _truncated_normal(r: Tensor) -> Tensor:
    low, high = _normal_below(LEAST), _normal_below(1)
    z = torch.erfinv(2 * (low + r * (high - low)) - 1) * math.sqrt(2)
    return (MEAN + DEVIATION * z).clamp(LEAST, 1)


def _truncated_mean() -> float:
    density = [math.exp(-(((x - MEAN) / DEVIATION) ** 2) / 2) / math.sqrt(2 * math.pi) for x in (LEAST, 1)]
    return MEAN + DEVIATION * (density[0] - density[1]) / (_normal_below(1) - _normal_below(LEAST))


# cosine: MaskGIT's, and Muse's (arXiv 2301.00704): its density (2/pi) (1 - x^2)^(-1/2) is that of cos(pi r / 2). arccos: TiTok's
# generator's (arXiv 2406.07550, official code), of density (pi/2) sin(pi x / 2). Both have the mean 2/pi.
RatioName = Literal["cosine", "arccos", "linear", "square", "cubic", "root", "truncated-normal"]
RATIOS: dict[RatioName, Ratio] = {
    "cosine": Ratio(lambda r: torch.cos(r * (math.pi / 2)), 2 / math.pi),
    "arccos": Ratio(lambda r: torch.arccos(r) * (2 / math.pi), 2 / math.pi),
    "linear": Ratio(lambda r: 1 - r, 1 / 2),
    "square": Ratio(lambda r: 1 - r**2, 2 / 3),
    "cubic": Ratio(lambda r: 1 - r**3, 3 / 4),
    "root": Ratio(lambda r: 1 - r.sqrt(), 1 / 3),
    "truncated-normal": Ratio(_truncated_normal, _truncated_mean()),
}


def mask_counts(ratio: Float[Tensor, " b"], n: int) -> Int64[Tensor, " b"]:
    """Tokens to mask in training: ceil(ratio n), 1 to n."""
    return (ratio * n).ceil().long().clamp(1, n)


def decoding_counts(n: int, steps: int) -> list[int]:
    """Tokens still masked after each decoding step; strictly falling, the last is 0.

    floor(cos(pi t / 2T) n) after step t of T, clamped to 1..masked - 1 so that every step finds something.

    Raises:
        TokError: more steps than tokens.
    """
    if steps > n:
        raise TokError("sample.steps", f"more steps than the {n} tokens of an image", got=f"{steps}")
    counts, masked = [], n  # 1e-9: a third of the way the cosine is 1/2, which float64 rounds down
    for t in range(1, steps):
        masked = max(1, min(masked - 1, math.floor(math.cos(math.pi * t / (2 * steps)) * n + 1e-9)))
        counts.append(masked)
    return [*counts, 0]


def random_mask(seeds: Int64[Tensor, " b"], counts: Int64[Tensor, " b"], n: int) -> Bool[Tensor, "b n"]:
    """True at `counts` positions of each row, chosen uniformly by the row's seed."""
    noise = uniform(seeds, Purpose.MASK, torch.arange(n, device=seeds.device)[None])
    largest = noise.sort(dim=1).values.gather(1, counts[:, None] - 1)
    return noise <= largest
