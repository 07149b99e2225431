"""The paper's two tables, run to their ends at mini size: the suite's own script, recipes, commands, flags and evaluation."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
ROWS = {
    "vqgan",
    "fsq",
    *(f"{method}-{teacher}" for method in ("vqkd", "cluster") for teacher in ("clip", "vit", "dino", "mae")),
}
COLUMNS = {  # the beginning of a column's name, and its end
    "imagenet": [("codebook_usage", ""), ("rf", ""), ("proposal_ppl", ""), ("f", "_ar"), ("f", "_nar"), ("inception_score", "_ar"),
                 ("inception_score", "_nar"), ("lpips", "")],
    "coco": [("codebook_usage", ""), ("rf", ""), ("proposal_ppl", ""), ("f", "_ar"), ("f", "_t2i"), ("inception_score", "_ar"),
             ("inception_score", "_t2i"), ("lpips", "")],
}  # fmt: skip


def run(suite: str, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    keep = {k: v for k, v in os.environ.items() if not k.startswith("TOK_")}
    environment = keep | {"PATH": path, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"} | variables
    script = ["bash", str(ROOT / "scripts" / "benchmark.sh"), "--suite", suite, *flags]
    return subprocess.run(script, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("suite", COLUMNS)
def test_the_suite_runs_to_its_table_with_every_cell_filled(
    suite: str, tmp_path: Path, random_weights: Path, capsys: Any
) -> None:
    (tmp_path / "cache").mkdir()
    for file in random_weights.iterdir():
        os.link(file, tmp_path / "cache" / file.name)
    started = time.monotonic()
    ran = run(suite, "--mini", TOK_WORKSPACE=str(tmp_path), TOK_JOBS="2")
    assert ran.returncode == 0, ran.stderr[-3000:]
    report = Path(ran.stdout.strip())
    with capsys.disabled():
        table = (report / "report.md").read_text(encoding="utf-8").split("## ")[0]
        print(f"\n--suite {suite} --mini, {time.monotonic() - started:.0f} s\n{table}")
    with open(report / "table.csv", newline="", encoding="utf-8") as file:
        rows = {row["tokenizer"]: row for row in csv.DictReader(file)}
    assert rows.keys() >= ROWS
    for name in ROWS:
        for start, end in COLUMNS[suite]:
            cells = [
                v
                for k, v in rows[name].items()
                if k.split(" (")[0].startswith(start) and k.split(" (")[0].endswith(end)
            ]
            assert any(cells), f"{name}: no {start}...{end} among {', '.join(rows[name])}"
