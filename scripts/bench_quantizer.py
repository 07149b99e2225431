"""Nearest-code search against torch.cdist: equal indices, time, extra memory. One thread, CPU.

    python scripts/bench_quantizer.py [--vectors 16384] [--repeats 5]

All run in this process on the same data, alternating; the first call of each is a warm-up and is not timed.
The extra memory is the growth of the peak resident size during one call in a fresh process.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from tokcli.quantizers.search import nearest

SHAPES = [(8192, 32), (8192, 256), (16384, 8)]
Search = Callable[[Tensor, Tensor], Tensor]


def by_cdist(z: Tensor, codebook: Tensor) -> Tensor:
    return torch.cdist(z, codebook).argmin(1)


def euclidean(z: Tensor, codebook: Tensor) -> Tensor:
    return nearest(z, codebook, "euclidean")


def cosine(z: Tensor, codebook: Tensor) -> Tensor:
    return nearest(z, codebook, "cosine")


def data(vectors: int, k: int, d: int) -> tuple[Tensor, Tensor]:
    """Unit vectors, for which both metrics order codes alike."""
    generator = torch.Generator().manual_seed(0)
    z, codebook = torch.randn(vectors, d, generator=generator), torch.randn(k, d, generator=generator)
    return torch.nn.functional.normalize(z, dim=1), torch.nn.functional.normalize(codebook, dim=1)


def peak() -> float:
    """Greatest resident size of this process so far, in MiB (Linux; getrusage would count the parent's)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def extra_memory(search: Search, vectors: int, k: int, d: int, out: "multiprocessing.Queue[float]") -> None:
    torch.set_num_threads(1)
    z, codebook = data(vectors, k, d)
    search(z[:64], codebook[:64])  # libraries load outside the measurement
    before = peak()
    search(z, codebook)
    out.put(peak() - before)


def measure_memory(search: Search, vectors: int, k: int, d: int) -> float:
    """MiB, in a fresh process: a peak never falls again."""
    context = multiprocessing.get_context("spawn")
    out: multiprocessing.Queue[float] = context.Queue()
    process = context.Process(target=extra_memory, args=(search, vectors, k, d, out))
    process.start()
    result = out.get()
    process.join()
    return result


def milliseconds(searches: dict[str, Search], z: Tensor, codebook: Tensor, repeats: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in searches}
    for repeat in range(repeats + 1):
        for name, search in searches.items():
            start = time.perf_counter()
            search(z, codebook)
            if repeat > 0:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def wrong(found: Tensor, z: Tensor, codebook: Tensor) -> tuple[int, int]:
    """How many indices differ from a float64 search, and how many of them by more than 1e-6 (squared)."""
    differ = far = 0
    for start in range(0, len(z), 512):
        part = z[start : start + 512].double()
        square = codebook.double().square().sum(1) - 2 * part @ codebook.double().T
        index = found[start : start + 512, None]
        differ += int((square.argmin(1, keepdim=True) != index).sum())
        far += int((square.gather(1, index) - square.min(1, keepdim=True).values > 1e-6).sum())
    return differ, far


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=5, help="timed calls per search; the median is printed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, python {platform.python_version()}, CPU {platform.machine()}, 1 thread")
    print(f"{options.vectors} vectors, float32, medians of {options.repeats}; errors against a float64 search")
    searches: dict[str, Search] = {"cdist": by_cdist, "euclidean": euclidean, "cosine": cosine}
    for k, d in SHAPES:
        z, codebook = data(options.vectors, k, d)
        times = milliseconds(searches, z, codebook, options.repeats)
        for name, search in searches.items():
            differ, far = wrong(search(z, codebook), z, codebook)
            memory = measure_memory(search, options.vectors, k, d)
            print(
                f"k={k:<6}d={d:<4}{name:<10}{times[name]:7.0f} ms  {times['cdist'] / times[name]:4.1f}x  "
                f"{memory:5.0f} MiB extra  {differ} indices differ, {far} by more than 1e-6"
            )


if __name__ == "__main__":
    main()
