"""Peak memory of a command on files that claim more than they hold, one row a kind: `python scripts/hostile_files.py`.

Each file is made in a temporary folder (some megabytes on the disk, at most 128: larger ones are holes), a command reads it in a process
of its own, and its peak memory is compared with that of the same command on a harmless file. `--only WORD` selects kinds, `--json` prints
numbers. A command that passes 8 GiB is stopped. The exit code is 1 where a kind takes more than LIMIT above the baseline, runs longer than
TIME, or ends in a traceback.
"""

import argparse
import gzip
import io
import json
import os
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import hostile_artifacts
from hostile_makers import KINDS, good_png

LIMIT, STOP, TIME = 600 << 20, 8 << 30, 300  # bytes above the baseline, bytes at all, seconds


def harmless(root: Path, command: str) -> None:
    """What a command finds beside the hostile file, or in its place."""
    if command == "coco":
        (root / "annotations").mkdir()
        (root / "train").mkdir()
        (root / "train" / "good.png").write_bytes(good_png())
        caption = {"images": [{"id": 1, "file_name": "good.png"}], "annotations": [{"image_id": 1, "caption": "a"}]}
        (root / "annotations" / "captions_train.json").write_text(json.dumps(caption))
    elif command == "idx":
        (root / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + struct.pack(">I", 3) + bytes(3))
        with gzip.open(root / "train-images-idx3-ubyte.gz", "wb") as file:
            file.write(bytes([0, 0, 8, 3]) + struct.pack(">III", 3, 8, 8) + bytes(192))
    elif command in ("tokens", "samples"):
        facts = {"tokens": hostile_artifacts.TOKENS, "samples": hostile_artifacts.SAMPLES}[command]
        hostile_artifacts.artifact(root / "a", command, facts, getattr(hostile_artifacts, command))
    elif command in ("report", "evidence"):
        hostile_artifacts.report(root, lambda folder: (folder / "metrics.json").write_text("{}"))
    elif command == "parquet":
        hostile_artifacts.parquet(root / "a.parquet", good_png(), 1)
    elif "tar" in command:
        with tarfile.open(root / "a.tar", "w") as tar:
            info = tarfile.TarInfo("good.png")
            info.size = len(good_png())
            tar.addfile(info, io.BytesIO(good_png()))
    else:
        (root / "good.png").write_bytes(good_png())
        (root / "labels.tsv").write_text("good.png\ta\n")
        (root / "r.yaml").write_text("stage: tokens\n")


PYTHON = [sys.executable, "-c"]
FOLDER = "import sys; from tokcli.cli import main; sys.argv[0] = 'tok'; main()"
COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "folder": lambda root: ["data", "check", f"{root}"],
    "labels": lambda root: ["data", "check", f"{root}", "--labels", f"{root / 'labels.tsv'}"],
    "coco": lambda root: ["data", "check", f"{root / 'train'}"],
    "tar": lambda root: ["data", "check", f"{root / 'a.tar'}"],
    "pack-tar": lambda root: ["data", "pack", f"{root / 'a.tar'}", "--out", f"{root / 'packed'}", "--max-bad", "1"],
    "idx": lambda root: ["data", "check", f"{root / 'train'}"],
    "weights": lambda root: [
        "import",
        "taming-vqgan-f16-1024",
        f"{root / 'w.pt'}",
        "--workspace",
        f"{root / 'artifacts'}",
    ],
    "safetensors": lambda root: [
        "import",
        "taming-vqgan-f16-1024",
        f"{root / 'w.safetensors'}",
        "--workspace",
        f"{root / 'artifacts'}",
    ],
    "recipe": lambda root: ["recipes", "--check", f"{root / 'r.yaml'}"],
    "show": lambda root: ["show", f"{root}"],
    "evidence": lambda root: ["show", f"{root / 'a'}"],
    "plan": lambda root: ["tokenize", "--tokenizer", f"{root / 'plan.json'}", "--dry-run"],
    "parquet": lambda root: ["data", "check", f"{root / 'a.parquet'}"],
}
CALLS = {  # what a command reads after a training that a script cannot wait for
    "npz": "from pathlib import Path; from tokcli.evaluation.published import read_npz; read_npz(Path({root!r}) / 'a.npz', '--reference')",
    "npy": "from pathlib import Path; from tokcli.data.npy import read_npy; read_npy(Path({root!r}) / 'a.npy')",
    "tokens": "from tokcli.artifact.opening import open_artifact; from tokcli.proposals.training_tokens import open_store; "
    "store = open_store(open_artifact({root!r} + '/a')); store.keys; store.captions",
    "samples": "from tokcli.artifact.opening import open_artifact; from tokcli.measure.previews import read_samples; "
    "read_samples(open_artifact({root!r} + '/a'), [0])",
    "report": "import tokcli; tokcli.load({root!r} + '/a').metrics",
    "words": "from pathlib import Path; from tokcli.pretrained.text import _word_pieces; _word_pieces(Path({root!r}) / 'tokenizer.json', 'text')",
    "prompts": "from tokcli.sampling.request import read_prompts; read_prompts({root!r} + '/p.txt')",
}


