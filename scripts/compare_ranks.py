"""One process, two ranks with `train.parallel: ddp` and with `fsdp`, and a training that goes on from two ranks to one to two.

    python scripts/compare_ranks.py [--folder DIR] [--only NAME ...]

Every kind of training runs by its recipe for OpenMoji, with 12 steps in float32 and without dropout (each rank draws its own), on the CPU
and with gloo. What differs from one process is measured over all weights of the finished artifact. Where rounding hands a vector to
another code, two codes move by more than rounding does, so codebooks are measured apart. How far rounding alone carries a training is shown
by one process that takes each batch in two halves. Then a network of 153 million parameters trains for two steps with one rank, two
and four; the peak memory of each rank is the kernel's (VmHWM).

The numbers are kept in recipes/openmoji/results/ranks.json, and the tables in docs/scaling-out.md are written from it. It took about 50
minutes on two busy cores and needs the extra `demo` (OpenMoji and the teacher efflite0). What is complete in --folder is not made again;
decoders, proposal networks and `memory` need tokenizer-vqkd there, or before them.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from claims import add
from claims_page import block, table

from tokcli.artifact.weights import load_tensors

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "recipes/openmoji/results/ranks.json"
PAGE = ROOT / "docs/scaling-out.md"
STEPS = 12
MOVED = 1e-4  # of a code that got a vector more or less than in one process
WAYS = {
    "halves": (1, "accumulate=2"),
    "ddp": (2, "parallel=ddp"),
    "fsdp": (2, "parallel=fsdp"),
    "resumed": (2, "parallel=fsdp"),
}
HEADS = {"halves": "in halves", "ddp": "ddp", "fsdp": "fsdp", "resumed": "fsdp, resumed"}
COMMON = (
    f"train.steps={STEPS}",
    "train.save_every=1",
    "train.log_every=1",
    "train.precision=float32",
    "optim.warmup_steps=2",
)
IMAGES = ("train-tokenizer", "--data", "openmoji/train")
TRAININGS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "tokenizer-vqkd": (IMAGES, ["quantizer.init_after=4"]),
    "tokenizer-vqgan": (IMAGES, ["gan.start=4", "gan.warmup=2", "gan.ramp=2"]),
    "tokenizer-fsq": (IMAGES, ["gan.start=4", "gan.warmup=2", "gan.ramp=2"]),
    "tokenizer-joint": (IMAGES, ["quantizer.init_after=4"]),
    "decoder-conv": (("train-decoder", "--tokenizer", "{folder}/tokenizer-vqkd"), []),
    "proposal-ar": (("train-proposal", "--tokens", "{folder}/tokens"), ["proposal.dropout=0.0"]),
    "proposal-nar": (("train-proposal", "--tokens", "{folder}/tokens"), ["proposal.dropout=0.0"]),
}
LARGE = ("width=1024", "depth=12", "heads=16", "mlp_width=2752", "dropout=0.0")  # of `proposal`
MEASURED = ((1, "ddp"), (2, "ddp"), (2, "fsdp"), (4, "fsdp"))


def launcher(ranks: int) -> list[str]:
    """What comes before a command's name."""
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    return [sys.executable, *run, "-m", "tokcli"]


def command(name: str, folder: Path, out: Path, *sets: str) -> list[str]:
    """A training of `TRAININGS`, after the launcher."""
    given, own = TRAININGS[name]
    words = [word.format(folder=folder) for word in given]
    every = [word for one in (*COMMON, *own, *sets) for word in ("--set", one)]
    return [*words, "--recipe", f"openmoji/{name}", "--out", str(out), "--threads", "1", "--device", "cpu", *every]


def train(ranks: int, words: Sequence[str], stop: Path | None = None) -> tuple[str, list[int]]:
    """Run a command: what it wrote to stderr, and the peak memory of its ranks in bytes.

    Args:
        stop: a log; the command is interrupted when a third of the steps more than it has now stand there.
    """
    stops, lines = stop is not None, steps(stop) if stop else 0
    with tempfile.TemporaryFile("w+") as said:
        run = subprocess.Popen([*launcher(ranks), *words], stdout=subprocess.DEVNULL, stderr=said, cwd=ROOT)
        peaks: dict[int, int] = {}
        while run.poll() is None:
            peaks |= dict(peak_memory(run.pid))
            if stop and steps(stop) >= lines + STEPS // 3:
                run.send_signal(signal.SIGTERM)
                stop = None
            time.sleep(0.05)
        said.seek(0)
        text = said.read()
    if bool(run.returncode) != stops or (stops and "state saved" not in text):
        raise SystemExit(f"{' '.join(words)}: exit {run.returncode}\n{text}")
    return text, [peaks[pid] for pid in sorted(peaks)]


def steps(log: Path) -> int:
    """How many steps a training has logged."""
    return len(log.read_text(encoding="utf-8").splitlines()) if log.is_file() else 0


