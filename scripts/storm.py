"""Stop every command at random moments, repeat it, and compare what it makes with an undisturbed run.

    python scripts/storm.py [--minutes N] [--seed N] [--folder DIR] [--only COMMAND ...]

Signals: SIGKILL, SIGTERM, SIGHUP, and SIGSTOP with SIGCONT after it. Each command runs in a process of its own, forked from one
that has imported everything, so that the moments fall into its work; one in four is stopped several times. Whatever happens, the
repeated command must end with 0, the artifact must be whole, and its id and the hash of every file of its payload must be those
of the undisturbed run. SIGTERM and SIGHUP must end a command with 75, unless it was done or had not begun.

Artifacts are of toy size, on the CPU with one thread. The last line is JSON; the exit code is 1 if anything differed. It needs the
extra `demo` (the teacher efflite0).
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "HUP": signal.SIGHUP, "STOP": signal.SIGSTOP}
RESUMABLE = 75
LONGEST = 600.0  # seconds of a command that hangs
STEPS = "--set train.steps=8 --set train.save_every=2"


def draw(folder: Path) -> None:
    """`folder/train` and `folder/val`: 24 and 8 images of two classes, 64 px."""
    import numpy as np
    from PIL import Image

    for number in range(32):
        split, label = ("train", "val")[number >= 24], ("cat", "dog")[number % 2]
        file = folder / split / label / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(file)
        file.with_suffix(".txt").write_text(f"a {label}, number {number}")


def family(root: Path) -> dict[str, list[str]]:
    """Commands of a toy pipeline without `--out`, in the order in which they can run; later ones read what earlier ones made."""
    made = "{root}/undisturbed"  # filled in word by word: a folder's name may hold spaces
    train, val = "--data {root}/photos/train", "--data {root}/photos/val"
    vqkd, decoder = f"--tokenizer {made}/tokenizer-vqkd", f"--decoder {made}/decoder"
    judged = " ".join(f"{made}/{name}" for name in ("tokenizer-vqkd", "decoder", "proposal-nar", "samples"))
    by_nar, by_ar = (f"--proposal {made}/proposal-{mode} {decoder} --batch-size 2" for mode in ("nar", "ar"))
    commands = {
        "tokenizer-vqkd": f"train-tokenizer --recipe toy/tokenizer-vqkd {train} {STEPS}",
        "tokenizer-vqgan": f"train-tokenizer --recipe toy/tokenizer-vqgan {train} {STEPS} --set train.keep=2",
        "decoder": f"train-decoder --recipe toy/decoder-conv {vqkd} {train} {STEPS}",
        "tokens": f"tokenize --recipe toy/tokens {vqkd} {train} --set tokens.shard_size=3",
        "proposal-ar": f"train-proposal --mode ar --recipe toy/proposal-ar --tokens {made}/tokens {STEPS}",
        "proposal-nar": f"train-proposal --mode nar --recipe toy/proposal-nar --tokens {made}/tokens {STEPS}",
        "samples": f"sample --recipe toy/sample-nar {by_nar} -n 24",
        "samples-shards": f"sample --recipe toy/sample-ar {by_ar} -n 12 --format shards --set sample.shard_size=4",
        "report": f"eval --recipe toy/eval {judged} {val}",
        "viz": f"viz-codebook --recipe toy/viz {vqkd} {train} --set viz.images=12 --set viz.perplexity=5",
    }
    return {name: [word.format(root=root) for word in words.split()] for name, words in commands.items()}


def start(command: list[Any], out: Path, log: Path) -> int:
    """Run a command in a fork of this process; returns its number."""
    number = os.fork()
    if number:
        return number
    try:
        os.setsid()
        for stream, target in ((1, os.devnull), (2, log)):
            os.dup2(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), stream)
        sys.argv = ["tok", *map(str, command), "--out", str(out), "--threads", "1", "--device", "cpu"]
        sys.argv += ["--workspace", str(out.parent)]
        from tokcli.cli import main

        main()
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode())
        os._exit(70)
    os._exit(0)


def wait(number: int, seconds: float) -> int | None:
    """The exit code of a process, negative for a signal; None: it runs on."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        done, status = os.waitpid(number, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def run(command: list[Any], out: Path, log: Path) -> float:
    """An undisturbed run; returns its seconds.

    Raises:
        AssertionError: it failed.
    """
    began = time.monotonic()
    number = start(command, out, log)
    code = wait(number, LONGEST)
    if code is None:
        os.killpg(number, signal.SIGKILL)
    assert code == 0, f"exit code {code}: {log.read_text(errors='replace')[-2000:]}"
    return time.monotonic() - began


def signature(out: Path) -> dict[str, str]:
    """The id and the payload of an artifact, which must be whole."""
    from tokcli.artifact.opening import open_artifact
    from tokcli.stages.show import verify

    verify(out)
    made = open_artifact(out)
    left = [str(p.relative_to(out)) for p in out.rglob("*.tmp")] + [p.name for p in out.glob("state.pt*")]
    assert not left, f"left behind: {left}"
    payload = {name: entry["sha256"] for name, entry in made.manifest["files"].items() if entry["payload"]}
    return {"id": made.id, **payload}


