"""Halton order: tokens are found in an order that spreads over the image ("Halton Scheduler for Masked Generative Image
Transformer", arXiv 2503.17076, section 3).

Tokens drawn in one step do not see each other. The most confident ones lie side by side, where they depend on each other most;
the points of a low-discrepancy sequence lie far apart. Differs from the paper in the number of tokens a step, which is that of
the confidence order (cosine), so that two orders differ in the order alone.
"""

import functools
from collections.abc import Callable

import torch
from jaxtyping import Int64
from torch import Tensor

from tokcli.proposals.draw import Sampling, draw
from tokcli.proposals.masking import decoding_counts
from tokcli.proposals.noise import Purpose, uniform


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
