"""The lines of docs/scaling-out.md under real torchrun: a killed rank and a restart, two machines, ending as one process does."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_faults import draw, made
from test_ranks import free_port

from tokcli.artifact.opening import open_artifact
from tokcli.artifact.weights import load_tensors
from tokcli.training.state import STATE

pytestmark = pytest.mark.slow
SMALL = ["--set", "gan=null", "--set", "loss={l1: 1.0}", "--set", "train.steps=1"]
STEPS = 40


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("torchrun")
    for number in range(12):
        draw(root / "photos" / "ab"[number % 2] / f"{number}.png", shade=20 * number)
    made_by = made(
        "train-tokenizer", "--recipe", "toy/tokenizer-vqgan", *SMALL, "--data", root / "photos", "--out", root / "t"
    )
    return made("tokenize", "--recipe", "toy/tokens", "--tokenizer", made_by, "--out", root / "k")


def command(tokens: Path, out: Path, *more: str) -> list[str]:
    sets = [*more, "proposal.dropout=0.0", f"train.steps={STEPS}", "train.save_every=1"]  # dropout is a rank's own
    given = ["train-proposal", "--recipe", "toy/proposal-nar", "--tokens", tokens, "--out", out, "--threads", 1]
    return [str(a) for a in given] + [part for each in sets for part in ("--set", each)]


@pytest.fixture(scope="module")
def alone(tokens: Path) -> dict[str, torch.Tensor]:
    return load_tensors(made(*command(tokens, tokens.parent / "alone")) / "model.safetensors")


def assert_as_alone(out: Path, alone: dict[str, torch.Tensor], ranks: int = 2) -> None:
    found = open_artifact(out)
    assert found.manifest["provenance"]["world_size"] == ranks
    torch.testing.assert_close(load_tensors(found.file("model.safetensors")), alone, atol=1e-5, rtol=1e-5)


@contextlib.contextmanager
def torchrun(*arguments: Any) -> Iterator["subprocess.Popen[str]"]:
    """A launcher; it and its ranks do not outlive the test."""
    line = [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield run
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)


def rank_of(pid: int) -> str | None:
    with contextlib.suppress(OSError):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return next((item.decode()[5:] for item in environment if item.startswith(b"RANK=")), None)
    return None


def kill_rank(launcher: int, rank: int) -> None:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    os.kill(next(int(pid) for pid in children if rank_of(int(pid)) == str(rank)), signal.SIGKILL)


def wait_for(file: Path, run: "subprocess.Popen[str]") -> None:
    while not file.exists() and run.poll() is None:
        time.sleep(0.02)


def test_a_killed_rank_is_restarted_and_the_training_ends_as_if_it_had_not_been(
    tokens: Path, alone: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    out = tmp_path / "p"
    with torchrun(
        "--standalone", "--nproc-per-node", 2, "--max-restarts", 1, "-m", "tokcli", *command(tokens, out)
    ) as run:
        wait_for(out / STATE, run)
        kill_rank(run.pid, 1)
        said, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert f"{out}: goes on at step" in err
    assert "Traceback" not in err
    assert said == f"{out}\n"
    assert_as_alone(out, alone)


def test_without_restarts_a_killed_rank_ends_the_job_and_the_repeated_command_goes_on(
    tokens: Path, alone: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    out = tmp_path / "p"
    line = ["--standalone", "--nproc-per-node", 2, "-m", "tokcli", *command(tokens, out)]
    with torchrun(*line) as run:
        wait_for(out / STATE, run)
        kill_rank(run.pid, 1)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 1
    ours = err[: err.index("Traceback")]  # from there on it is torchrun's report
    assert ours.count("another rank is gone without a word") == 1
    assert not (out / "model.safetensors").exists()
    with torchrun(*line) as run:
        _, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert_as_alone(out, alone)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_machines_train_as_one_process_does(
    tokens: Path, alone: dict[str, torch.Tensor], tmp_path: Path, parallel: str
) -> None:
    out = tmp_path / "p"
    line = [
        *("--nnodes", 2, "--nproc-per-node", 1, "--rdzv-backend", "c10d", "--rdzv-id", "run"),
        *("--rdzv-endpoint", f"localhost:{free_port()}"),
        *("-m", "tokcli", *command(tokens, out, f"train.parallel={parallel}")),
    ]
    with torchrun(*line) as first, torchrun(*line) as second:
        ends = [run.communicate(timeout=300) for run in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], ends
    assert sorted(said for said, _ in ends) == ["", f"{out}\n"]
    assert ("MiB by rank: parameters " in ends[0][1] + ends[1][1]) == (parallel == "fsdp")
    assert sorted(path.name for path in out.glob("state*")) == []
    assert_as_alone(out, alone)


def test_ranks_started_by_slurm_find_each_other(tokens: Path, alone: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """srun sets SLURM_PROCID and its kin; the job script gives the address."""
    out, port = tmp_path / "p", str(free_port())
    tasks = []
    for rank in range(2):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env |= {"SLURM_PROCID": str(rank), "SLURM_NTASKS": "2", "SLURM_LOCALID": str(rank)}
        line = [sys.executable, "-m", "tokcli", *command(tokens, out)]
        tasks.append(subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    ends = [task.communicate(timeout=300) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], ends
    assert_as_alone(out, alone)
