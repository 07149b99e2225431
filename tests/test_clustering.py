"""Cluster with any teacher: the grid stays, the codebook is as wide as the features, later stages accept both."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tokcli import build, loading
from tokcli.artifact.opening import open_artifact
from tokcli.artifact.plans import Plan
from tokcli.artifact.weights import save_tensors
from tokcli.cli import cli
from tokcli.command.inputs import check_expected, load_recipe
from tokcli.command.options import Options
from tokcli.errors import TokError
from tokcli.methods import METHODS, resolve
from tokcli.methods.clustering import Clustering, ClusterRecipe
from tokcli.pretrained.teacher import build_teacher
from tokcli.recipe.check import InvalidRecipe, resolved
from tokcli.recipe.sections import Expects
from tokcli.recipe.yaml import read_yaml, recipes_root
from tokcli.stages import train_tokenizer
from tokcli.training.updater import Updater

WIDTHS = {
    "clip": 768, "efflite0": 1280, "vits14": 384, "siglip2-b": 768, "vit": 768, "dino": 768, "mae": 768, "dinov2-b": 768,
    "timm:vit_small_patch16_224.dino": 384, "open_clip:ViT-B-16/laion2b_s34b_b88k": 768,
}  # fmt: skip
SMALL = {
    "data.size": 32, "data.transform.name": "center-crop", "teacher.grid": [2, 2], "quantizer.codebook_size": 8,
    "train.batch_size": 4, "train.precision": "float32", "init_batches": 1, "data.workers": 0,
}  # fmt: skip


def recipe_of(folder: str = "imagenet", **sets: Any) -> ClusterRecipe:
    options = Options(recipe=f"{folder}/tokenizer-cluster", sets={k.replace("__", "."): v for k, v in sets.items()})
    return Clustering.settled(load_recipe(options, ClusterRecipe, "", Clustering.families, resolve))


def on_meta(recipe: ClusterRecipe) -> Clustering:
    with torch.device("meta"):
        return Clustering(recipe, None, torch.device("meta"))


def some(names: Iterable[str], fast: int) -> list[Any]:
    """The first few as they are, the others marked slow."""
    return [pytest.param(n, marks=[pytest.mark.slow] * (i >= fast)) for i, n in enumerate(names)]


@pytest.mark.parametrize("name", some(WIDTHS, 4))
def test_any_teacher_gives_the_tables_grid_and_codes_as_wide_as_its_features(name: str) -> None:
    recipe = recipe_of(teacher__name=name)
    assert resolved(recipe)["quantizer"]["code_dim"] == WIDTHS[name]
    tokenizer = on_meta(recipe).tokenizer
    assert tokenizer.grid(256) == (16, 16) and tokenizer.quantizer.code_dim == WIDTHS[name]


@pytest.mark.parametrize("folder", ["imagenet", "coco"])
@pytest.mark.parametrize("decoder", ["conv", "llamagen"])
@pytest.mark.parametrize("name", ["vit", "clip", "dino", "mae"])
def test_pixel_decoders_of_the_tables_accept_cluster_s_rows(folder: str, decoder: str, name: str) -> None:
    keys = read_yaml(recipes_root() / folder / f"decoder-{decoder}.yaml")["expects"]
    check_expected(Expects(**keys | {"grid": tuple(keys["grid"])}), code_dim=WIDTHS[name], grid=(16, 16))


@pytest.mark.parametrize("name", some(["vits14", "clip"], 1))
@pytest.mark.parametrize("folder", ["openmoji", "fashion-mnist", "folder/small", "folder/base"])
def test_recipes_of_small_data_take_another_teacher_too(folder: str, name: str) -> None:
    recipe = recipe_of(folder, teacher__name=name)
    assert on_meta(recipe).tokenizer.grid(recipe.data.size) == (8, 8)


def test_a_width_that_is_not_the_teacher_s_is_refused() -> None:
    with pytest.raises(
        TokError, match="quantizer.code_dim: must be the width of the teacher.s features, 768. Got 32. Leave"
    ):
        recipe_of(quantizer__code_dim=32)
    assert recipe_of(quantizer__code_dim=768) == recipe_of(quantizer__code_dim=None) == recipe_of()


def test_batches_of_kmeans_are_refused_where_codes_start_without() -> None:
    with pytest.raises(InvalidRecipe, match="init_batches goes with quantizer.init: kmeans. Got 64 and uniform"):
        recipe_of(quantizer__init="uniform")
    assert recipe_of(quantizer__init="uniform", init_batches=1).quantizer.keys["init"] == "uniform"


def test_recipes_from_before_there_were_a_grid_and_a_projection_build_the_same_network() -> None:
    recipe = resolved(recipe_of(teacher__name="clip", teacher__grid=None, teacher__projection=True))
    old = {**recipe, "teacher": {"name": "clip", "layers": None, "norm": True, "image_size": 224}}
    with torch.device("meta"):
        encoder = build.build_clustering(old, "random").encoder
    assert encoder.code_dim == 512 and encoder.grid(224) == (14, 14)


def batches() -> Iterator[Any]:
    """Batches of noise."""
    random = torch.Generator().manual_seed(0)
    while True:
        yield SimpleNamespace(images=torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=random))


@pytest.mark.parametrize("name", some(["timm:test_vit", *(name for name in WIDTHS if name != "dinov2-b")], 1))
def test_codes_learn_from_any_teacher(name: str) -> None:
    method = Clustering(recipe_of(**SMALL, teacher__name=name), None, torch.device("cpu"))
    codes = method.tokenizer.quantizer
    method.initialise(batches())
    updater, before = Updater(method.objective, method.recipe.optim, method.recipe.train, method.device), codes.table()
    for step, batch in zip(range(2), batches(), strict=False):
        images = batch.images / 255
        terms = method.update(updater, step, method.inputs(batch, images), images)
        codes.after_step(step)
    assert terms["loss"].isfinite() and not torch.equal(before, codes.table())
    indices = method.tokenizer.eval().encode(images)
    assert indices.shape == (4, 4) and method.tokenizer.codes(indices).shape == (4, 4, method.teacher.feature_dim)


@pytest.mark.slow
def test_cluster_with_clip_from_the_command_line(photos: Path, tmp_path: Path) -> None:
    whole = build_teacher("clip", {}, "random").network.body.state_dict()
    save_tensors(tmp_path / "clip.safetensors", {f"visual.{k}": t for k, t in whole.items()})
    sets = {**SMALL, "train.steps": 2, "quantizer.codebook_size": 4, "train.batch_size": 2}
    more = [f"--set={key}={value}" for key, value in sets.items()]
    command = [
        "train-tokenizer", "--method", "cluster", "--teacher", "clip", "--recipe", "imagenet/tokenizer-cluster",
        "--data", str(photos / "train"), "--teacher-weights", str(tmp_path / "clip.safetensors"), *more,
    ]  # fmt: skip
    run = lambda *rest: CliRunner().invoke(cli, [*rest, "--workspace", str(tmp_path / "w")], catch_exceptions=False)  # noqa: E731
    made = run(*command)
    tokenizer = open_artifact(Path(made.stdout.strip()))
    assert "teacher: clip in place of vit. Kept: projection=false" in made.stderr
    assert tokenizer.facts["code_dim"] == tokenizer.recipe["quantizer"]["code_dim"] == 768
    told = tokenizer.facts["teacher"]
    assert (told["projection"], told["image_size"], tokenizer.facts["grid"]) == (False, 32, [2, 2])
    network = loading.load_tokenizer(tokenizer, torch.device("cpu"))
    assert network.codes(network.encode(torch.rand(1, 3, 32, 32))).shape == (1, 4, 768)
    tokens = open_artifact(
        Path(run("tokenize", "--recipe", "toy/tokens", "--data", str(photos / "train")).stdout.strip())
    )
    assert (tokens.facts["codebook_size"], tokens.facts["code_dim"]) == (4, 768)


@pytest.mark.parametrize("name", some(["clip", "timm:test_vit", "vit", "dino", "mae", "efflite0", "vits14"], 2))
def test_vqkd_of_the_tables_predicts_any_teacher(name: str) -> None:
    kind, options = METHODS["vqkd"], Options(recipe="imagenet/tokenizer-vqkd", sets={"teacher.name": name})
    recipe = load_recipe(options, kind.recipe_model, "", kind.families, resolve)
    with torch.device("meta"):
        method, images = kind(recipe, None, torch.device("meta")), torch.empty(1, 3, 224, 224)
        wanted = method.teacher(images, method.tokenizer.grid(224))
        assert method.tokenizer.feature_decoder(torch.empty(1, 196, 32)).shape == wanted.shape
    assert method.teacher.image_size == method.teacher.network.image_size


@pytest.mark.parametrize("method", ["vqkd", pytest.param("cluster", marks=pytest.mark.slow)])
def test_a_dry_run_takes_another_teacher(method: str) -> None:
    options = Options(recipe=f"coco/tokenizer-{method}", sets={"teacher.name": "dino"}, dry_run=True)
    plan = train_tokenizer.main(options, method=None, init=None)
    assert isinstance(plan, Plan) and "85,798,656" in plan.text()
    facts, recipe = plan.document["facts"], plan.document["recipe"]
    assert facts["teacher"]["name"] == "dino" and facts["grid"] == [16, 16]
    assert facts["code_dim"] == recipe["quantizer"]["code_dim"] == {"vqkd": 32, "cluster": 768}[method]
