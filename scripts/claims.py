"""The paper's claim as an experiment that two cores can repeat: `scripts/benchmark.sh --suite claims`.

    python scripts/claims.py [--dry-run | --toy]

A cell is a tokenizer with its pixel decoder, its proposal networks, their samples and a report; all cells have the same sizes, steps and
samples (recipes/claims). What two cells share is made once. Repeating it goes on where it was interrupted, cell after cell.

TOK_SEEDS ("0 1 2"): seeds, one after another, each a whole answer. TOK_CLAIMS (all): parts of the plan, of objective, successors, teachers,
data, captions and cluster. TOK_WORKSPACE (artifacts/benchmark-claims): artifacts, data, results/seed-N.json, and of these results a page: claims.md.
"""

import argparse
import contextlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from claims_plan import CLAIMS, PERTURB, Cell, cells, fetched, judges, tokenizer_sets

from tokcli.device import emulated_bfloat16, usual_device
from tokcli.errors import TokError

SAMPLES = 192
TOY = {"samples": 18, "images": 3}  # images of each class
# what is kept of a report's numbers, by the beginnings of their names
NUMBERS = re.compile(
    "codebook_|(vector_)?probe_|feature_loss|psnr|ssim|sharpness|p?rfd_|proposal_ppl|masked_ce|bits_|fdr?_"
)
SMALL = ("train.steps=2", "train.batch_size=4", "optim.warmup_steps=0")


class Suite:
    """Makes cells, one after another.

    Args:
        workspace: for artifacts, data and results.
        toy: two steps a network and a few images, to see that everything runs.
    """

    def __init__(self, workspace: Path, toy: bool = False) -> None:
        self.workspace, self.toy = workspace, toy
        self.samples = TOY["samples"] if toy else SAMPLES
        self.seconds: dict[str, float] = {}
        # of trainings; where bfloat16 is emulated, float32 is up to 40 times as fast
        self.precision = "float32" if emulated_bfloat16(usual_device()) else "bfloat16"

    def tok(self, stage: str, *arguments: str, recipe: str, sets: Iterable[str] = ()) -> str:
        """One command of `tok`, in this process, which saves the seconds of a start; the artifact's path."""
        from tokcli.cli import cli

        small: list[str] = []
        if stage.startswith("train"):
            small = [f"train.precision={self.precision}", *(SMALL if self.toy else ())]
        line = [stage, *arguments, "--recipe", f"claims/{recipe}", "--workspace", str(self.workspace / "made")]
        out, started = io.TextIOWrapper(io.BytesIO(), "utf-8"), time.monotonic()  # paths are written as bytes
        with contextlib.redirect_stdout(out):
            cli.main([*line, *(f"--set={one}" for one in (*sets, *small))], prog_name="tok", standalone_mode=False)
        out.seek(0)
        path = out.read().strip()
        spent = json.loads((Path(path) / "manifest.json").read_text(encoding="utf-8"))["provenance"].get("seconds")
        # where the artifact was there already, what its making took
        self.seconds[f"{stage} {recipe}"] = round(spent or time.monotonic() - started, 1)
        return path

    def run(self, cell: Cell) -> dict[str, Any]:
        """Everything of one cell, and its numbers."""
        from claims_data import prompts, random_weights

        self.seconds = {}
        data, seed = self.workspace / "data" / cell.data, ["--seed", str(cell.seed)]
        flags = [f"--teacher-weights={name}={random_weights(self.workspace, name)}" for name in cell.untrained]
        method = "cluster" if cell.objective == "cluster" else "joint"
        soon = ["quantizer.init_after=1"] if self.toy and cell.quantizer == "vq" and method == "joint" else []
        train = ["--method", method, "--data", str(data / "train"), *flags, *seed]
        sets = [*tokenizer_sets(cell), *soon]
        tokenizer = self.tok("train-tokenizer", *train, recipe=f"tokenizer-{method}", sets=sets)
        decoder, made = tokenizer, [tokenizer]
        if cell.objective in ("features", "cluster"):
            sets = [f"perturb={json.dumps(PERTURB)}"] if cell.perturb else []
            decoder = self.tok("train-decoder", "--tokenizer", tokenizer, *seed, recipe="decoder-conv", sets=sets)
            made.append(decoder)
        tokens = self.tok("tokenize", "--tokenizer", tokenizer, recipe="tokens")
        drawn, given = ["-n", str(self.samples)], ""
        if cell.captions:
            file = self.workspace / f"prompts-{cell.data}.txt"
            file.write_text("".join(f"{caption}\n" for caption in prompts(data, self.samples)), encoding="utf-8")
            drawn, given = ["--prompts", str(file)], "-text"
        for mode in ("ar", "nar"):
            made.append(
                self.tok("train-proposal", "--mode", mode, "--tokens", tokens, *seed, recipe=f"proposal-{mode}{given}")
            )
            of = ["--proposal", made[-1], "--decoder", decoder]
            made.append(self.tok("sample", "--mode", mode, *of, *drawn, *seed, recipe=f"sample-{mode}"))
        sets = [
            f"eval.extractors=[{', '.join(judges(cell))}]",
            *(["eval.bootstrap=2", "eval.worst=0"] if self.toy else []),
        ]
        compared = ["--data", str(data / "val"), "--reference", str(data / "train")]
        report = Path(self.tok("eval", *made, *compared, recipe="eval", sets=sets))
        return {
            **asdict(cell),
            "report": report.name,
            "precision": self.precision,
            "seconds": self.seconds,
            "numbers": numbers(report / "metrics.json"),
        }


