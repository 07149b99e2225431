"""One token after the other at shapes that do not change: what torch.compile and CUDA graphs ask for.

A step attends over the filled length rounded up to a multiple of BUCKET, so that one compiled program serves all of an image and
few graphs are recorded.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tokcli.proposals.transformer import Cache

BUCKET = 64


class FixedSteps:
    """An autoregressive network's steps from buffers that stay where they are, on GPUs replayed as CUDA graphs.

    Args:
        step: (codes (b, 1), place (1,), each layer's slots (2, b, h, length, e)) -> logits (b, k), and the slots have
            the place's keys and values; the same operations wherever the place is.
        cache: of more than any `rounded` length, or a compiler would make another program for a window that is all of it;
            its batch is the largest that is stepped.
    """

    def __init__(self, step: Callable[[Tensor, Tensor, list[Tensor]], Tensor], cache: Cache) -> None:
        self.step, self.cache, self.device = step, cache, cache.kv[0].device
        self.codes = torch.zeros(cache.rows, 1, dtype=torch.int64, device=self.device)
        self.place = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.runs: dict[tuple[int, int], Callable[[], Tensor]] = {}

    def __call__(self, codes: Int64[Tensor, "b 1"]) -> Float[Tensor, "b k"]:
        """Logits of what follows the codes, which are put after all positions in the cache; good until the next call."""
        rows, length = len(codes), rounded(self.cache.filled + 1)
        self.codes[:rows].copy_(codes)
        self.place.fill_(self.cache.filled)
        if (rows, length) not in self.runs:
            slots = self.cache.first(rows, length)
            for layer in slots:
                torch._dynamo.maybe_mark_dynamic(layer, 3)  # one program for all lengths
            run = partial(self.step, self.codes[:rows], self.place, slots)
            self.runs[rows, length] = _recorded(run) if self.device.type == "cuda" else run
        self.cache.filled += 1
        return self.runs[rows, length]()


def rounded(length: int) -> int:
    """The smallest multiple of BUCKET that is not under a length."""
    return BUCKET * math.ceil(length / BUCKET)


def _recorded(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The CUDA graph of a run whose tensors all stay where they are."""
    aside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):  # compiling and what libraries do the first time have no place in a graph
            run()
    torch.cuda.current_stream().wait_stream(aside)
    # thread_local: `tok sample` makes the last batch's pixels in another thread meanwhile
    with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
        result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