def argv(command: str, root: Path) -> list[str]:
    """What reads the files in a folder."""
    if command in CALLS:
        call = CALLS[command].format(root=f"{root}").replace("; ", "\n    ")
        code = f"try:\n    {call}\nexcept Exception as error:\n    if type(error).__name__ not in ('TokError', 'NpyError'): raise\n    print(error)"
        return [*PYTHON, code]
    return [*PYTHON, FOLDER, *COMMANDS[command](root)]


class Run:
    """One command: peak memory in bytes, seconds, exit code and the last line that it said."""

    def __init__(self, command: str, root: Path) -> None:
        env = {**os.environ, "TOK_CACHE": f"{root / '.cache'}", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        start, self.peak = time.monotonic(), 0
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(argv(command, root), stdout=said, stderr=said, env=env, cwd=root)
            while process.poll() is None:
                self.peak = max(self.peak, _high_water(process.pid))
                if self.peak > STOP or time.monotonic() - start > TIME:
                    process.kill()
                time.sleep(0.02)
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
        self.seconds, self.code = time.monotonic() - start, process.returncode
        self.traceback = any(line.startswith("Traceback") for line in lines)
        told = [line for line in lines if "bad" in line or line.endswith(".")]
        self.said = (told or lines or [""])[-1].strip().replace(f"{root}/", "")


def _high_water(pid: int) -> int:
    """Peak memory of a process and those that it started, of the one that takes most, in bytes. What the system counts for a child
    begins with its parent's.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return max([int(found[1]) * 1024 if found else 0, *(_high_water(int(child)) for child in children)])


def main() -> int:
    """Measure, print, and say by the exit code whether all stayed within LIMIT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="kinds whose name or command holds this word")
    parser.add_argument("--json", action="store_true", help="print numbers instead of a table")
    asked = parser.parse_args()
    baselines: dict[str, int] = {}
    rows, failed = {}, False
    for name, (command, make) in KINDS.items():
        if asked.only not in f"{name} {command}":
            continue
        with tempfile.TemporaryDirectory(prefix="tok-hostile-") as folder:
            if command not in baselines:
                root = Path(folder) / "harmless"
                root.mkdir()
                harmless(root, command)
                baselines[command] = Run(command, root).peak
            root = Path(folder) / "hostile"
            root.mkdir()
            harmless(root, command)
            make(root)
            ran = Run(command, root)
        above = ran.peak - baselines[command]
        bad = above > LIMIT or ran.traceback or ran.code < 0
        failed = failed or bad
        rows[name] = {
            "megabytes": above >> 20,
            "seconds": round(ran.seconds, 1),
            "code": ran.code,
            "said": ran.said,
            "traceback": ran.traceback,
        }
        if not asked.json:
            mark = " TRACEBACK" if ran.traceback else " KILLED" if ran.code < 0 else " TOO MUCH" if bad else ""
            print(f"{above >> 20:6,} MiB {ran.seconds:6.1f} s  {name}{mark}\n{'':20}{ran.said[:170]}", flush=True)
    if asked.json:
        print(json.dumps({"baselines": {c: b >> 20 for c, b in baselines.items()}, "kinds": rows}, indent=1))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
