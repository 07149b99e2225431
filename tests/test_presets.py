"""Presets: which folder of recipes a run takes, and that later stages go on with it and with its sizes."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from tokcli import build
from tokcli.artifact.draft import write_manifest
from tokcli.cli import cli
from tokcli.cli.recipes import check_file
from tokcli.command import inputs
from tokcli.command.inputs import BASE, FEW, SMALL, choose_preset, load_recipe, preset_recorded, with_preset
from tokcli.command.options import Options, Preset
from tokcli.errors import TokError
from tokcli.proposals import PROPOSALS
from tokcli.recipe.sections import Component, Data
from tokcli.recipe.yaml import find_recipe, preset_named, presets, read_yaml, recipe_files, recipe_name
from tokcli.stages.show import describe
from tokcli.stages.train_proposal import ProposalRecipe
from tokcli.stages.train_tokenizer import _settle_cache


class Pictures:
    """A source of that many images of one size."""

    classes: list[str] = []
    problems: list[tuple[str, str]] = []

    def __init__(self, count: int, width: int, height: int) -> None:
        self.count, self.shape, self.id = count, (3, height, width), f"data-{count}-{width}-{height}"

    def __len__(self) -> int:
        return self.count

    def image(self, i: int) -> torch.Tensor:
        return torch.zeros(self.shape, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("images", "on_gpu", "name"),
    [
        (Pictures(60_000, 400, 300), False, SMALL), (Pictures(60_000, 400, 300), True, BASE), (Pictures(FEW - 1, 400, 300), True, SMALL),
        (Pictures(60_000, 400, 28), True, SMALL), (None, True, BASE), (None, False, SMALL), (Pictures(1, 1, 1), True, SMALL),
    ],
)  # fmt: skip
def test_the_preset_follows_from_images_and_device(images: Any, on_gpu: bool, name: str) -> None:
    assert choose_preset(images, on_gpu=on_gpu, cores=2).name == name


def test_why_names_what_was_found() -> None:
    why = choose_preset(Pictures(1234, 90, 40), on_gpu=False, cores=1).why  # type: ignore[arg-type]
    assert why == "1,234 images of 40 px (the short side, at the median) on a CPU with 1 core"


def dry(*arguments: Any) -> tuple[dict[str, Any], str]:
    logging.getLogger("tok").handlers.clear()  # of the command before: its stderr is gone
    result = CliRunner().invoke(cli, [str(a) for a in (*arguments, "--dry-run", "--json", "--device", "cpu")])
    assert result.exit_code == 0, result.stderr[-2000:]
    return json.loads(result.stdout), result.stderr


def test_a_folder_s_preset_is_said_recorded_and_gone_on_with(photos: Path, tmp_path: Path) -> None:
    plan, said = dry("train-tokenizer", "--data", photos / "train")
    assert "recipe: folder/small (64 px, minutes on a CPU), for 6 images of 10 px" in said
    assert "--recipe folder/base (128 px, for a GPU)" in said
    assert plan["preset"]["name"] == SMALL and plan["facts"]["use_size"] == 64
    files = {kind: tmp_path / f"{kind}.json" for kind in ("tokenizer", "decoder", "tokens", "proposal")}
    files["tokenizer"].write_text(json.dumps(plan))
    for command, reads in (("train-decoder", "tokenizer"), ("tokenize", "tokenizer"), ("train-proposal", "tokens")):
        plan, said = dry(command, f"--{reads}", files[reads])
        assert plan["preset"]["name"] == SMALL and f"recipe: folder/small, the preset of {files[reads]}" in said
        files[plan["kind"]].write_text(json.dumps(plan))
    plan, said = dry("sample", "--proposal", files["proposal"], "--decoder", files["decoder"])
    assert plan["preset"]["name"] == SMALL
    plan, said = dry("eval", files["tokenizer"], "--data", photos / "val")
    assert plan["recipe"]["eval"]["images"] == 2048  # as the small preset has it
    assert dry("viz-codebook", "--tokenizer", files["tokenizer"])[0]["preset"]["name"] == SMALL


def test_captions_that_the_preset_does_not_read_are_said(photos: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for file in (photos / split).rglob("*.png"):
            file.rename(photos / split / file.name)  # no classes
            (photos / split / f"{file.stem}.txt").write_text("a picture\n")
    files = {}
    for command, *reads in (
        ["train-tokenizer", "--data", photos / "train"],
        ["tokenize", "--tokenizer"],
        ["train-proposal", "--tokens"],
    ):
        plan, said = dry(command, *reads, *([] if len(reads) == 2 else files.values()))
        (file := tmp_path / f"{plan['kind']}.json").write_text(json.dumps(plan))
        files = {plan["kind"]: file}
    assert "its images have captions and no classes: the network will be conditioned on nothing" in said
    text = ["--set", "condition={name: text, tower: minilm, length: 32}"]
    assert "on nothing" not in dry("train-proposal", "--tokens", tmp_path / "tokens.json", *text)[1]


def test_a_decoder_takes_the_sizes_of_its_tokenizer(photos: Path, tmp_path: Path) -> None:
    plan, _ = dry("train-tokenizer", "--data", photos / "train")
    (tmp_path / "t.json").write_text(json.dumps(plan))
    decoder = ("train-decoder", "--tokenizer", tmp_path / "t.json", "--recipe", "folder/base")
    made, said = dry(*decoder)
    assert made["recipe"]["data"]["size"] == 64 and made["recipe"]["decoder"]["widths"] == [256, 128, 96, 64]
    assert "recipe: data.size=64, decoder.widths=[256, 128, 96, 64], for the tokenizer" in said
    result = CliRunner().invoke(cli, [*map(str, decoder), "--dry-run", "--set", "data.size=128"])
    assert isinstance(result.exception, TokError) and "used at 64 px" in str(result.exception)


@pytest.mark.parametrize(
    ("size", "grid", "fitted"),
    [
        (32, (4, 4), {}), (64, (8, 8), {"data.size": 64}), (32, (8, 8), {"decoder.widths": [8, 7, 5]}),
        (32, (2, 2), {"decoder.widths": [9, 9, 8, 7, 5]}), (32, (32, 32), {"decoder.widths": [5]}), (224, (16, 16), {"data.size": 224}),
    ],
)  # fmt: skip
def test_stages_at_the_image_s_resolution_stay(size: int, grid: tuple[int, int], fitted: dict[str, Any]) -> None:
    data = Data(size=32, transform=Component(name="center-crop"))
    decoder = Component.model_validate({"name": "conv", "widths": [9, 8, 7, 5]})
    assert build.decoder_sizes(data, decoder, {"use_size": size, "grid": list(grid)}) == fitted


def test_a_grid_that_no_doubling_leads_from_is_told_what_does() -> None:
    with pytest.raises(TokError, match=r"--set 'decoder=\{name: vit"):
        build.build_decoder({"seed": 0, "decoder": {"name": "conv", "widths": [8, 8]}}, 4, (16, 16), 224)


def test_a_recipe_of_one_s_own_has_the_preset_of_its_input_or_none(
    photos: Path, make_artifact: Any, tmp_path: Path
) -> None:
    own, spec = Options(recipe="own.yaml"), str(photos / "train")
    assert with_preset(own, spec) == (own, None)
    made = make_artifact(tmp_path / "a")
    assert preset_recorded(made) is None
    made.manifest["provenance"]["preset"] = {"name": "toy", "why": ""}
    assert with_preset(own, spec, made)[0].preset == Preset("toy", f"{made.path} was made by it")
    assert "preset toy" not in describe(made.path)
    write_manifest(made.path, made.manifest)
    assert describe(made.path).endswith("\n  preset toy: ")
    made.manifest["provenance"]["preset"] = {"name": "../toy"}
    assert preset_recorded(made) is None


def test_recipe_may_name_a_preset_and_so_its_recipe_of_each_stage(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tok")
    for stage in ("tokens", "decoder-conv"):
        assert recipe_name(find_recipe(SMALL, preset="openmoji", name=stage)) == f"{SMALL}/{stage}"
    assert caplog.records == []
    assert preset_named("folder/small/tokens") == preset_named("folder/small/") == SMALL
    assert preset_named("folder/small/none.yaml") is preset_named("tokens") is preset_named(None) is None
    with pytest.raises(TokError, match="Did you mean 'folder/small'"):
        find_recipe("folder/smal", preset="", name="tokens")


def test_a_preset_s_recipe_runs_by_the_preset_s_name(photos: Path) -> None:
    plan, said = dry("train-tokenizer", "--data", photos / "train", "--recipe", "toy")
    assert plan["preset"] == {"name": "toy", "why": "--recipe names it"} and plan["recipe"]["encoder"]["width"] == 32
    plan, _ = dry("train-tokenizer", "--data", photos / "train", "--recipe", BASE, "--method", "fsq")
    assert plan["facts"]["method"] == "fsq" and plan["facts"]["use_size"] == 128


@pytest.mark.parametrize(("sets", "precision"), [({}, "float32"), ({"train.precision": "bfloat16"}, "bfloat16")])
def test_a_preset_leaves_bfloat16_to_cpus_that_have_instructions_for_it(
    sets: dict[str, Any], precision: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tok")

    def trained_by(recipe: str | None = None) -> tuple[str, str]:
        options = Options(sets=sets, preset=Preset(SMALL, "why"), recipe=recipe, device="cpu")
        made = load_recipe(options, ProposalRecipe, "proposal-nar", {"proposal": PROPOSALS})
        return made.optim.name, made.train.precision

    monkeypatch.setattr(inputs, "emulated_bfloat16", lambda device: "")
    assert trained_by() == ("muon", "bfloat16") and caplog.text == ""
    monkeypatch.setattr(inputs, "emulated_bfloat16", lambda device: "it is slow" if device.type == "cpu" else "")
    assert trained_by(f"{SMALL}/proposal-nar") == ("muon", "bfloat16") and caplog.text == ""  # the user's own choice
    assert trained_by() == ("muon", precision)
    said = "recipe: train.precision=float32, since it is slow"
    assert (said in caplog.text) == (precision == "float32")


def test_features_are_kept_only_of_images_that_are_all_seen() -> None:
    recipe = read_yaml(find_recipe(SMALL, preset="", name="tokenizer-vqkd"))
    seen = recipe["train"]["steps"] * recipe["train"]["batch_size"]
    for sets, images, kept in (
        ({}, seen, True),
        ({}, seen + 1, False),
        ({"data.cache_features": True}, seen + 1, True),
    ):
        checked = check_file(find_recipe(SMALL, preset="", name="tokenizer-vqkd"))
        _settle_cache(Options(sets=sets), checked, images)
        assert checked.data.cache_features is kept


def test_every_preset_holds_every_stage_of_its_own_size() -> None:
    assert {SMALL, BASE, "openmoji", "toy"} <= set(presets())
    for preset in (SMALL, BASE):
        of_it = {path.stem for path in recipe_files() if recipe_name(path).rpartition("/")[0] == preset}
        assert of_it >= {"tokenizer-vqkd", "tokenizer-cluster", "decoder-conv", "proposal-ar", "proposal-nar"}
        assert of_it >= {"tokens", "sample-ar", "sample-nar", "eval", "viz"}


def test_no_recipe_that_a_cpu_can_run_is_unmeasured() -> None:
    unmeasured = [
        recipe_name(path) for path in recipe_files() if "not measured yet" in path.read_text(encoding="utf-8")
    ]
    assert [name for name in unmeasured if name.startswith(SMALL)] == []
    for name in unmeasured:
        assert name.startswith(("imagenet/", "coco/", BASE)), name


@pytest.mark.slow
def test_a_folder_of_one_grey_image_of_28_pixels_goes_through_the_chain(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    Image.new("L", (28, 28), 40).save(tmp_path / "one" / "a.png")
    few = {"train-tokenizer": ["--set", "train.steps=2", "--set", "quantizer.init_after=1"], "train-decoder": ["--set", "train.steps=1"], "train-proposal": ["--set", "train.steps=1"]}  # fmt: skip

    def made(command: str, *arguments: Any) -> str:
        given = [command, *arguments, *few.get(command, []), "--workspace", str(tmp_path / "w")]
        result = CliRunner().invoke(cli, [*map(str, given), "--device", "cpu"])
        if "perceptual loss squeezenet: weights not found" in str(result.exception):
            pytest.skip(str(result.exception))
        assert result.exit_code == 0, f"{result.stderr[-2000:]}{result.exception!r}"
        return result.stdout.strip()

    t = made("train-tokenizer", "--data", tmp_path / "one")
    d, k = made("train-decoder", "--tokenizer", t), made("tokenize", "--tokenizer", t)
    p = made("train-proposal", "--tokens", k)
    s = made("sample", "-n", 2, "--proposal", p, "--decoder", d)
    assert {Image.open(path).size for path in Path(s).rglob("images/**/*.png")} == {(64, 64)}