def numbers(metrics: Path) -> dict[str, list[float]]:
    """What a report says of a cell, by name: the value, and the ends of its interval where it has one."""
    found: dict[str, list[float]] = {}
    artifacts = json.loads(metrics.read_text(encoding="utf-8"))["artifacts"]
    modes = {one["id"]: one["mode"] for one in artifacts}
    for artifact in artifacts:
        # of samples that of their network: those drawn for captions have a mode of their own
        known = modes.get(artifact["inputs"].get("proposal"), artifact["mode"])
        mode = f"_{known}" if known else ""
        for m in artifact["measurements"]:
            if not NUMBERS.match(m["metric"]):
                continue
            value = [m["value"], *(m["interval"] or [])]
            found.setdefault(m["metric"] + mode, [float(f"{v:.5g}") for v in value])
    return found


def add(path: Path, name: str, found: Any) -> None:
    """Put one entry into a JSON object on disk, whole or not at all."""
    from tokcli.files import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    lines = [
        f"{json.dumps(key)}: {json.dumps(value, sort_keys=True)}" for key, value in (known | {name: found}).items()
    ]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def make(plan: list[Cell], suite: Suite) -> Path:
    """Make the cells that are missing; returns the folder of results."""
    from claims_data import prepare, understanding
    from claims_results import read
    from fetch_embedded import fetch

    most, results = TOY["images"] if suite.toy else None, suite.workspace / "results"

    def lacks(cell: Cell) -> tuple[bool, bool]:
        """Whether its numbers are missing, and whether what its teacher understands is."""
        known = read(results)
        taught = cell.teacher is not None and f"{cell.data} {cell.teacher}" not in known.teachers
        return cell.name not in known.cells.get(cell.seed, {}), taught

    missing = [cell for cell in plan if any(lacks(cell))]
    with contextlib.redirect_stdout(sys.stderr):  # their paths
        for name in fetched(missing):
            fetch(name)
    wanted = dict.fromkeys(cell.data for cell in missing)
    ready = {data: prepare(data, suite.workspace / "data" / data, most) for data in wanted}
    for number, cell in enumerate(plan, 1):
        if cell not in missing or not ready[cell.data]:
            continue
        if lacks(cell)[0]:
            print(f"\n== {number} of {len(plan)}: {cell.name}, seed {cell.seed}", file=sys.stderr, flush=True)
            add(results / f"seed-{cell.seed}.json", cell.name, suite.run(cell))
        if cell.teacher and lacks(cell)[1]:
            data = suite.workspace / "data" / cell.data
            accuracy = understanding(cell.teacher, data, suite.workspace, suite.precision)
            add(results / "teachers.json", f"{cell.data} {cell.teacher}", round(accuracy, 4))
    return results


def plan_text(plan: list[Cell]) -> str:
    """The cells of a plan, and what they are likely to cost by those that were measured before."""
    from claims_results import KEPT, hours, read

    lines = [f"{number:3d}  seed {cell.seed}  {cell.name}" for number, cell in enumerate(plan, 1)]
    kept = read(KEPT)
    measured = sum(map(len, kept.cells.values()))
    cost = f" of about {60 * sum(hours(kept).values()) / measured:.1f} minutes of one core" if measured else ""
    return "\n".join([*lines, f"{len(plan)} cells{cost}"])


def main() -> int:
    """Make what is missing; 2 where the variables name what is not there, and a command's own code where one fails or is interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--dry-run", action="store_true", help="print the plan and its cost; make nothing")
    kind.add_argument("--toy", action="store_true", help="two steps a network, one seed: minutes")
    options = parser.parse_args()
    claims = os.environ.get("TOK_CLAIMS", " ".join(CLAIMS)).split()
    seeds = os.environ.get("TOK_SEEDS", "0" if options.toy else "0 1 2").split()
    for name, given, known in (("TOK_CLAIMS", claims, CLAIMS), ("TOK_SEEDS", seeds, None)):
        if wrong := [one for one in given if (not one.isdigit() if known is None else one not in known)]:
            print(
                f"{name}: not understood. Got {wrong[0]}. Give {', '.join(known) if known else 'whole numbers'}",
                file=sys.stderr,
            )
            return 2
    plan = [cell for seed in seeds for cell in cells(int(seed), claims)]
    if options.dry_run:
        print(plan_text(plan))
        return 0
    from claims_page import write

    default = f"artifacts/benchmark-{'toy-' if options.toy else ''}claims"
    workspace = Path(os.environ.get("TOK_WORKSPACE", default)).absolute()
    try:
        results = make(plan, Suite(workspace, options.toy))
    except TokError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(write(results, workspace / "claims.md", workspace))
    return 0


if __name__ == "__main__":
    sys.exit(main())
