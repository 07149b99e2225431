"""Signals to bulk commands that read in processes: what was begun is kept, and no process stays."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import test_bulk_reading
from test_bulk_reading import COMMANDS, photograph, tokenizing
from test_faults import made, refusal

from tokcli.artifact.opening import open_artifact
from tokcli.errors import Interrupted
from tokcli.stages import tokenize

ready, started = test_bulk_reading.ready, test_bulk_reading.started  # fixtures
SLOW = """
import os, sys, time
from tokcli.data.sources import folder
from tokcli.data import reading
image = folder.Folder.image
def slow(self, i):
    time.sleep(0.02)
    return image(self, i)
folder.Folder.image = slow
reading.WORTH = -1.0
from tokcli.cli import main
main()
"""


def children(pid: int) -> set[int]:
    return {int(p) for t in Path(f"/proc/{pid}/task").iterdir() for p in (t / "children").read_text().split()}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.parametrize("command", ["tokenize", "eval"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_ends_it_well_and_leaves_no_process(
    command: str, number: int, ready: dict[str, Path], tmp_path: Path
) -> None:
    data = photograph(tmp_path / "d", 600)
    arguments = [data if one == ready["val"] else one for one in COMMANDS[command](ready)]
    arguments = [*map(str, arguments), "--workers", "2", "--out", str(tmp_path / "k"), "--threads", "1"]
    run = subprocess.Popen([sys.executable, "-c", SLOW, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip
    found: set[int] = set()
    while len(found) < 2 and run.poll() is None:
        time.sleep(0.05)
        found = children(run.pid)
    time.sleep(0.5)
    os.killpg(run.pid, number)
    _, said = run.communicate(timeout=120)
    assert run.returncode == Interrupted.exit_code, said
    assert "interrupted" in said.splitlines()[-1] and "Traceback" not in said
    until = time.monotonic() + 10
    while any(map(alive, found)) and time.monotonic() < until:
        time.sleep(0.1)
    assert len(found) >= 2 and not any(map(alive, found))


STARTING = """
import time
from tokcli.data import reading
start = reading._start_worker
def slow(number):
    time.sleep(3)
    start(number)
reading._start_worker = slow
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", [SLOW, STARTING + SLOW], ids=["reading", "starting"])
def test_a_killed_command_leaves_no_worker(program: str, ready: dict[str, Path], tmp_path: Path) -> None:
    data = photograph(tmp_path / "d", 600)
    arguments = [*tokenizing(ready, data), "--workers", "2", "--out", tmp_path / "k"]
    run = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    found: set[int] = set()
    while len(found) < 2 and run.poll() is None:
        time.sleep(0.05)
        found = children(run.pid)
    run.kill()
    run.communicate(timeout=60)  # until nobody holds its streams any more
    until = time.monotonic() + 20  # torch's watchdog looks every five seconds
    while any(map(alive, found)) and time.monotonic() < until:
        time.sleep(0.1)
    assert len(found) >= 2 and not any(map(alive, found))


def test_shards_of_an_interrupted_command_are_kept_and_the_rest_is_made(
    ready: dict[str, Path], started: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*tokenizing(ready, ready["train"]), "--set", "tokens.shard_size=8", "--workers", "2"]
    straight, write, encode = made(*command, "--out", tmp_path / "a"), tokenize.write_shard, tokenize._encode
    sent, encoded = threading.Event(), itertools.count()

    def interrupting(folder: Path, number: int, *rest: Any, **more: Any) -> Path:
        if number == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            sent.set()
        return write(folder, number, *rest, **more)

    def in_step(*given: Any) -> Any:
        """The second shard waits for the signal: the writer runs beside it, and would come too late on a fast machine."""
        if next(encoded) == 1:
            assert sent.wait(60)
        return encode(*given)

    with monkeypatch.context() as patched:
        patched.setattr(tokenize, "write_shard", interrupting)
        patched.setattr(tokenize, "_encode", in_step)
        said = refusal(*command, "--out", tmp_path / "b", code=Interrupted.exit_code)
    kept = sorted(p.name for p in (tmp_path / "b").glob("indices-*"))
    assert "finished shards are kept" in said and 1 <= len(kept) < 5
    assert open_artifact(made(*command, "--out", tmp_path / "b")).id == open_artifact(straight).id
