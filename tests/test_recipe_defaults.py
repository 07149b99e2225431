"""Defaults of recipes are recorded as values; runs that recorded null go on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tokcli.artifact.draft import Draft, begin
from tokcli.build import component
from tokcli.cli.recipes import check_file
from tokcli.command import session
from tokcli.command.options import Options
from tokcli.errors import TokError
from tokcli.pretrained.teacher import TEACHERS
from tokcli.quantizers import QUANTIZERS
from tokcli.recipe.check import check, resolved
from tokcli.recipe.sections import Component, Recipe
from tokcli.recipe.yaml import override, read_yaml, recipes_root, to_yaml

CODES = {"name": "vq", "codebook_size": 8, "code_dim": 4}


class Coded(Recipe):
    """A recipe with a quantizer."""

    quantizer: Component


def coded(**keys: Any) -> Coded:
    return check(Coded, {"stage": "s", "quantizer": CODES | keys}, "r", {"quantizer": QUANTIZERS})


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        ({}, (0.99, None, None)),
        ({"learning": "gradient"}, (None, None, None)),
        ({"rescue": "revive"}, (0.99, 100, 0.0)),
        ({"rescue": "kmeans", "rescue_below": 0.25, "decay": 0.5}, (0.5, 100, 0.25)),
        ({"rescue": "kmeans"}, (0.99, 100, 0.5)),
    ],
)
def test_defaults_that_other_keys_decide_are_recorded_as_values(
    given: dict[str, Any], recorded: tuple[Any, ...]
) -> None:
    keys = resolved(coded(**given))["quantizer"]
    assert (keys["decay"], keys["rescue_after"], keys["rescue_below"]) == recorded


def test_a_quantizer_whose_recipe_recorded_null_is_the_same() -> None:
    old = component("quantizer", QUANTIZERS, CODES | {"rescue": "kmeans", "decay": None, "rescue_below": None})
    new = component("quantizer", QUANTIZERS, resolved(coded(rescue="kmeans"))["quantizer"])
    for name in ("decay", "rescue_after", "rescue_below"):
        assert getattr(old, name) == getattr(new, name)


def test_layers_and_size_of_pretrained_networks_are_recorded(tmp_path: Path) -> None:
    recipe = resolved(check_file(recipes_root() / "toy" / "tokenizer-vqkd.yaml"))
    assert (recipe["teacher"]["layers"], recipe["teacher"]["image_size"]) == (["head"], 256)
    recipe = resolved(check_file(recipes_root() / "toy" / "tokenizer-vqgan.yaml"))
    assert recipe["loss"]["perceptual"]["layers"] == ["stem", "blocks.1", "blocks.2", "blocks.4", "blocks.6"]


def test_a_teachers_image_size_stays_null_beside_a_grid() -> None:
    keys = {"layers": None, "image_size": None, "grid": [2, 2], "norm": True, "projection": True}
    assert TEACHERS["efflite0"].settled("efflite0", keys) == keys | {"layers": ["head"]}


@pytest.mark.parametrize("method", ["vqkd", "vqgan", "cluster"])
def test_a_resolved_recipe_has_nothing_more_to_record(method: str, tmp_path: Path) -> None:
    recipe = check_file(recipes_root() / "toy" / f"tokenizer-{method}.yaml")
    (tmp_path / "again.yaml").write_text(to_yaml(recipe))
    assert recipe.settled and check_file(tmp_path / "again.yaml").settled == {}


def started(folder: Path, decay: float | None, **more: Any) -> Any:
    return begin(folder, "tokenizer", {"quantizer": {"decay": decay}}, {}, {}, **more)


def test_a_run_that_recorded_null_goes_on_with_the_default_alone(tmp_path: Path) -> None:
    started(tmp_path, None).close()
    (tmp_path / "state.pt").touch()
    with pytest.raises(TokError, match="quantizer.decay: None, not 0.5"):
        started(tmp_path, 0.5)
    with pytest.raises(TokError, match="quantizer.decay: 0.99, not 0.5"):
        started(tmp_path, 0.5, settled={"quantizer.decay": 0.99})
    assert started(tmp_path, 0.99, settled={"quantizer.decay": 0.99}).resumed


def test_a_folder_named_after_a_recipe_with_null_is_found_again(tmp_path: Path) -> None:
    options, cpu = Options(workspace=tmp_path), torch.device("cpu")
    old = session.begin(options, "tokenizer", "a", {"quantizer": {"decay": None}}, {}, cpu)
    assert isinstance(old, Draft)
    old.close()
    new = {"quantizer": {"decay": 0.99}}
    assert session.begin(options, "tokenizer", "a", new, {}, cpu, settled={"quantizer.decay": 0.99}).path == old.path
    assert session.begin(options, "tokenizer", "a", new, {}, cpu).path != old.path


@pytest.mark.parametrize(
    ("recipe", "sets", "message"),
    [
        ("tokenizer-vqgan", {"encoder.widths": [8, 8]}, "decoder.widths: "),
        ("tokenizer-vqkd", {"encoder.heads": 5}, "heads: must divide the width"),
        ("tokenizer-vqkd", {"encoder.patch_size": 7}, "encoder.patch_size: must divide"),
        ("tokenizer-vqkd", {"quantizer.rescue": "anchors"}, "quantizer.rescue: "),
        ("tokenizer-cluster", {"quantizer.code_dim": 3}, "quantizer.code_dim: must be the width"),
        ("tokenizer-cluster", {"teacher.layers": ["x"]}, "there is no layer 'x'"),
        ("decoder-conv", {"loss.perceptual.layers": ["x"]}, "there is no layer 'x'"),
        ("decoder-conv", {"decoder": {"name": "conv", "widths": [8] * 9}}, "decoder.widths: 9 stages"),
        ("proposal-ar", {"proposal.heads": 3}, "proposal.heads: must divide"),
        ("proposal-ar", {"train.accumulate": 3}, "accumulate must divide batch_size"),
        ("sample-nar", {"sample.cfg_power": 2.0}, "sample.cfg_power: "),
        ("eval", {"eval.extractors": ["incption"]}, "Did you mean 'inception'"),
    ],
)
def test_checking_recipes_finds_what_training_would_refuse(
    recipe: str, sets: dict[str, Any], message: str, tmp_path: Path
) -> None:
    from tokcli.cli import recipes

    tree = read_yaml(recipes_root() / "toy" / f"{recipe}.yaml")
    override(tree, sets)
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(tree))
    with pytest.raises(TokError) as caught:
        recipes.check(str(path))
    assert message in str(caught.value) and str(caught.value).startswith(str(path))
