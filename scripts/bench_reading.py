"""Images per second of `tok tokenize` and `tok eval` end to end, against torchvision's ImageFolder and DataLoader doing the same.

    python scripts/bench_reading.py [--images 1200] [--size 64] [--rounds 3] [--what tokenize,free,eval,png,memory]

Both sides read the same JPEGs of 500x375 with 1 and with 2 worker processes, run the same small tokenizer in batches of 64, and
write or measure the same. The peer resizes with Pillow (bicubic, antialiased) and makes floats in its workers: torchvision's
Resize, CenterCrop and ToTensor. `free` is a device that computes for nothing: the network's answer is zeros, so that what is left is
reading. All ways take turns, so that load on the machine meets all of them; ratios are of medians, the first line is 1. CPU seconds are
of all processes. The commands run in this process: starting Python and importing torch is not counted.

`png` is the writing of samples by 1 and 2 threads. `memory` is the peak of `tok tokenize` in a process of its own, over crops and
shards, with the free network.
"""

import argparse
import contextlib
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
import torchvision
from bench_images import photos
from click.testing import CliRunner
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize, ToTensor

from tokcli import loading
from tokcli.artifact.opening import open_artifact
from tokcli.cli import cli
from tokcli.data import sample_store
from tokcli.data.reading import processes
from tokcli.data.token_store import write_shard
from tokcli.measure.tokenizing import Counts
from tokcli.metrics.reported import PerImage
from tokcli.models import Tokenizer
from tokcli.pictures import to_uint8

BATCH = 64
WORKERS = (1, 2)
DISTINCT = 64  # photos; the others are links to them


def tok(*arguments: object) -> Path:
    result = CliRunner().invoke(cli, [*map(str, arguments), "--threads", "1"])
    if result.exception is not None:
        raise result.exception
    return Path(result.stdout.strip())


def zeros(tokenizer: Tokenizer, images: Tensor) -> Tensor:
    """The tokens of a network that costs nothing."""
    h, w = tokenizer.grid(images.shape[-1])
    return torch.zeros(len(images), h * w, dtype=torch.int64)


def free() -> contextlib.AbstractContextManager[object]:
    return mock.patch.object(Tokenizer, "encode", zeros)


class Bench:
    """The data, a tokenizer of one step, and both sides of each comparison."""

    def __init__(self, root: Path, images: int, size: int) -> None:
        self.root, self.size, self.number = root, size, 0
        for i, data in enumerate(photos(DISTINCT)):
            for split in ("train", "val"):
                file = root / split / f"{i % 4}" / f"{i:05d}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
        for i in range(DISTINCT, images):
            for split in ("train", "val"):
                os.link(
                    root / split / f"{i % 4}" / f"{i % DISTINCT:05d}.jpg", root / split / f"{i % 4}" / f"{i:05d}.jpg"
                )
        recipe = ["--recipe", "toy/tokenizer-vqgan", "--set", "loss={l1: {weight: 1.0}}", "--set", "train.steps=1"]
        sizes = ["--set", f"data.size={size}", "--set", f"encoder.image_size={size}"]
        self.made = tok("train-tokenizer", *recipe, *sizes, "--data", root / "train", "--out", root / "tokenizer")
        self.network = loading.load_tokenizer(open_artifact(self.made), torch.device("cpu")).eval()

    def out(self) -> Path:
        """A folder for one result."""
        self.number += 1
        return self.root / f"out-{self.number}"

    def tokenize(self, workers: int) -> None:
        """Ours."""
        command = ["tokenize", "--recipe", "toy/tokens", "--tokenizer", self.made, "--data", self.root / "train"]
        tok(*command, "--workers", workers, "--out", self.out())

    def evaluate(self, workers: int) -> None:
        """Ours: code counts and every metric of reconstructions."""
        nothing_else = [
            f"--set=eval.{key}" for key in ("extractors=[]", "manifold=0", "images=0", "probe_images=0", "worst=0")
        ]
        command = ["eval", self.made, "--recipe", "toy/eval", "--data", self.root / "val", *nothing_else]
        tok(*command, "--workers", workers, "--out", self.out())

    def batches(self, split: str, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The peer's."""
        change = Compose([Resize(self.size, InterpolationMode.BICUBIC), CenterCrop(self.size), ToTensor()])
        yield from DataLoader(ImageFolder(str(self.root / split), change), batch_size=BATCH, num_workers=workers)

    def peer_tokenize(self, workers: int) -> None:
        """The same tokens, without views and resuming."""
        found, labels = [], []
        for images, classes in self.batches("train", workers):
            found.append(self.network.encode(images))
            labels += classes.tolist()
        out = self.out()
        out.mkdir()
        keys = [str(i) for i in range(len(labels))]
        write_shard(out, 0, torch.cat(found)[:, None].numpy(), labels, keys, [[]] * len(keys), codebook_size=32)

    @torch.no_grad()
    def peer_evaluate(self, workers: int) -> None:
        """Code counts of held-out images, then every metric of their reconstructions."""
        counts, pixels = Counts(32), PerImage("images")
        for images, _ in self.batches("val", workers):
            counts.add(self.network(images).indices, to_uint8(images), self.network.grid(self.size))
        for images, _ in self.batches("val", workers):
            assert self.network.pixel_decoder is not None
            decoded = self.network.pixel_decoder(self.network.codes(self.network.encode(images)))
            pixels.add(to_uint8(decoded), to_uint8(images))
        counts.found(), dict(pixels.numbers)

    def png(self, images: Tensor, threads: int) -> None:
        """Write images as `tok sample` does."""
        out = self.out()
        out.mkdir()
        with processes(threads):
            sample_store.write_batch(out, 0, range(len(images)), torch.zeros(len(images), 1), images, "png")

    def pictures(self) -> Tensor:
        """Distinct photos of 256 px."""
        files = sorted((self.root / "train").glob("*/*.jpg"))[:DISTINCT]
        read = [np.array(Image.open(file).convert("RGB").resize((256, 256))) for file in files]
        return torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2)


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """(wall, CPU of this process and its children)."""
    cpu = lambda: sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))  # noqa: E731
    wall, before = time.perf_counter(), cpu()
    run()
    return time.perf_counter() - wall, cpu() - before


