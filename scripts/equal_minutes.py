"""Fashion-MNIST's proposal networks as they are trained now and as they were, at equal minutes and over seeds.

    python scripts/equal_minutes.py 0 1 2    train, sample and compare, on these seeds; what is there already is not made again
    python scripts/equal_minutes.py          write the table in docs/results/fashion-mnist.md from the numbers that are kept

One tokenizer and its pixel decoder serve all. Over their tokens each seed trains two networks of each mode: `before` by AdamW, with
rotary positions alone where it is masked, and `now` by the recipes. It is `scripts/benchmark.sh` that runs; its variables count here too:
TOK_ROWS (vqkd:vits14) names one tokenizer, TOK_BUDGET_MINUTES the minutes of each network, TOK_WORKSPACE the folder of all artifacts.
The numbers are kept in recipes/fashion-mnist/results/equal-minutes.json.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from claims import add, numbers
from claims_page import block, shown, table
from claims_results import over_seeds, pooled

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "recipes/fashion-mnist/results/equal-minutes.json"
PAGE = ROOT / "docs/results/fashion-mnist.md"
BLOCK = "equal minutes"
BEFORE = {"TOK_SET_AR": "optim.name=adamw", "TOK_SET_NAR": "optim.name=adamw proposal.position=rope-2d"}
TRAININGS: dict[str, dict[str, str]] = {"before": BEFORE, "now": {}}
MODES = ("ar", "nar")
SHOWN = {"bits_per_image": "bits", "fd_efflite0": "FD efflite0", "fd_vits14": "FD vits14"}
Numbers = dict[str, Any]


def networks(training: str, seed: int, workspace: Path) -> list[str]:
    """Train and sample: the paths of a network of each mode, each before its samples."""
    row = os.environ.get("TOK_ROWS", "vqkd:vits14")
    settings = {"TOK_SEED": str(seed), "TOK_WORKSPACE": str(workspace)} | TRAININGS[training]
    script = ["bash", str(ROOT / "scripts/benchmark.sh"), "--row", row]
    subprocess.run(script, env=os.environ | settings, stdout=sys.stderr, check=True)
    made = (workspace / "rows" / row.replace(":", "-")).read_text(encoding="utf-8").splitlines()
    return made[-2 * len(MODES) :]


def run(training: str, seed: int) -> Numbers:
    """Train, sample and measure; what is kept of it."""
    workspace = Path(os.environ.get("TOK_WORKSPACE", ROOT / "artifacts/equal-minutes")).resolve()
    made = networks(training, seed, workspace)
    command = ["tok", "eval", *made, "--recipe", "fashion-mnist/eval", "--reference", "fashion-mnist/val"]
    settings = os.environ | {"TOK_WORKSPACE": str(workspace)}
    report = subprocess.run(command, env=settings, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    trained = {}
    for mode, network in zip(MODES, made[::2], strict=True):
        manifest = json.loads((Path(network) / "manifest.json").read_text(encoding="utf-8"))
        seconds = round(manifest["provenance"]["seconds"])
        trained[mode] = {"steps": manifest["recipe"]["train"]["steps"], "seconds": seconds}
    measured = numbers(Path(report) / "metrics.json")
    return {"seed": seed, "training": training, "numbers": measured, "trained": trained}


def page(kept: dict[str, Numbers]) -> str:
    """The table: a row for each training and mode, means over seeds with their intervals."""
    by = {(t, m, n): runs(kept, t, f"{n}_{m}") for t in TRAININGS for m in MODES for n in SHOWN}
    noise = {n: pooled([[run[0] for run in by[t, m, n]] for t in TRAININGS for m in MODES]) for n in SHOWN}
    rows = []
    for mode in MODES:
        for training in TRAININGS:
            known = [one["trained"][mode] for one in kept.values() if one["training"] == training]
            steps = "/".join(dict.fromkeys(f"{one['steps']:,}" for one in known))
            values = [by[training, mode, n] for n in SHOWN]
            cells = [
                shown(over_seeds(found, noise[n]) if found else None) for n, found in zip(SHOWN, values, strict=True)
            ]
            rows.append([f"{mode.upper()}, {training}", str(len(known)), steps, *cells])
    return table(["networks", "seeds", "steps", *SHOWN.values()], rows)


def runs(kept: dict[str, Numbers], training: str, number: str) -> list[list[float]]:
    """A number of all seeds of a training."""
    return [one["numbers"][number] for one in kept.values() if one["training"] == training and number in one["numbers"]]


def read() -> dict[str, Numbers]:
    """What was measured, by "SEED TRAINING"."""
    return json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}


def main(*seeds: str) -> None:
    """See the module."""
    for seed in map(int, seeds):
        for training in TRAININGS:
            if f"{seed} {training}" not in read():
                add(KEPT, f"{seed} {training}", run(training, seed))
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(block(text, BLOCK, page(read())), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main(*sys.argv[1:])
