"""Time and memory of evaluation: the Fréchet trace against SciPy's sqrtm, neighbours against the usual full matrices.

    python scripts/bench_eval.py [--images 5000] [--width 2048]

Each way runs in a process of its own on one thread, so that its peak memory is its own (read from Linux's /proc). Seconds are
CPU time, which other work on the machine does not lengthen. `prdc` (pip install prdc) is the reference code of Naeem et al. 2020; without it the
same formulas run on scikit-learn's and NumPy's full matrices, as it does.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import torch


def features(images: int, width: int, seed: int) -> np.ndarray:
    """Non-negative, correlated and unevenly scaled, as pooled features are."""
    draw = np.random.RandomState(seed)
    mix = draw.randn(width // 8, width) / (width // 8) ** 0.5
    noise = 0.3 * draw.randn(images, width)
    return np.maximum(draw.randn(images, width // 8) @ mix + noise, 0).astype(np.float32)


def covariances(images: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = (np.cov(features(images, width, seed).astype(np.float64), rowvar=False) for seed in (0, 1))
    return first, second


def our_trace(images: int, width: int) -> Callable[[], Any]:
    from tokcli.metrics.fid import trace_sqrt

    a, b = covariances(images, width)
    return lambda: trace_sqrt(a, b)


def scipy_trace(images: int, width: int) -> Callable[[], Any]:
    from scipy.linalg import sqrtm

    a, b = covariances(images, width)
    return lambda: float(np.trace(sqrtm(a @ b)).real)


def our_neighbours(images: int, width: int) -> Callable[[], Any]:
    from tokcli.metrics.neighbours import coverage, density, neighbours, precision, recall

    real, fake = (torch.from_numpy(features(images, width, seed)) for seed in (0, 1))

    def run() -> list[float]:
        found = neighbours(real, fake)
        return [precision(found), recall(found), density(found), coverage(found)]

    return run


def usual_neighbours(images: int, width: int) -> Callable[[], Any]:
    from sklearn.metrics import pairwise_distances

    real, fake = features(images, width, 0), features(images, width, 1)

    def run() -> list[float]:
        found = []
        for k in (3, 5):
            own = [np.partition(pairwise_distances(x), k, axis=-1)[:, k] for x in (real, fake)]
            between = pairwise_distances(real, fake)
            if k == 3:
                found += [(between < own[0][:, None]).any(0).mean(), (between < own[1][None]).any(1).mean()]
            else:
                found += [(between < own[0][:, None]).sum(0).mean() / k, (between.min(1) < own[0]).mean()]
        return [float(x) for x in found]

    return run


def prdc_neighbours(images: int, width: int) -> Callable[[], Any]:
    from prdc import compute_prdc

    real, fake = features(images, width, 0), features(images, width, 1)

    def run() -> list[float]:
        by_3, by_5 = (compute_prdc(real, fake, nearest_k=k) for k in (3, 5))
        return [float(x) for x in (by_3["precision"], by_3["recall"], by_5["density"], by_5["coverage"])]

    return run


def _memory(kind: str) -> int:
    """KiB that this process holds (VmRSS), or has held since its peak was last forgotten (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(kind)))


def _measure(make: Callable[..., Any], images: int, width: int, answers: Any) -> None:
    torch.set_num_threads(1)
    run = make(images, width)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak that making the input reached
    before, started = _memory("VmRSS"), time.process_time()
    value = run()
    seconds = time.process_time() - started
    answers.put((seconds, (_memory("VmHWM") - before) / 1024, value))


def measured(make: Callable[..., Any], images: int, width: int) -> tuple[float, float, Any]:
    """CPU seconds, peak MiB above what the inputs take, and the answer, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_measure, args=(make, images, width, answers))
    process.start()
    found: tuple[float, float, Any] = answers.get()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--width", type=int, default=2048)
    given = parser.parse_args()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "numpy", "scipy", "scikit-learn"))
    print(f"one thread, float64, {versions}; CPU seconds, MiB above the inputs")
    for title, images in (("full rank", given.images), ("rank deficient", given.width // 2)):
        print(f"trace of (S1 S2)^1/2, {images} images of width {given.width}, {title}")
        for name, make in (("ours", our_trace), ("scipy sqrtm", scipy_trace)):
            seconds, memory, value = measured(make, images, given.width)
            print(f"  {name:<24}{seconds:8.2f} s {memory:8.0f} MiB   {value:.10f}", flush=True)
    print(f"precision, recall, density, coverage, {given.images} and {given.images} images of width {given.width}")
    ways = [("ours", our_neighbours), ("full matrices", usual_neighbours), ("prdc", prdc_neighbours)]
    for name, make in ways:
        if name == "prdc" and not _installed("prdc"):
            print("  prdc: not installed")
            continue
        seconds, memory, value = measured(make, given.images, given.width)
        print(f"  {name:<24}{seconds:8.2f} s {memory:8.0f} MiB   {[round(x, 4) for x in value]}", flush=True)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
