"""scripts/gpu_check.sh where there is no GPU: its parts at toy size, and how two machines are compared."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parent.parent
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: run scripts/gpu_check.sh")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_table", ROOT / "scripts" / "gpu_table.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_row_counts_images_tokens_and_shares(script: ModuleType) -> None:
    found = script.row((8, 0.5, 2.0), 16, 1e12, {"of peak": 64e12, "of product": None})
    assert found["images/s"] == 16
    assert found["tokens/s"] == 256
    assert found["TFLOP/s"] == 16
    assert (found["of peak"], found["of product"], found["GiB"]) == (0.25, None, 2.0)
    assert "25.0%" in script.line("train", found)


def test_a_batch_that_does_not_fit_is_halved(script: ModuleType) -> None:
    tried = []

    def make(samples: int):  # type: ignore[no-untyped-def]
        tried.append(samples)
        if samples > 4:
            raise torch.OutOfMemoryError
        return lambda: None

    assert script.measure(make, 16, torch.device("cpu"), 0.0)[0] == 4
    assert tried == [16, 8, 4]


def test_two_machines_are_compared_by_images_per_second(script: ModuleType) -> None:
    tables = [
        {"facts": {"device": name}, "rows": {"train": {"batch": batch, "images/s": rate}}}
        for name, batch, rate in (("slow", 8, 10.0), ("fast", 16, 25.0))
    ]
    said = script.compared(*tables).splitlines()
    assert said[0].split() == ["images/s", "slow", "fast", "ratio"]
    assert said[1].split() == ["train", "10.0", "25.0", "2.50", "batches", "of", "8", "and", "16"]


@WITHOUT_GPU
def test_without_a_gpu_the_table_says_so() -> None:
    run = subprocess.run([sys.executable, ROOT / "scripts" / "gpu_table.py"], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr == "gpu_table.py: there is no CUDA device. Add --toy to try it on the CPU.\n"


@WITHOUT_GPU
@pytest.mark.slow
def test_the_table_at_toy_size(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    line = [sys.executable, ROOT / "scripts" / "gpu_table.py", "--toy", "--seconds", "0.01", "--out", out]
    run = subprocess.run(line, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(out.read_text())
    assert found["toy"] and "figures say nothing" in run.stdout
    assert len(found["rows"]) == 14  # per tokenizer 2, per proposal network 1 and 2 precisions at 2 batches
    assert all(row["images/s"] > 0 and row["TFLOP/s"] > 0 for row in found["rows"].values())


@WITHOUT_GPU
@pytest.mark.slow
def test_the_checks_of_a_gpu_hold_of_the_cpu_itself() -> None:
    line = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py"]
    run = subprocess.run(line, cwd=ROOT, env={**os.environ, "TOK_GPU_CHECK": "cpu"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
    assert " passed, 12 skipped" in run.stdout  # what only CUDA has, and a training that takes long to compile


@WITHOUT_GPU
def test_without_cuda_the_checks_of_a_gpu_are_skipped() -> None:
    line = [sys.executable, "-m", "pytest", "-q", "tests/test_gpu.py", "-k", "samplers"]
    run = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert "there is no CUDA device" in run.stdout and "passed" not in run.stdout
