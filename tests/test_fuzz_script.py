"""scripts/fuzz.sh counts its rounds and names the seeds that failed, also where the end of the time cuts a round short."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STATISTICS = "  - during generate phase: 7 passing examples, 1 failing examples, 2 invalid examples"


@pytest.mark.parametrize(
    ("prints", "code", "said"),
    [
        (STATISTICS, 0, "seeds that failed: none"),
        (STATISTICS, 1, "seeds that failed: 5"),
        (
            "",
            2,
            "0 cases in 1 rounds, seeds that failed: none",
        ),  # interrupted by the end of the time, before its statistics
    ],
)
def test_the_last_line_counts_cases_and_names_seeds(tmp_path: Path, prints: str, code: int, said: str) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "fuzz.sh", tmp_path / "scripts")
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{prints}'\nsleep 1\nexit {code}\n")
    python.chmod(0o755)
    command = ["bash", str(tmp_path / "scripts" / "fuzz.sh"), "--minutes", "0.02", "--seed", "5"]
    env = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == (code == 1) and said in ran.stdout.splitlines()[-1]
    assert ("8 cases" in ran.stdout) == bool(prints)
