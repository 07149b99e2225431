"""Plans: a dry run's JSON stands in for the artifact in the dry runs after it, and refuses what the runs would."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_faults import draw, made, refusal, run

from tokcli.artifact.opening import open_artifact

Planner = Callable[..., Path]
LATER = {"text_sha256", "class_counts", "labels", "captions"}  # facts that only the run or only the plan knows


def planner(folder: Path) -> Planner:
    """`plan(command, ...)` -> the file of its dry run's JSON."""
    folder.mkdir(parents=True, exist_ok=True)

    def plan(*arguments: Any) -> Path:
        result = run(*arguments, "--dry-run", "--json")
        assert result.exception is None, result.exception
        file = folder / f"{len(list(folder.iterdir()))}.json"
        file.write_text(result.stdout)
        return file

    return plan


def toy(root: Path) -> dict[str, list[Any]]:
    """The commands of a toy family up to the flags that name inputs."""
    losses = ["--set", "loss={l1: {weight: 1.0}}", "--set", "train.steps=1"]
    return {
        "tokenizer": [
            "train-tokenizer",
            "--recipe",
            "toy/tokenizer-vqgan",
            *losses,
            "--data",
            root / "photos" / "train",
        ],
        "decoder": ["train-decoder", "--recipe", "toy/decoder-conv", *losses],
        "tokens": ["tokenize", "--recipe", "toy/tokens"],
        "proposal": ["train-proposal", "--recipe", "toy/proposal-ar", "--set", "train.steps=1"],
        "samples": ["sample", "--recipe", "toy/sample-ar", "-n", "2"],
    }


def chain(root: Path, make: Callable[..., Path]) -> dict[str, Path]:
    """All of a toy family, run or planned."""
    of = toy(root)
    found = {"tokenizer": make(*of["tokenizer"])}
    found["decoder"] = make(*of["decoder"], "--tokenizer", found["tokenizer"])
    found["tokens"] = make(*of["tokens"], "--tokenizer", found["tokenizer"])
    found["proposal"] = make(*of["proposal"], "--tokens", found["tokens"])
    found["samples"] = make(*of["samples"], "--proposal", found["proposal"], "--decoder", found["decoder"])
    return found


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """A family that was run and one that was planned, of the same commands."""
    root = tmp_path_factory.mktemp("plans")
    for number in range(4):
        draw(root / "photos" / "train" / ("cat", "dog")[number % 2] / f"{number}.png", shade=20 * number)
    workspace = ["--workspace", root / "ws"]
    return {
        "run": chain(root, lambda *a: made(*a, *workspace)),
        "planned": chain(root, planner(root / "plans")),
        "root": {"root": root},
    }


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@pytest.mark.parametrize("kind", ["tokenizer", "decoder", "tokens", "proposal", "samples"])
def test_a_plan_has_the_facts_and_the_recipe_of_the_artifact(families: dict[str, dict[str, Path]], kind: str) -> None:
    planned, manifest = read(families["planned"][kind]), open_artifact(families["run"][kind]).manifest
    facts, found = ({k: v for k, v in x["facts"].items() if k not in LATER} for x in (planned, manifest))
    assert (planned["kind"], planned["recipe"], facts) == (kind, manifest["recipe"], found)
    assert planned["inputs"].keys() == manifest["inputs"].keys()


def test_plans_write_nothing_and_share_lineage_by_their_ids(families: dict[str, dict[str, Path]]) -> None:
    planned = {kind: read(file) for kind, file in families["planned"].items()}
    assert planned["samples"]["inputs"]["tokenizer"]["id"] == planned["tokenizer"]["id"]
    assert planned["samples"]["inputs"]["decoder"]["id"] == planned["decoder"]["id"]
    assert sorted(path.name for path in families["root"]["root"].iterdir()) == ["photos", "plans", "ws"]


