"""The paper's two tables, run to their ends at mini size: the suite's own script, recipes, commands, flags and evaluation."""

import csv
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from preloaded import preloaded

from tokcli.evaluation.aims import PAPER, TABLES
from tokcli.metrics.reported import Reported

ROOT = Path(__file__).parent.parent
ROWS = {
    "vqgan",
    "fsq",
    *(f"{method}-{teacher}" for method in ("vqkd", "cluster") for teacher in ("clip", "vit", "dino", "mae")),
}


def environment(**variables: str) -> dict[str, str]:
    """Of a suite: never the user's own workspace or cache; the script itself shares the cores."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    keep = {k: v for k, v in os.environ.items() if not k.startswith("TOK_") and k != "OMP_NUM_THREADS"}
    return keep | {"PATH": path, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"} | variables


def run(suite: str, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    script = ["bash", str(ROOT / "scripts" / "benchmark.sh"), "--suite", suite, *flags]
    return subprocess.run(script, env=environment(**variables), capture_output=True, text=True, check=False)


@pytest.fixture
def pretended(tmp_path: Path) -> dict[str, str]:
    """Variables under which `tok` does nothing but print a path, and COCO has three images with captions."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "made").mkdir()
    (tmp_path / "bin" / "tok").write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/called"\necho /made\n')
    (tmp_path / "bin" / "tok").chmod(0o755)
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    said = [{"image_id": i // 2, "caption": f"caption {i}"} for i in range(6)]
    (tmp_path / "coco" / "annotations" / "captions_val2014.json").write_text(json.dumps({"annotations": said}))
    path = f"{tmp_path / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "TOK_SUITE_DATA": str(tmp_path / "coco"), "TOK_WORKSPACE": str(tmp_path / "made")}


def test_each_image_is_drawn_for_a_caption_of_another_held_out_image(pretended: dict[str, str]) -> None:
    assert run("coco", "--row", "fsq", TOK_BENCHMARK_SAMPLES="3", **pretended).returncode == 0
    (prompts,) = Path(pretended["TOK_WORKSPACE"]).glob("prompts*.txt")
    assert prompts.read_text().splitlines() == ["caption 0", "caption 2", "caption 4"]


def test_captions_are_refused_that_would_be_repeated(pretended: dict[str, str]) -> None:
    ran = run("coco", "--row", "fsq", TOK_BENCHMARK_SAMPLES="4", **pretended)
    assert ran.returncode != 0 and "3 images have a caption, and 4 were asked for" in ran.stderr


def test_a_suite_takes_its_own_recipes_alone(pretended: dict[str, str], tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    for folder in ("scripts", "recipes"):
        shutil.copytree(ROOT / folder, copied / folder)
    (copied / "recipes" / "coco" / "tokens.yaml").unlink()  # imagenet has one, folder has one
    script = ["bash", str(copied / "scripts" / "benchmark.sh"), "--suite", "coco", "--row", "fsq"]
    ran = subprocess.run(script, env=os.environ | pretended, capture_output=True, text=True, check=False)
    assert ran.returncode == 1 and "recipes/coco/tokens.yaml: no such recipe" in ran.stderr
    assert run("coco", "--row", "fsq", TOK_BENCHMARK_SAMPLES="3", **pretended).returncode == 0
    called = (Path(pretended["PATH"].split(os.pathsep)[0]) / "called").read_text().splitlines()
    assert called and all("--recipe coco/" in line for line in called)


def test_a_network_that_the_suite_has_not_is_refused_at_once(pretended: dict[str, str]) -> None:
    ran = run("imagenet", "--row", "fsq", **pretended | {"TOK_AR": "unknown"})
    assert ran.returncode == 1 and "TOK_AR=unknown: gpt2 or medium" in ran.stderr


def test_rows_a_seed_and_overrides_of_networks_can_be_chosen(pretended: dict[str, str]) -> None:
    chosen = {"TOK_ROWS": "vqgan fsq", "TOK_SEED": "5", "TOK_SET_NAR": "optim.name=adamw proposal.position=rope-2d"}
    assert run("imagenet", **pretended | chosen).stdout == "/made\n"  # of `tok eval`, the last
    called = (Path(pretended["PATH"].split(os.pathsep)[0]) / "called").read_text().splitlines()
    assert len([line for line in called if line.startswith("train-tokenizer")]) == 2
    assert all(("--seed=5" in line) == line.startswith(("train-proposal", "sample")) for line in called)
    changed = [line for line in called if "--set=optim.name=adamw --set=proposal.position=rope-2d" in line]
    assert changed and all("--mode nar" in line for line in changed) and len(changed) == 2


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other CPUs have no such setting")
@pytest.mark.parametrize("suite", ["fashion-mnist", "imagenet"])
def test_recipes_in_bfloat16_of_the_suite_for_cpus_run_in_float32_where_it_is_emulated(
    suite: str, pretended: dict[str, str]
) -> None:
    steps = Path(pretended["TOK_WORKSPACE"]) / "steps"
    steps.mkdir()
    for name in ("fsq-tokenizer-fsq", "ar", "nar"):
        (steps / name).write_text("24\n")
    assert run(suite, "--row", "fsq", ATEN_CPU_CAPABILITY="avx2", **pretended).returncode == 0
    called = (Path(pretended["PATH"].split(os.pathsep)[0]) / "called").read_text().splitlines()
    told = [" ".join(word for word in line.split() if "precision" in word) for line in called]
    trained, drawn = "--set=train.precision=float32", "--set=sample.precision=float32"
    # tokenizer, tokens, a network of each kind and its samples: Fashion-MNIST's masked networks draw in bfloat16
    assert told == ([trained, "", trained, "", trained, drawn] if suite == "fashion-mnist" else [""] * len(called))


def test_a_precision_that_the_user_sets_stays(pretended: dict[str, str]) -> None:
    steps = Path(pretended["TOK_WORKSPACE"]) / "steps"
    steps.mkdir()
    for name in ("fsq-tokenizer-fsq", "ar-train-precision-bfloat16", "nar"):
        (steps / name).write_text("24\n")
    chosen = {"ATEN_CPU_CAPABILITY": "avx2", "TOK_SET_AR": "train.precision=bfloat16"}
    assert run("fashion-mnist", "--row", "fsq", **chosen, **pretended).returncode == 0
    called = (Path(pretended["PATH"].split(os.pathsep)[0]) / "called").read_text().splitlines()
    (line,) = [line for line in called if line.startswith("train-proposal --mode ar")]
    assert line.count("train.precision=") == 1 and "--set=train.precision=bfloat16" in line


def test_the_evaluation_is_given_the_teachers_of_its_rows_alone(pretended: dict[str, str], tmp_path: Path) -> None:
    for name in ("clip", "dino", "inception"):
        (tmp_path / f"{name}.safetensors").touch()
    chosen = {"TOK_ROWS": "fsq vqkd:dino", "TOK_WEIGHTS": str(tmp_path)}
    assert run("imagenet", **pretended | chosen).stdout == "/made\n"  # of `tok eval`, the last
    called = (Path(pretended["PATH"].split(os.pathsep)[0]) / "called").read_text().splitlines()
    (line,) = [line for line in called if line.startswith("eval")]
    given = [word for word in line.split() if "-weights=" in word]
    assert given == [
        f"--inception-weights={tmp_path}/inception.safetensors",
        f"--teacher-weights=dino={tmp_path}/dino.safetensors",
    ]


def test_a_row_that_the_suite_has_not_is_refused(pretended: dict[str, str]) -> None:
    ran = run("imagenet", **pretended | {"TOK_ROWS": "fsq lfq"})
    assert ran.returncode == 1 and "TOK_ROWS: lfq is none of vqgan fsq" in ran.stderr


@pytest.mark.parametrize(("ar", "sampler"), [("gpt2", "sample-ar-gpt2"), ("medium", "sample-ar")])
def test_samples_are_drawn_by_the_recipe_of_their_network_with_and_without_guidance(
    ar: str, sampler: str, pretended: dict[str, str]
) -> None:
    assert run("imagenet", "--row", "vqkd:clip", TOK_AR=ar, TOK_DECODER="conv", **pretended).returncode == 0
    called = (Path(pretended["PATH"].split(os.pathsep)[0]) / "called").read_text().splitlines()
    drawn = [line for line in called if line.startswith("sample --mode ar")]
    assert all(line.endswith(f"--recipe imagenet/{sampler}") for line in drawn)
    assert [line.split("--sweep ")[1].split()[0] for line in drawn] == ["cfg_scale=1,1.75"]
    assert any("--recipe imagenet/decoder-conv" in line for line in called)


def test_a_dry_run_that_cannot_be_made_says_why(pretended: dict[str, str]) -> None:
    (Path(pretended["PATH"].split(os.pathsep)[0]) / "tok").write_text(
        "#!/bin/sh\necho 'tok: it is broken.' >&2\nexit 1\n"
    )
    ran = run("coco", "--dry-run", **pretended)
    assert ran.returncode != 0 and "tok: it is broken.\n" in ran.stderr and not ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("suite", TABLES)
def test_the_suite_runs_to_its_table_with_every_cell_filled(
    suite: str, tmp_path: Path, random_weights: Path, capsys: Any
) -> None:
    (tmp_path / "cache").mkdir()
    for file in filter(Path.is_file, random_weights.iterdir()):  # beside folders that other tests made
        os.link(file, tmp_path / "cache" / file.name)
    started = time.monotonic()
    (tmp_path / "bin").mkdir()
    with preloaded(tmp_path / "bin", environment()) as bin:
        path = f"{bin}{os.pathsep}{environment()['PATH']}"
        ran = run(suite, "--mini", PATH=path, TOK_WORKSPACE=str(tmp_path), TOK_JOBS="2")
    assert ran.returncode == 0, ran.stderr[-3000:]
    report = Path(ran.stdout.strip())
    with capsys.disabled():
        table = (report / "report.md").read_text(encoding="utf-8").split("## ")[0]
        evaluated = next(line for line in ran.stderr.splitlines() if line.startswith("== evaluation"))
        print(f"\n--suite {suite} --mini, {time.monotonic() - started:.0f} s, {evaluated[3:]}\n{table}")
    with open(report / "table.csv", newline="", encoding="utf-8") as file:
        rows = {row["tokenizer"]: row for row in csv.DictReader(file)}
    guided = {f"{name}: cfg_scale=1.75" for name in ROWS} if suite == "imagenet" else set()
    assert rows.keys() >= ROWS | guided | {f"{name}, published" for name in ROWS if not name.startswith("cluster")}
    for name in ROWS:
        measured = {k: v for k, v in rows[name].items() if not k.startswith(("feature_loss", "clip_score"))}
        assert all(measured.values()), f"{name}: {rows[name]}"
    shown = [
        Reported(**column["fields"]) for column in json.loads((report / "metrics.json").read_text())["table"]["columns"]
    ]
    wanted = [c for c in PAPER if suite in c.tables or not c.tables]
    assert [c.what.name for c in wanted if not any(map(c.holds, shown))] == []
    assert {one.mode for one in shown if one.metric == "inception_score"} == {c.what.mode for c in wanted} - {None}
    for name in guided:
        drawn = [key for key, value in rows[name].items() if value and key != "tokenizer"]
        assert len(drawn) >= 4 and all(key.split(" (")[0].endswith("_ar") for key in drawn)