def disturb(command: list[Any], out: Path, log: Path, how: str, times: int, moments: Callable[[], float]) -> list[int]:
    """Start a command so many times, each time with a signal at a random moment, then let it end; returns its exit codes.

    Raises:
        AssertionError: an exit code that must not be, a process that hangs, or a traceback.
    """
    codes = []
    for _ in range(times):
        said = log.stat().st_size if log.exists() else 0
        number = start(command, out, log)
        code = wait(number, moments())
        if code is None:
            os.kill(number, SIGNALS[how])
            if how == "STOP":
                time.sleep(0.2)
                os.kill(number, signal.SIGCONT)
            code = wait(number, LONGEST)
            assert code is not None, f"hangs after SIG{how}"
        allowed = [0] if how == "STOP" else [0, -signal.SIGKILL] if how == "KILL" else [0, RESUMABLE]
        if how in ("TERM", "HUP") and not (log.exists() and log.stat().st_size > said):
            allowed.append(-SIGNALS[how])  # before this start listened
        assert code in allowed, f"exit code {code} after SIG{how}: {log.read_text(errors='replace')[-2000:]}"
        codes.append(code)
    run(command, out, log)
    text = log.read_text(errors="replace")
    assert "Traceback" not in text, text[-2000:]
    return codes


def storm(root: Path, minutes: float, seed: int, only: list[str]) -> Iterator[tuple[str, str, list[int], str]]:
    """Command, signal, exit codes and what differed, until the time is over; every pair in turn."""
    draws, commands = random.Random(seed), family(root)
    if not (root / "photos").is_dir():
        draw(root / "photos")
    wanted, seconds = {}, {}
    for name, command in commands.items():
        seconds[name] = run(command, root / "undisturbed" / name, root / f"{name}.log")
        wanted[name] = signature(root / "undisturbed" / name)
        print(f"{name}: {seconds[name]:.1f} s undisturbed, {len(wanted[name]) - 1} files", file=sys.stderr, flush=True)
    pairs = [(name, how) for name in commands if not only or name in only for how in SIGNALS]
    ends, turn = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < ends:
        if turn % len(pairs) == 0:
            draws.shuffle(pairs)
        (name, how), turn = pairs[turn % len(pairs)], turn + 1
        out, log = root / "disturbed" / f"{name}-{turn}", root / "disturbed" / f"{name}-{turn}.log"
        out.parent.mkdir(exist_ok=True)
        times = draws.choice((1, 1, 1, 3))
        codes: list[int] = []
        try:
            codes = disturb(commands[name], out, log, how, times, lambda: draws.uniform(0, 1.1 * seconds[name]))  # noqa: B023
            found = signature(out)
            fault = "; ".join(f"{key}: {found.get(key)}" for key in wanted[name] if found.get(key) != wanted[name][key])
        except Exception as error:  # whatever it is, it is what this script looks for
            fault = f"{type(error).__name__}: {error}"
        if not fault:
            shutil.rmtree(out)
            log.unlink()
        yield name, how, codes, fault


def table(counts: Counter[tuple[str, str]], names: list[str]) -> str:
    """Interrupted runs by command and signal."""
    rows = [f"{'':<18}" + "".join(f"{how:>7}" for how in SIGNALS)]
    return "\n".join([*rows, *(f"{n:<18}" + "".join(f"{counts[n, how]:>7}" for how in SIGNALS) for n in names)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where artifacts are made; default: a temporary folder")
    parser.add_argument("--only", nargs="*", default=[], help="commands to stop; default: all")
    asked = parser.parse_args()
    root = (asked.folder or Path(tempfile.mkdtemp(prefix="storm-"))).resolve()
    import tokcli.stages.evaluate
    import tokcli.stages.sample
    import tokcli.stages.tokenize
    import tokcli.stages.train_decoder
    import tokcli.stages.train_proposal
    import tokcli.stages.train_tokenizer
    import tokcli.stages.viz_codebook  # noqa: F401

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    stops: Counter[tuple[str, str]] = Counter()
    runs, faults = 0, []
    for name, how, codes, fault in storm(root, asked.minutes, asked.seed, asked.only):
        runs += 1
        stops[name, how] += sum(code != 0 for code in codes) if how != "STOP" else len(codes)
        if fault:
            faults.append(f"{name}, SIG{how}: {fault}")
            print(faults[-1], file=sys.stderr, flush=True)
    names = list(family(root))
    print(table(stops, names), file=sys.stderr)
    summary = {"runs": runs, "stopped": sum(stops.values()), "faults": len(faults), "seed": asked.seed}
    print(json.dumps(summary))
    if faults:
        print(f"kept for a look: {root / 'disturbed'}", file=sys.stderr)
        sys.exit(1)
    if asked.folder is None:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