def test_a_run_does_not_take_a_plan(families: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    flags = ["--tokenizer", families["planned"]["tokenizer"], "--workspace", tmp_path]
    said = refusal("tokenize", "--recipe", "toy/tokens", *flags)
    assert "is a plan, which only dry runs read. Name the artifact's folder, or add --dry-run." in said


def test_a_plan_that_was_changed_is_refused(families: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    document = read(families["planned"]["tokenizer"])
    (tmp_path / "t.json").write_text(json.dumps({**document, "facts": {**document["facts"], "code_dim": 7}}))
    flags = ["--recipe", "toy/tokens", "--dry-run", "--tokenizer"]
    assert "the plan was changed: its id does not match" in refusal("tokenize", *flags, tmp_path / "t.json")
    (tmp_path / "u.json").write_text(json.dumps({**document, "facts": {"grid": 4}}))
    assert "is a damaged plan: key 'facts.grid'" in refusal("tokenize", *flags, tmp_path / "u.json")


# what the run refuses, the dry run refuses by the same line


REFUSED: dict[str, tuple[str, list[Any], str]] = {  # kind to be made, its flags, what is said
    "size": ("decoder", ["--set", "data.size=32", "--set", "decoder.widths=[8, 8, 8]"], "the tokenizer is used at 64 px"),
    "grid": ("decoder", ["--set", "decoder.widths=[8, 8]"], "decoder.widths"),
    "expected width": ("decoder", ["--set", "expects.code_dim=7"], "expects.code_dim: 7, not 16"),
    "expected grid": ("decoder", ["--set", "expects.grid=[4, 4]"], "expects.grid: (4, 4), not (8, 8)"),
    "expected classes": ("decoder", ["--set", "expects.classes=3"], "expects.classes: 3, not 2"),
    "unread weights": ("decoder", ["--vgg-weights", "x.pth"], "nothing here reads it"),
    "expected codes": ("proposal", ["--set", "expects.codebook_size=8192"], "expects.codebook_size: 8192, not 32"),
    "mode": ("proposal", ["--mode", "nar"], "the recipe is of a network of another mode"),
    "captions": ("proposal", ["--set", "condition={name: text, length: 8}"], "its images have no captions"),
    "nothing to measure on": ("proposal", ["--set", "train.eval_every=1"], "there is nothing to measure on"),
    "unread text weights": ("proposal", ["--text-weights", "x.pth"], "nothing here reads it"),
    "mode of samples": ("samples", ["--mode", "nar"], "is of mode ar"),
    "class": ("samples", ["--classes", "emu"], "no such class 'emu'"),
    "class number": ("samples", ["--classes", "2"], "no such class '2'"),
    "prompts": ("samples", ["--set", "sample.prompts=[a cat]"], "is conditioned on classes, not on captions"),
    "steps": ("samples", ["--set", "sample.steps=3"], "this proposal network does not read it"),
    "temperature": ("samples", ["--temperature", "-1"], "sample.temperature: should be 0 or at least 1e-6"),
}  # fmt: skip


def inputs(kind: str, family: dict[str, Path]) -> list[Any]:
    flags = {"decoder": ["tokenizer"], "proposal": ["tokens"], "samples": ["proposal", "decoder"]}[kind]
    return [word for flag in flags for word in (f"--{flag}", family[flag])]


def general(line: str) -> str:
    """The line without what differs between an artifact and its plan: paths and ids."""
    return re.sub(r"/\S+|(-plan)?-[0-9a-f]{12}", "", line)


@pytest.mark.parametrize("case", REFUSED)
def test_the_dry_run_refuses_what_the_run_refuses(families: dict[str, Any], case: str, tmp_path: Path) -> None:
    kind, flags, said = REFUSED[case]
    command = [*toy(families["root"]["root"])[kind], *flags, "--workspace", tmp_path / "ws"]
    ran = refusal(*command, *inputs(kind, families["run"]))
    assert said in ran
    for family in ("run", "planned"):
        assert general(refusal(*command, *inputs(kind, families[family]), "--dry-run")) == general(ran)


def test_the_dry_run_refuses_a_decoder_of_another_tokenizer(families: dict[str, Any], tmp_path: Path) -> None:
    of, root = toy(families["root"]["root"]), families["root"]["root"]
    plan = planner(tmp_path)
    other = plan(*of["tokenizer"], "--seed", "7")
    command = [*of["samples"], "--proposal", families["planned"]["proposal"], "--decoder", other, "--dry-run"]
    assert "Use two that share a tokenizer" in refusal(*command)
    ran = made(*of["tokenizer"], "--seed", "7", "--workspace", tmp_path / "ws")
    command = [*of["samples"], "--proposal", families["run"]["proposal"], "--decoder", ran, "--workspace", root / "ws"]
    assert "Use two that share a tokenizer" in refusal(*command)


def test_the_dry_run_refuses_guidance_of_a_network_that_kept_every_label(
    families: dict[str, Any], tmp_path: Path
) -> None:
    of, planned = toy(families["root"]["root"]), families["planned"]
    p = planner(tmp_path)(*of["proposal"], "--tokens", planned["tokens"], "--set", "proposal.label_drop=0.0")
    command = [*of["samples"], "--cfg-scale", "2", "--proposal", p, "--decoder", planned["decoder"], "--dry-run"]
    assert "was trained without label_drop and cannot be guided" in refusal(*command)


def test_a_masked_network_is_planned_with_no_more_steps_than_tokens(families: dict[str, Any], tmp_path: Path) -> None:
    planned = families["planned"]
    p = planner(tmp_path)("train-proposal", "--recipe", "toy/proposal-nar", "--tokens", planned["tokens"])
    command = ["sample", "--recipe", "toy/sample-nar", "--proposal", p, "--decoder", planned["tokenizer"], "--dry-run"]
    assert "steps" in refusal(*command, "--steps", "65") and run(*command, "--steps", "64").exit_code == 0


def test_a_decoder_is_not_a_tokenizer_without_pixels(families: dict[str, Any], tmp_path: Path) -> None:
    t = planner(tmp_path)(
        "train-tokenizer", "--recipe", "toy/tokenizer-vqkd", "--data", families["root"]["root"] / "photos" / "train"
    )
    command = [
        "sample",
        "--recipe",
        "toy/sample-ar",
        "--proposal",
        families["planned"]["proposal"],
        "--decoder",
        t,
        "--dry-run",
    ]
    assert "is a tokenizer without a pixel decoder" in refusal(*command)


def test_a_tokenizer_without_codes_is_refused_where_indices_are_needed(
    families: dict[str, Any], tmp_path: Path
) -> None:
    where = ["--data", families["root"]["root"] / "photos" / "train"]
    yardstick = ["--set", "quantizer={name: none, code_dim: 32}"]
    t = planner(tmp_path)("train-tokenizer", "--recipe", "toy/tokenizer-vqkd", *yardstick, *where)
    for command in (["tokenize", "--recipe", "toy/tokens"], ["train-decoder", "--recipe", "toy/decoder-conv"]):
        assert "was trained without a quantizer" in refusal(*command, "--tokenizer", t, "--dry-run")


TEACHERS = ("clip", "vit", "dino", "mae")
ROWS = ["vqgan", "fsq", *(f"{method}:{teacher}" for method in ("vqkd", "cluster") for teacher in TEACHERS)]


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_each_row_of_the_tables_is_planned_to_its_samples(tmp_path: Path, row: str) -> None:
    plan, (method, _, teacher) = planner(tmp_path), row.partition(":")
    asked = ["--teacher", teacher] if teacher else []
    t = plan("train-tokenizer", "--recipe", f"imagenet/tokenizer-{method}", "--data", "imagenet/train", *asked)
    own = read(t)["facts"]["has_decoder"]
    d = t if own else plan("train-decoder", "--recipe", "imagenet/decoder-conv", "--tokenizer", t)
    k = plan("tokenize", "--recipe", "imagenet/tokens", "--tokenizer", t)
    for mode, network in (("ar", "ar-medium"), ("nar", "nar")):
        p = plan("train-proposal", "--recipe", f"imagenet/proposal-{network}", "--tokens", k)
        s = plan("sample", "--mode", mode, "-n", "50000", "--proposal", p, "--decoder", d)
        assert read(s)["inputs"]["tokenizer"]["id"] == read(t)["id"]
        parts = [read(file)["compute"]["seconds"] for file in (t, d, p, s)]
        assert all(seconds > 0 for seconds in parts)


# data that is not on this machine


def test_data_elsewhere_leaves_its_classes_unknown_and_unchecked(tmp_path: Path) -> None:
    plan, where = planner(tmp_path / "plans"), ["--data", tmp_path / "imagenet" / "train"]
    t = plan("train-tokenizer", "--recipe", "toy/tokenizer-vqgan", *where)
    k = plan("tokenize", "--recipe", "toy/tokens", "--tokenizer", t)
    assert read(t)["facts"]["classes"] is None and read(k)["facts"]["rows"] is None
    text = run("tokenize", "--recipe", "toy/tokens", "--tokenizer", t, "--dry-run").stdout
    assert "# unknown classes, rows" in text
    network = ["train-proposal", "--recipe", "toy/proposal-ar", "--tokens", k]
    assert "nobody knows classes" in refusal(*network, "--dry-run")
    p = plan(*network, "--set", "expects.classes=1000")
    assert read(p)["facts"]["classes"] == 1000
    sample = ["sample", "--recipe", "toy/sample-ar", "--proposal", p, "--decoder", t, "--dry-run", "--classes"]
    assert run(*sample, "999,tench").exit_code == 0
    assert "no such class '1000'" in refusal(*sample, "1000")


def test_data_that_is_there_but_wrong_is_refused_by_the_plan_too(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    command = ["train-tokenizer", "--recipe", "toy/tokenizer-vqgan", "--data", tmp_path / "photos"]
    assert refusal(*command, "--dry-run") == refusal(*command, "--workspace", tmp_path / "ws")


# tok eval


MEASURED = ("tokenizer", "decoder", "proposal", "samples")


def evaluation(family: dict[str, Path], *kinds: str) -> list[Any]:
    return ["eval", *(family[kind] for kind in kinds or MEASURED), "--recipe", "toy/eval"]


def test_an_evaluation_of_plans_counts_all_networks_and_writes_nothing(
    families: dict[str, Any], tmp_path: Path
) -> None:
    data = ["--data", families["root"]["root"] / "photos" / "train"]
    whole = read(planner(tmp_path)(*evaluation(families["planned"]), *data))
    part = read(planner(tmp_path)(*evaluation(families["planned"], "decoder"), *data))
    assert whole["kind"] == "report" and whole["compute"]["units"] == 4
    assert whole["compute"]["flop"] > part["compute"]["flop"] > 0
    ids = {entry["id"] for entry in whole["inputs"].values()}
    assert {read(families["planned"][kind])["id"] for kind in MEASURED} < ids


JUDGED: dict[str, tuple[list[Any], str]] = {
    "extractor": (["--set", "eval.extractors=[efflite]"], "Did you mean 'efflite0'?"),
    "unread Inception": (["--inception-weights", "x.pth"], "no extractor of this recipe is inception"),
    "unread VGG": (["--vgg-weights", "x.pth"], "nothing here reads it"),
    "published statistics": (["--reference", "NPZ"], "holds features of Inception"),
}


@pytest.mark.parametrize("case", JUDGED)
def test_the_dry_run_of_an_evaluation_refuses_what_it_would(
    families: dict[str, Any], case: str, tmp_path: Path
) -> None:
    flags, said = JUDGED[case]
    (tmp_path / "some.npz").write_bytes(b"")
    common = ["--data", families["root"]["root"] / "photos" / "train", "--workspace", tmp_path]
    common += [tmp_path / "some.npz" if flag == "NPZ" else flag for flag in flags]
    ran = refusal(*evaluation(families["run"]), *common)
    assert said in ran
    for family in ("run", "planned"):
        assert refusal(*evaluation(families[family]), *common, "--dry-run") == ran


def test_a_decoder_without_its_tokenizer_is_refused_before_anything_is_measured(
    families: dict[str, Any], tmp_path: Path
) -> None:
    document = read(families["planned"]["decoder"])
    document["inputs"]["tokenizer"]["path"] = str(tmp_path / "gone.json")  # a hint, outside of the id
    (tmp_path / "d.json").write_text(json.dumps(document))
    command = [
        "eval",
        tmp_path / "d.json",
        "--recipe",
        "toy/eval",
        "--data",
        families["root"]["root"] / "photos" / "train",
    ]
    assert "this input is not at" in refusal(*command, "--dry-run")


def test_a_planned_evaluation_goes_on_where_held_out_images_are_elsewhere(tmp_path: Path) -> None:
    plan = planner(tmp_path / "plans")
    t = plan("train-tokenizer", "--recipe", "toy/tokenizer-vqgan", "--data", tmp_path / "imagenet" / "train2014")
    text = run("eval", t, "--recipe", "toy/eval", "--set", "eval.images=0", "--dry-run").stdout
    assert f"# reads   data: {tmp_path}/imagenet/val2014" in text
    assert "FLOP an image; how many there are is not known here" in text
    known = read(plan("eval", t, "--recipe", "toy/eval", "--set", "eval.images=50000"))["compute"]
    assert known["units"] == 50000 and known["assumed"]["gpus"] == 1
