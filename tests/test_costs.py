"""The sum of plans: what is known is added up, what is not is named."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parent.parent / "scripts" / "costs.py"
ASSUMED = {"gpus": 8, "precision": "bfloat16", "flop_per_second": 1e15, "bytes_per_second": 1e12, "utilisation": 0.5}


def plan(kind: str, seconds: float | None, **facts: Any) -> dict[str, Any]:
    compute = {"flop": seconds and 4e15 * seconds, "seconds": seconds, "assumed": ASSUMED, "uncounted": ["reading"]}
    return {
        "kind": kind,
        "facts": {"name": "fsq", **facts},
        "recipe": {},
        "memory": {"bytes_per_gpu": 2**31},
        "compute": compute,
    }


def costs(tmp_path: Path, *flags: str) -> str:
    plans = [plan("tokenizer", 3600.0), plan("tokens", None), plan("proposal", 1800.0, mode="ar")]
    files = [tmp_path / f"{number}.json" for number in range(len(plans))]
    for file, one in zip(files, plans, strict=True):
        file.write_text(json.dumps(one))
    return subprocess.run([sys.executable, SCRIPT, *flags, *files], capture_output=True, text=True, check=True).stdout


def test_hours_add_up_and_an_unknown_count_makes_a_lower_bound(tmp_path: Path) -> None:
    said = costs(tmp_path).splitlines()
    assert said[1].split() == ["fsq", "tokenizer", "14.40", "2.0", "1.00"] and said[4].split() == ["all", "21.6", "1.5"]
    assert said[-2:] == ["Not counted: reading.", "Unknown, so that the sum is a lower bound: fsq tokens."]


def test_the_documents_table_has_a_row_a_tokenizer(tmp_path: Path) -> None:
    table = costs(tmp_path, "--markdown").splitlines()
    assert table[2] == "| fsq | 1.00 | - | - | 0.50 | - | - | 1.5 | 2 |"
