"""How many tokens are masked, and which: MaskGIT's schedules (arXiv 2202.04200, section 3.1), TiTok's and MAGE's; and in which order they are decoded.

MaskGIT's sampler (section 3.2) keeps the most confident tokens of each step. Halton order (arXiv 2503.17076, section 3) spreads them over
the image: tokens drawn in one step do not see each other; the most confident ones lie side by side, where they depend on each other
most, and the points of a low-discrepancy sequence lie far apart. Differs from that paper in the number of tokens a step, which is that of
the confidence order (cosine), so that two orders differ in the order alone.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from tokcli.errors import TokError
from tokcli.proposals.draw import Sampling, draw
from tokcli.proposals.noise import Purpose, gumbel, uniform


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
        raise TokError(
            "sample.steps", f"more steps than the {n} tokens of an image", got=f"{steps}", next=f"Take at most {n}"
        )
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


def decode_by_confidence(
    logits_at: Callable[[Tensor, Tensor, int], Tensor],
    canvas: Int64[Tensor, "b n"],
    unknown: Int64[Tensor, "b m"],
    grid: tuple[int, int],
    seeds: Int64[Tensor, " b"],
    sampling: Sampling,
) -> Int64[Tensor, "b n"]:
    """Fill a canvas in `sampling.steps` forwards.

    Confidence is log p(code) + choice_temperature (1 - t / T) Gumbel noise, p from the guided logits before
    temperature and filters: what the network believes, not how it is sampled. Of equals the earlier is kept.

    Args:
        logits_at: (canvas (b, n), positions (b, m), step) -> code logits (b, m, k) float32, guidance included.
        canvas: codes, and the mask's index where they are to be found.
        unknown: the positions of the masks, rising in each row.
        grid: (h, w) of the canvas; not used here.
        seeds: one per row.

    Raises:
        TokError: more steps than unknown tokens.
    """
    n, canvas = canvas.shape[1], canvas.clone()
    for step, left in enumerate(decoding_counts(unknown.shape[1], sampling.steps)):
        logits = logits_at(canvas, unknown, step)
        counters = step * n + unknown
        codes = draw(logits, uniform(seeds, Purpose.TOKEN, counters), sampling)
        if left == 0:
            return canvas.scatter(1, unknown, codes)
        chosen = logits.gather(-1, codes[..., None])[..., 0] - logits.logsumexp(-1)
        heat = sampling.choice_temperature * (1 - (step + 1) / sampling.steps)
        confidence = chosen + heat * gumbel(seeds, Purpose.CHOICE, counters)
        order = confidence.argsort(dim=1, descending=True, stable=True)
        kept, rest = order.split([unknown.shape[1] - left, left], dim=1)
        canvas = canvas.scatter(1, unknown.gather(1, kept), codes.gather(1, kept))
        unknown = unknown.gather(1, rest.sort(dim=1).values)
    raise AssertionError("the last count is 0")


def decode_by_halton(
    logits_at: Callable[[Tensor, Tensor, int], Tensor],
    canvas: Int64[Tensor, "b n"],
    unknown: Int64[Tensor, "b m"],
    grid: tuple[int, int],
    seeds: Int64[Tensor, " b"],
    sampling: Sampling,
) -> Int64[Tensor, "b n"]:
    """Fill a canvas in `sampling.steps` forwards, each at the next positions of the Halton order; arguments as for
    `decode_by_confidence`, `unknown` being the same positions in every row.
    """
    n, missing = canvas.shape[1], set(unknown[0].tolist())
    order = torch.tensor([p for p in halton_order(grid) if p in missing], device=canvas.device)
    canvas = canvas.clone()
    for step, left in enumerate(decoding_counts(len(order), sampling.steps)):
        now, order = order.split([len(order) - left, left])
        at = now.expand(len(canvas), -1)
        codes = draw(logits_at(canvas, at, step), uniform(seeds, Purpose.TOKEN, step * n + at), sampling)
        canvas.scatter_(1, at, codes)
    return canvas


@functools.cache
def halton_order(grid: tuple[int, int]) -> tuple[int, ...]:
    """The cells of a grid (h, w) in raster numbers, in the order in which the Halton sequence of bases 2 (columns) and 3 (rows)
    first enters them.
    """
    height, width = grid
    entered: dict[int, None] = {}
    index = 0
    while len(entered) < height * width:
        index += 1
        column, row = _cell(index, 2, width), _cell(index, 3, height)
        entered.setdefault(row * width + column)
    return tuple(entered)


def _cell(index: int, base: int, cells: int) -> int:
    """Which of so many equal cells of [0, 1) holds the radical inverse of an index; in integers, hence exact."""
    inverse, scale = 0, 1
    while index:
        index, digit = divmod(index, base)
        inverse, scale = inverse * base + digit, scale * base
    return inverse * cells // scale
