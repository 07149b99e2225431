"""The command line: quick help without torch, the result alone on stdout, one line for an expected failure."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from click.testing import CliRunner

from tokcli import __version__
from tokcli.artifact.manifest import RESTORE
from tokcli.cli import cli, main
from tokcli.errors import Interrupted, Misuse, TokError
from tokcli.stages import train_tokenizer

PIPELINE = ["train-tokenizer", "train-decoder", "tokenize", "train-proposal", "sample", "eval", "viz-codebook"]
BESIDE = ["data", "import", "show", "recipes", "verify"]
EVERY = PIPELINE + BESIDE

HELP_IMPORTS_NOTHING_HEAVY = """
import sys
from click.testing import CliRunner
from tokcli.cli import cli
for arguments in [[], *([name] for name in cli.commands)]:
    result = CliRunner().invoke(cli, [*arguments, "--help"])
    assert result.exit_code == 0 and result.output.startswith("Usage: "), (arguments, result.output)
print(sorted({"torch", "numpy", "pydantic", "PIL", "yaml", "tqdm"} & set(sys.modules)))
"""


class Answer(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def tok(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Answer]:
    """Run `tok` as the shell does, in an empty folder, without a process of its own."""
    monkeypatch.chdir(tmp_path)
    for name in ("TOK_WORKSPACE", "TOK_DATA"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["tok", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        code = caught.value.code
        return Answer(code if isinstance(code, int) else 0, *capfd.readouterr())

    return run


def stage_that(monkeypatch: pytest.MonkeyPatch, act: Callable[..., Any]) -> None:
    """Let `tok viz-codebook` do `act(options)` instead."""
    from tokcli.stages import viz_codebook

    monkeypatch.setattr(viz_codebook, "main", lambda options, **_: act(options))


def failing(error: BaseException) -> Callable[..., Any]:
    def act(options: Any) -> None:
        raise error

    return act


# help


def test_no_help_imports_torch_or_anything_heavy() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", HELP_IMPORTS_NOTHING_HEAVY], capture_output=True, text=True, check=False
    )
    assert (ran.stdout.strip(), ran.stderr) == ("[]", "")


def test_help_lists_every_command_in_the_order_of_the_pipeline() -> None:
    listed = CliRunner().invoke(cli, ["--help"]).output.split("Commands:")[1].splitlines()
    assert [line.split()[0] for line in listed if line.strip()] == EVERY


@pytest.mark.parametrize("name", EVERY)
def test_every_flag_says_what_it_does(name: str) -> None:
    silent = [
        p.name for p in cli.commands[name].params if p.param_type_name == "option" and not getattr(p, "help", None)
    ]
    assert silent in ([], ["workspace"] if name == "show" else [])
    assert cli.commands[name].help


def test_one_flag_means_one_thing_everywhere() -> None:
    meanings: dict[str, set[tuple[Any, ...]]] = {}
    for name in PIPELINE:
        for option in cli.commands[name].params:
            for flag in option.opts:
                meanings.setdefault(flag, set()).add((option.human_readable_name, option.multiple, option.type.name))
    assert [flag for flag, found in meanings.items() if len(found) > 1] == []


@pytest.mark.parametrize("name", PIPELINE)
def test_every_step_of_the_pipeline_takes_the_common_flags(name: str) -> None:
    flags = {flag for option in cli.commands[name].params for flag in option.opts}
    common = "--recipe --set --workspace --out --device --threads --seed --dry-run --json"
    assert set(common.split()) <= flags


def test_version_is_the_package_s() -> None:
    assert CliRunner().invoke(cli, ["--version"]).output == f"tok, version {__version__}\n"


# misuse: 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["nonsense"],
        ["train-tokenizer", "--nonsense"],
        ["train-proposal", "--mode", "both"],
        ["sample", "-n", "many"],
        ["tokenize", "--threads", "0"],
        ["viz-codebook", "--seed", "-1"],
        ["tokenize", "--shard-index", "0"],
        ["tokenize", "--num-shards", "2"],
        ["sample", "--shard-index", "0"],
        ["tokenize", "--shard-index", "2", "--num-shards", "2"],
        ["verify"],
    ],
    ids=" ".join,
)
def test_misuse_exits_with_2_and_an_empty_stdout(tok: Callable[..., Answer], arguments: list[str]) -> None:
    code, out, err = tok(*arguments)
    assert (code, out) == (2, "")
    assert "Error: " in err and "Traceback" not in err


# expected failures: 1, one line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "none"], "none: no such folder."),
        (["show"], "--workspace artifacts: holds no complete artifacts. Run tok train-tokenizer to make the first."),
        (["verify", "."], ".: is not an artifact (it holds no manifest.json). Run tok show to list artifacts."),
        (["recipes", "toy/tokenz"], "--recipe toy/tokenz: no such recipe. Did you mean 'toy/tokens'?"),
        (["tokenize", "--tokenizer", "none"], "--tokenizer none: no such folder."),
        (["tokenize", "--set", "seed"], "--set seed: expected KEY=VALUE. Write for example --set optim.lr=1e-4."),
        (["viz-codebook", "--recipe", "x.yaml"], "--tokenizer: no tokenizer that fits is in artifacts. Name one, or make it: tok train-tokenizer."),
        (["train-tokenizer", "--data", "none", "--recipe", "toy/tokenizer-vqkd"], "--data none"),
        (["train-tokenizer", "--recipe", "toy/decoder-conv"], "is not a recipe of stage 'tokenizer'. Got 'decoder'"),
        (["train-tokenizer", "--recipe", "toy/tokenizer-vqkd", "--set", "optim.lrr=1"], "optim.lrr: unknown key. Did you mean 'lr'?"),
        (["train-tokenizer", "--dry-run", "--recipe", "toy/tokenizer-vqkd", "--teacher", "efflite"], "Did you mean 'efflite0'?"),
        (["train-tokenizer", "--recipe", "toy/tokenizer-vqkd", "--set", "quantizer.learning=gradient", "--set", "quantizer.decay=null"], "learn_from_blank: false needs a codebook of running means"),
        (["train-tokenizer", "--recipe", "toy/tokenizer-vqkd", "--device", "abacus"], "--device abacus: no such device."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_expected_failure_is_one_line_and_exits_with_1(
    tok: Callable[..., Answer], arguments: list[str], said: str
) -> None:
    code, out, err = tok(*arguments)
    *notices, line = err.splitlines()
    assert (code, out) == (1, "")
    assert said in line
    assert [notice for notice in notices if not notice.startswith(("data: ", "openmoji/train: "))] == []


def test_failure_leaves_no_folder_behind(tok: Callable[..., Answer], tmp_path: Path) -> None:
    assert tok("train-tokenizer", "--data", "none", "--recipe", "toy/tokenizer-vqkd").code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TokError("--x", "is wrong", next="Leave it out"), 1),
        (Misuse("--x", "does not go with --y", next="Leave it out"), 2),
        (Interrupted("a", "was interrupted", next="Repeat it"), 75),
        (MemoryError(), 1),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 1),
    ],
)
def test_kind_of_failure_is_told_by_the_exit_code(
    tok: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    stage_that(monkeypatch, failing(error))
    answer = tok("viz-codebook")
    assert (answer.code, answer.out, len(answer.err.splitlines())) == (code, "", 1)


def test_defect_of_our_own_keeps_its_traceback(tok: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    stage_that(monkeypatch, failing(RuntimeError("a shape is wrong")))
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        tok("viz-codebook")


# stdout


def test_stdout_is_the_path_alone_whatever_a_library_prints(
    tok: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_artifact: Callable[..., Any]
) -> None:
    def noisy(options: Any) -> Any:
        print("downloading ...")
        logging.getLogger("tok").info("a notice")
        return make_artifact(tmp_path / "a")

    stage_that(monkeypatch, noisy)
    assert tok("viz-codebook") == (0, f"{tmp_path / 'a'}\n", "downloading ...\na notice\n")


def test_json_is_the_manifest(
    tok: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_artifact: Callable[..., Any]
) -> None:
    stage_that(monkeypatch, lambda options: make_artifact(tmp_path / "a"))
    manifest = json.loads((tok("viz-codebook", "--json")).out)
    assert manifest == json.loads((tmp_path / "a" / "manifest.json").read_text())


def test_flags_reach_the_stage_as_options_and_recipe_keys(
    tok: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    stage_that(monkeypatch, lambda options: seen.append(options))
    tok(
        "viz-codebook",
        "--seed",
        "3",
        "--set",
        "a.b=[1]",
        "--set",
        "c=x",
        "--out",
        "o",
        "--workspace",
        "w",
        "--data",
        "d",
    )
    options = seen[0]
    assert options.sets == {"seed": 3, "a.b": [1], "c": "x"}
    assert (options.out, options.workspace, options.data) == (Path("o"), Path("w"), "d")


def test_workspace_comes_from_the_environment(
    tok: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_artifact: Callable[..., Any]
) -> None:
    made = make_artifact(tmp_path / "mine" / "a")
    monkeypatch.setenv("TOK_WORKSPACE", "mine")
    assert tok("show").out == f"{made.id}  mine/a\n"


def test_dry_run_prints_a_recipe_that_is_valid_and_writes_nothing(tok: Callable[..., Answer], tmp_path: Path) -> None:
    from tokcli.cli.recipes import check_file

    code, out, err = tok("train-tokenizer", "--recipe", "toy/tokenizer-vqkd", "--set", "optim.lr=2e-3", "--dry-run")
    assert (code, err.startswith("data: openmoji/train")) == (0, True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "again.yaml").write_text(out)
    assert yaml.safe_load(out)["optim"]["lr"] == 2e-3
    assert check_file(tmp_path / "again.yaml").train.steps == 4
    assert "# encoder " in out and "# memory " in out and "# trains  4 steps x 8 = 32 samples" in out
    assert "# time" not in out  # without --data nothing is run


def test_dry_run_measures_steps_where_data_is_named(tok: Callable[..., Answer], tmp_path: Path) -> None:
    code, out, _ = tok("train-tokenizer", "--recipe", "toy/tokenizer-vqkd", "--data", "openmoji/train", "--dry-run")
    line = next(line for line in out.splitlines() if line.startswith("# time"))
    assert code == 0 and re.search(r"\d ms a step on cpu, \d+ thread\(s\) \(measured\), 0 min \d+ s in all", line), line
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_is_not_cheap_is_reckoned_from_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokcli.command import plan
    from tokcli.recipe.sections import Train

    clock, asked = [0.0], []

    def step(samples: int) -> Callable[[], None]:
        asked.append(samples)
        return lambda: clock.__setitem__(0, clock[0] + 2.0 * samples)

    monkeypatch.setattr(plan.time, "perf_counter", lambda: clock[0])
    said = plan.step_time(Train(steps=100, batch_size=64, log_every=1, save_every=1), torch.device("cpu"), step)
    assert asked == [2, 8] and said.startswith("128,000 ms a step on cpu") and "reckoned from 8 samples" in said
    assert "3 h 33 min in all" in said


# tok show, tok verify, tok recipes


def test_show_lists_complete_artifacts_and_passes_over_the_rest(
    tok: Callable[..., Answer], tmp_path: Path, make_artifact: Callable[..., Any]
) -> None:
    made = [
        make_artifact(tmp_path / "artifacts" / name, kind=kind) for name, kind in (("a", "tokenizer"), ("b", "tokens"))
    ]
    (tmp_path / "artifacts" / "notes").mkdir()
    assert [line.split() for line in tok("show").out.splitlines()] == [[a.id, f"artifacts/{a.path.name}"] for a in made]
    assert [entry["kind"] for entry in json.loads(tok("show", "--json").out)] == ["tokenizer", "tokens"]


def test_show_tells_facts_lineage_and_maker(
    tok: Callable[..., Answer], tmp_path: Path, make_artifact: Callable[..., Any]
) -> None:
    made = make_artifact(tmp_path / "a", inputs={"data": {"id": "data-1", "path": "photos"}})
    out = tok("show", "a").out
    assert out.startswith(f"{made.id}  complete  a\n")
    for words in ("codebook_size               8", "data        data-1  photos", "tok train", "today, 0 s, cpu"):
        assert words in out


def test_verify_passes_a_whole_artifact_and_names_a_damaged_file(
    tok: Callable[..., Answer], tmp_path: Path, make_artifact: Callable[..., Any]
) -> None:
    made = make_artifact(tmp_path / "a")
    assert tok("verify", "a") == (0, f"{made.id}: manifest and 2 files are whole\n", "")
    (tmp_path / "a" / "log.jsonl").write_text("forged")
    assert tok("verify", "a") == (1, "", f"a: 1 of 2 files are damaged or missing. Got log.jsonl. {RESTORE}.\n")


def test_recipes_lists_and_shows_what_is_shipped(tok: Callable[..., Answer]) -> None:
    listed = tok("recipes").out
    assert "toy/tokens " in listed
    assert tok("recipes", "toy/tokens").out.startswith(
        f"# {listed.split('toy/tokens ')[1].splitlines()[0].strip()}\nstage: tokens\n"
    )


def test_recipes_checks_a_file_of_one_s_own(tok: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("stage: tokens\ntokens: {crops: 0, flop: true}\n")
    code, out, err = tok("recipes", "--check", "mine.yaml")
    assert (code, out) == (1, "")
    assert [line.split(": ")[1] for line in err.splitlines()] == ["tokens.crops", "tokens.flop"]


PUBLISHED = {
    "imagenet/tokenizer-vqgan": {"encoder": 29_298_176, "pixel decoder": 42_449_795, "discriminator": 663_361},
    "imagenet/tokenizer-llamagen": {"encoder": 29_298_176, "pixel decoder": 42_449_795, "discriminator": 2_765_633},
    "imagenet/tokenizer-vqkd": {"encoder": 86_404_640, "feature decoder": 8_250_368},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_plan_prints_the_published_numbers_of_parameters(tok: Callable[..., Answer], name: str) -> None:
    plan = tok("train-tokenizer", "--recipe", name, "--dry-run").out
    for module, count in PUBLISHED[name].items():
        assert re.search(rf"^# {module} +{count:,} +0$", plan, re.MULTILINE), plan


def test_a_codebook_that_dies_is_told_once_with_advice(
    tok: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photos: Path
) -> None:
    from tokcli.quantizers import Quantizer

    monkeypatch.setattr(Quantizer, "usage_window", 1)
    command = [
        "train-tokenizer",
        "--recipe",
        "toy/tokenizer-vqgan",
        "--data",
        str(photos / "train"),
        "--set",
        "train.batch_size=2",
    ]
    answer = tok(*command, "--set", "quantizer.codebook_size=4096", "--out", str(tmp_path / "out"))
    assert answer.code == 0
    told = [line for line in answer.err.splitlines() if "of the codes were used lately" in line]
    assert len(told) == 1 and "Try quantizer.rescue=revive or quantizer.rescue=anchors or a smaller" in told[0]


@pytest.mark.parametrize(("held_out", "told"), [(1.0, True), (60.0, False)])
def test_a_tokenizer_that_cannot_tell_held_out_images_apart_is_named(
    held_out: float, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = SimpleNamespace(quantizer=SimpleNamespace(discrete=True, health=lambda: {"codebook_perplexity": 400.0}))
    train_tokenizer._warn_of_collapse(tokenizer, {"codebook_perplexity": held_out}, 295 * 64)  # type: ignore[arg-type]
    train_tokenizer._warn_of_collapse(tokenizer, {"codebook_perplexity": 2.0}, 4)  # type: ignore[arg-type]
    train_tokenizer._warn_of_collapse(tokenizer, {}, 4)  # type: ignore[arg-type]
    assert caplog.text.count("held-out images have a codebook perplexity") == told
