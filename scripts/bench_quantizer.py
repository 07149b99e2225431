"""Nearest-code search against its peers: equal indices, time, extra memory. One thread, CPU.

    pip install vector-quantize-pytorch faiss-cpu        # peers; those that are missing are left out, and said
    python scripts/bench_quantizer.py [--vectors 16384] [--repeats 5]

"chunks" is ours with PyTorch's operators alone, "tok" what `tok` uses here: faiss for large narrow codebooks where it is
installed, chunks elsewhere. A last line gives the extra memory at 65,536 codes.

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

from tokcli.quantizers import search as own
from tokcli.quantizers.search import nearest

try:
    import faiss
except ImportError:
    faiss = None  # type: ignore[assignment]
try:
    from vector_quantize_pytorch import VectorQuantize
except ImportError:
    VectorQuantize = None

SHAPES = [(8192, 32), (8192, 256), (16384, 8)]
WIDE = (65536, 32)  # for memory alone
Search = Callable[[Tensor, Tensor], Tensor]


def by_cdist(z: Tensor, codebook: Tensor) -> Tensor:
    return torch.cdist(z, codebook).argmin(1)


def by_expansion(z: Tensor, codebook: Tensor) -> Tensor:
    """|z|^2 + |e|^2 - 2 z.e as one matrix, as in taming-transformers."""
    square = z.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * z @ codebook.T
    return square.argmin(1)


@torch.no_grad()
def by_vector_quantize(z: Tensor, codebook: Tensor) -> Tensor:
    """vector-quantize-pytorch's module in eval mode."""
    module = VectorQuantize(dim=z.shape[1], codebook_size=len(codebook)).eval()
    module._codebook.embed.data.copy_(codebook[None])
    indices: Tensor = module(z[None])[1]
    return indices[0]


def by_faiss(z: Tensor, codebook: Tensor) -> Tensor:
    """faiss's exact index."""
    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatL2(z.shape[1])
    index.add(codebook.numpy())
    return torch.from_numpy(index.search(z.numpy(), 1)[1][:, 0])


def chunks(z: Tensor, codebook: Tensor, metric: own.Metric) -> Tensor:
    """Ours as if faiss were not installed."""
    used, own._faiss = own._faiss, lambda: None  # type: ignore[assignment]
    try:
        return nearest(z, codebook, metric)
    finally:
        own._faiss = used


def chunks_euclidean(z: Tensor, codebook: Tensor) -> Tensor:
    return chunks(z, codebook, "euclidean")


def chunks_cosine(z: Tensor, codebook: Tensor) -> Tensor:
    return chunks(z, codebook, "cosine")


def tok_euclidean(z: Tensor, codebook: Tensor) -> Tensor:
    return nearest(z, codebook, "euclidean")


def tok_cosine(z: Tensor, codebook: Tensor) -> Tensor:
    return nearest(z, codebook, "cosine")


def peers() -> dict[str, Search]:
    """The searches to compare, by name; what is not installed is said and left out."""
    found: dict[str, Search] = {"cdist": by_cdist, "expansion": by_expansion}
    for name, module, search_ in (
        ("vector-quantize-pytorch", VectorQuantize, by_vector_quantize),
        ("faiss", faiss, by_faiss),
    ):
        if module is None:
            print(f"{name}: not installed, left out")
        else:
            found[name] = search_
    own = {"chunks euclidean": chunks_euclidean, "chunks cosine": chunks_cosine}
    return found | own | {"tok euclidean": tok_euclidean, "tok cosine": tok_cosine}


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
    searches = peers()
    for k, d in SHAPES:
        z, codebook = data(options.vectors, k, d)
        times = milliseconds(searches, z, codebook, options.repeats)
        for name, search in searches.items():
            differ, far = wrong(search(z, codebook), z, codebook)
            memory = measure_memory(search, options.vectors, k, d)
            print(
                f"k={k:<6}d={d:<4}{name:<25}{times[name]:7.0f} ms  {times['cdist'] / times[name]:4.1f}x  "
                f"{memory:5.0f} MiB extra  {differ} indices differ, {far} by more than 1e-6"
            )
    k, d = WIDE
    for name in ("cdist", "chunks euclidean", "tok euclidean"):
        memory = measure_memory(searches[name], options.vectors, k, d)
        print(f"k={k:<6}d={d:<4}{name:<25}{memory:6.0f} MiB extra")


if __name__ == "__main__":
    main()