def compare(title: str, ways: dict[str, Callable[[], object]], images: int, rounds: int) -> None:
    """Median wall and CPU time of each way, taken in turns, after one round that warms up."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, run in ways.items():
            took = seconds(run)
            if turn:
                found[name].append(took)
    print(f"{title}: {images} images")
    first = None
    for name, times in found.items():
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        first = first or (wall, cpu)
        ratio = statistics.median(base[0] / own[0] for base, own in zip(found[next(iter(found))], times, strict=True))
        print(
            f"  {name:28} {images / wall:7.0f} images/s, {ratio:5.2f} of the first; CPU {cpu / images * 1e3:6.2f} ms an image, "
            f"{cpu / first[1]:5.2f} of the first",
            flush=True,
        )


PEAK = """
import re, sys
from unittest import mock
sys.path.insert(0, {scripts!r})
from bench_reading import free
from tokcli.cli import cli
with free():
    cli.main({arguments!r}, standalone_mode=False)
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr)
"""


def memory(bench: Bench) -> None:
    print("memory: peak of the main process, MB")
    for shard in (128, 1024):
        for views in ([], ["--crops", "10", "--flip"]):
            command = [
                "tokenize",
                "--recipe",
                "toy/tokens",
                "--tokenizer",
                bench.made,
                "--data",
                bench.root / "train",
                *views,
                "--set",
                f"tokens.shard_size={shard}",
                "--workers",
                "2",
                "--threads",
                "1",
                "--out",
                bench.out(),
            ]
            code = PEAK.format(scripts=str(Path(__file__).parent), arguments=[*map(str, command)])
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            peak = int(done.stderr.split()[-1]) / 1024
            print(f"  {shard:5} images a shard, {' '.join(views) or 'one view':18} {peak:7.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--size", type=int, default=64, help="side of the square in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--what", default="tokenize,free,eval,png,memory")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, one thread for the network; torch "
        f"{torch.__version__}, torchvision {torchvision.__version__}; load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), args.images, args.size)

        def sides(ours: Callable[[int], None], peer: Callable[[int], None]) -> dict[str, Callable[[], object]]:
            pairs = [
                (f"{name}, {n} workers", lambda f=f, n=n: f(n))
                for n in WORKERS
                for name, f in (("torchvision", peer), ("tok", ours))
            ]
            return dict(pairs)

        what = args.what.split(",")
        if "tokenize" in what:
            compare("tokenize", sides(bench.tokenize, bench.peer_tokenize), args.images, args.rounds)
        if "free" in what:
            with free():
                compare("tokenize, free network", sides(bench.tokenize, bench.peer_tokenize), args.images, args.rounds)
        if "eval" in what:
            compare("eval (two passes)", sides(bench.evaluate, bench.peer_evaluate), args.images, args.rounds)
        if "png" in what:
            pictures = bench.pictures()
            compare(
                "PNGs of 256 px",
                {f"{n} threads": partial(bench.png, pictures, n) for n in WORKERS},
                DISTINCT,
                args.rounds,
            )
        if "memory" in what:
            memory(bench)


if __name__ == "__main__":
    main()