def peak_memory(pid: int) -> Iterator[tuple[int, int]]:
    """The process if it is a rank, or else its children that are, with the peak of their memory in bytes."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        status = Path(f"/proc/{pid}/status").read_text()
        launches = b"torch.distributed.run" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    if launches:
        for child in children:
            yield from peak_memory(int(child))
    elif peak:  # none of one that has just ended
        yield pid, 1024 * int(peak[1])


def differences(found: Path, wanted: Path) -> dict[str, float]:
    """The largest difference of the networks' weights; that of the codebook, and how many codes differ by more than `MOVED`."""
    a, b = ({k: t.double() for k, t in load_tensors(each / "model.safetensors").items()} for each in (found, wanted))
    assert a.keys() == b.keys()
    apart = {name: (a[name] - b[name]).abs() for name in a}
    codebook = apart.pop("quantizer.codebook", None)
    values = {"network": max(float(t.max()) for t in apart.values())}
    if codebook is not None:
        values |= {"codebook": float(codebook.max()), "codes": int((codebook.amax(1) > MOVED).sum())}
    return values


def compare(name: str, folder: Path) -> dict[str, Any]:
    """A training in all ways: how each differs from one process."""
    alone = folder / name
    train(1, command(name, folder, alone))
    if name == "tokenizer-vqkd":  # others read it, and its tokens
        words = ["tokenize", "--recipe", "openmoji/tokens", "--tokenizer", str(alone), "--out", str(folder / "tokens")]
        train(1, words)
    found: dict[str, Any] = {}
    for way, (ranks, key) in WAYS.items():
        out = folder / f"{name}-{way}"
        words = command(name, folder, out, f"train.{key}")
        if way == "resumed" and not (out / "model.safetensors").is_file():
            shutil.rmtree(out, ignore_errors=True)  # of a run that was stopped
            for fewer in (2, 1):
                train(fewer, words, stop=out / "log.jsonl")
        train(ranks, words)
        found[way] = differences(out, alone) | {"gradient": first_gradient(out) / first_gradient(alone) - 1}
    return found


def first_gradient(folder: Path) -> float:
    """The norm of the first step's gradient."""
    first = (folder / "log.jsonl").read_text(encoding="utf-8").split("\n", 1)[0]
    return float(json.loads(first)["gradient_norm"])


def memory(folder: Path) -> list[dict[str, Any]]:
    """Peak memory by rank of a large network, and what the command itself says of it."""
    rows = []
    for ranks, parallel in MEASURED:
        sets = [f"proposal.{one}" for one in LARGE] + [
            f"train.parallel={parallel}",
            "train.steps=2",
            "train.batch_size=8",
        ]
        out = folder / f"large-{ranks}-{parallel}"
        text, peaks = train(ranks, command("proposal-ar", folder, out, *sets, "optim.name=adamw"))
        line = re.search(r"MiB by rank: (.*)", text)
        weights = load_tensors(out / "model.safetensors")
        parameters = sum(t.numel() for t in weights.values())
        rows.append(
            {"ranks": ranks, "parallel": parallel, "parameters": parameters, "peak": peaks, "kept": line and line[1]}
        )
    return rows


def shown_differences(found: dict[str, float]) -> str:
    """A cell of the table."""
    said = f"{found['network']:.0e}"
    if "codebook" in found:
        said += f"; {found['codebook']:.0e}" + (f" ({found['codes']} codes)" if found["codes"] else "")
    return said


def same_of_all(line: str) -> str:
    """What each rank keeps, told once where all keep as much: "optimizer 5.0, 5.0" is "optimizer 5.0"."""
    return re.sub(r"([\d.]+)(, \1)+(?=;|$)", r"\1", line)


def page(kept: dict[str, Any]) -> str:
    """Both tables, in Markdown."""
    columns = [way for way in WAYS if way != "resumed"]
    head = ["training", *(f"gradient, {HEADS[way]}" for way in columns), *HEADS.values()]
    shown = [
        [
            name,
            *(f"{abs(found[way]['gradient']):.0e}".replace("0e+00", "0") for way in columns),
            *(shown_differences(found[way]) for way in WAYS),
        ]
        for name, found in kept.items()
        if name != "memory"
    ]
    used = [
        [
            f"{row['ranks']}, {row['parallel']}" if row["ranks"] > 1 else "1",
            ", ".join(f"{peak / 2**20:,.0f}" for peak in row["peak"]),
            same_of_all(row["kept"] or ""),
        ]
        for row in kept.get("memory", [])
    ]
    first = table(head, shown)
    second = table(["ranks", "peak MiB of each", "of these, MiB that each keeps between two steps"], used)
    return f"{first}\n\n{second}"


def read() -> dict[str, Any]:
    """What is kept: the differences of each training, by its name, and `memory`."""
    return json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=[*TRAININGS, "memory"], default=[*TRAININGS, "memory"])
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as scratch:
        folder = (given.folder or Path(scratch)).resolve()
        for name in given.only:
            value = memory(folder) if name == "memory" else compare(name, folder)
            add(KEPT, name, value)
            PAGE.write_text(block(PAGE.read_text(encoding="utf-8"), "ranks", page(read())), encoding="utf-8")
            print(name, json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
