"""scripts/fuzz.sh counts its rounds and names the seeds that failed, also where the end of the time cuts a round short."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STATISTICS = "  - during generate phase: 7 passing examples, 1 failing examples, 2 invalid examples"


@pytest.mark.parametrize(("code", "failed"), [(0, "none"), (1, "5")])
def test_the_last_line_counts_cases_and_names_seeds(tmp_path: Path, code: int, failed: str) -> None:
    """The first round ends with its statistics, the second one is cut short by the end of the time."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "fuzz.sh", tmp_path / "scripts")
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\n[ ! -e {tmp_path}/again ] || exec sleep 60\ntouch {tmp_path}/again\necho '{STATISTICS}'\nexit {code}\n"
    )
    python.chmod(0o755)
    command = ["bash", str(tmp_path / "scripts" / "fuzz.sh"), "--minutes", "0.1", "--seed", "5"]
    env = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == code, ran.stderr
    assert ran.stdout.splitlines()[-1] == f"8 cases in 2 rounds, seeds that failed: {failed}"
