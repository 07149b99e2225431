"""MaskGIT's sampler: each step keeps the most confident tokens (arXiv 2202.04200, section 3.2)."""

from collections.abc import Callable

from jaxtyping import Int64
from torch import Tensor

from tokcli.proposals.draw import Sampling, draw
from tokcli.proposals.masking import decoding_counts
from tokcli.proposals.noise import Purpose, gumbel, uniform


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
