"""How long data at scale take to start on, and how much memory: a folder of links, many shards, Parquet, an epoch from a web server.

`python scripts/scale_data.py` makes its links and shards in a temporary folder (about 2 GB for the defaults) and prints a Markdown
table. Every start is a process of its own: the first with an empty cache, the second with what the first has kept. Times are CPU
seconds, which other work on the machine does not change, and in brackets those on the clock, from the import of torch to the first
batch. The last columns extrapolate CPU seconds and memory from half of the data and all of it, by a line through both: they mean something
only where both differ by seconds, as with the defaults, and are noise with a few thousand images.
"""

import argparse
import functools
import http.server
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

BEGAN = time.perf_counter()
SIDE = 32  # pixels of an image: what is measured is the listing, not the decoding
OF_SHARD = 50  # images
LARGE = (1_281_167, 100_000_000)


def spent() -> float:
    """CPU seconds of this process and of those that it started and has waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def start(spec: str, epoch: bool) -> None:
    """One start, in a process of its own: open, read the first batch, then the rest if asked; prints JSON."""
    from tokcli.data.batches import TrainBatches
    from tokcli.data.sources import open_source
    from tokcli.data.transforms import evaluation_transform

    source = open_source(spec, size=SIDE)
    batches = TrainBatches(source, evaluation_transform(SIDE), batch_size=64, seed=0)
    wanted = iter(batches)
    next(wanted)
    first, clock = spent(), time.perf_counter() - BEGAN
    steps = len(source) // 64
    for _ in range(steps - 1 if epoch else 0):
        next(wanted)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps(
            {
                "images": len(source),
                "first": first,
                "clock": clock,
                "all": spent(),
                "all_clock": time.perf_counter() - BEGAN,
                "mb": peak,
            }
        )
    )


def picture(number: int) -> bytes:
    """A JPEG of its own colour."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (number % 251, number % 241, number % 239)).save(file, "JPEG")
    return file.getvalue()


def make_links(root: Path, number: int) -> str:
    """A folder of a thousand classes, all links to one of 1,000 images."""
    real = root / "real"
    real.mkdir(exist_ok=True)
    for i in range(1000):
        if not (real / f"{i}.jpg").exists():
            (real / f"{i}.jpg").write_bytes(picture(i))
    folder = root / f"links-{number}"
    for i in range(number):
        if i < 1000:
            (folder / f"class{i:03d}").mkdir(parents=True)
        os.symlink(f"../../real/{i % 997}.jpg", folder / f"class{i % 1000:03d}" / f"{i}.jpg")
    return str(folder)


def make_shards(root: Path, number: int, name: str = "shards") -> str:
    """Shards as others write them: no index beside them."""
    from tokcli.data.shard_writer import shard_writer

    folder = root / f"{name}-{number}"
    folder.mkdir()
    for shard in range(number):
        with shard_writer(folder / f"s-{shard:05d}.tar") as write:
            for i in range(shard * OF_SHARD, (shard + 1) * OF_SHARD):
                write({"__key__": f"{i:09d}", "jpg": picture(i), "cls": b"%d" % (i % 1000), "txt": b"picture %d" % i})
    return str(folder)


def make_pack(root: Path, number: int) -> str:
    """The same shards with the indexes of `tok data pack`."""
    from tokcli.data.sources.tar_index import write_index

    folder = Path(make_shards(root, number, "pack"))
    for path in sorted(folder.glob("*.tar")):
        write_index(path)
    return str(folder)


def make_parquet(root: Path, number: int) -> str:
    """Files of 5,000 rows in row groups of 100."""
    import pyarrow
    from pyarrow import parquet

    folder = root / f"parquet-{number}"
    folder.mkdir()
    for file, begin in enumerate(range(0, number, 5000)):
        rows = range(begin, min(begin + 5000, number))
        table = {
            "image": [{"bytes": picture(i), "path": None} for i in rows],
            "label": [i % 1000 for i in rows],
            "text": [f"picture {i}" for i in rows],
        }
        parquet.write_table(pyarrow.table(table), folder / f"part-{file:05d}.parquet", row_group_size=100)
    return str(folder)


def measured(spec: str, cache: Path, epoch: bool = False) -> dict[str, float]:
    """What one start in a new process takes."""
    command = [sys.executable, str(Path(__file__).resolve()), "--start", spec, *(["--epoch"] if epoch else [])]
    done = subprocess.run(command, env=os.environ | {"TOK_CACHE": str(cache)}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(name: str, specs: tuple[str, str], root: Path, epoch: bool = False) -> None:
    """Measure half of the data and all of it, two starts each, and print a line of the table."""
    half, whole = (
        [measured(spec, root / f"cache-{name}-{n}".replace(" ", "-"), epoch) for _ in range(2)]
        for n, spec in enumerate(specs)
    )
    images = whole[0]["images"]

    def at(number: float, start: int, what: str) -> float:
        slope = max(0.0, whole[start][what] - half[start][what]) / (images - half[0]["images"])
        return whole[start][what] + slope * (number - images)

    cells = [
        name,
        f"{images:,.0f}",
        *(f"{one['first']:.1f} s ({one['clock']:.0f} s)" for one in whole),
        f"{max(one['mb'] for one in whole):,.0f} MB",
    ]
    cells += [", ".join(f"{one['all']:.0f} s ({one['all_clock']:.0f} s)" for one in whole) if epoch else ""]
    for number in LARGE:
        cells.append(
            f"{spoken(at(number, 0, 'first'))}, {spoken(at(number, 1, 'first'))}, {at(number, 1, 'mb') / 1000:,.1f} GB"
        )
    print("| " + " | ".join(cells) + " |", flush=True)


def spoken(seconds: float) -> str:
    """Seconds, or minutes or hours of many."""
    return (
        f"{seconds:.0f} s"
        if seconds < 180
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A file server that prints nothing."""

    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""


def serve(root: Path) -> str:
    """The address of a server of a folder, on this machine alone."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def main() -> None:
    """Make the data, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--links", type=int, default=300_000, help="images in the folder")
    parser.add_argument("--shards", type=int, default=2000, help=f"tars, of {OF_SHARD} images each")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of Parquet; 0: none")
    parser.add_argument("--start", help=argparse.SUPPRESS)
    parser.add_argument("--epoch", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.start:
        return start(asked.start, asked.epoch)
    print(
        f"| data | images | first batch, first start | second start | peak memory | epoch, first and second | {' | '.join(f'{n:,}' for n in LARGE)} |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        row("folder of links", tuple(make_links(root, n) for n in (asked.links // 2, asked.links)), root)  # type: ignore[arg-type]
        row("shards", tuple(make_shards(root, n) for n in (asked.shards // 2, asked.shards)), root)  # type: ignore[arg-type]
        packs = [Path(make_pack(root, n)) for n in (asked.shards // 2, asked.shards)]
        row("packed shards", tuple(map(str, packs)), root)  # type: ignore[arg-type]
        if asked.rows:
            row("Parquet", tuple(make_parquet(root, n) for n in (asked.rows // 2, asked.rows)), root)  # type: ignore[arg-type]
        url, ends = serve(root), [f"s-{{00000..{n - 1:05d}}}.tar" for n in (asked.shards // 2, asked.shards)]
        for name in ("shards", "pack"):
            of = tuple(
                f"{url}/{name}-{n}/{end}" for n, end in zip((asked.shards // 2, asked.shards), ends, strict=True)
            )
            row("shards over HTTP" if name == "shards" else "packed shards over HTTP", of, root, epoch=True)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
