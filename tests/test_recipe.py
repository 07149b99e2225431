"""Recipes: strict loading, every fault at once, a resolved recipe that is valid and repeats the run."""

import logging
import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml

from tokcli.errors import TokError
from tokcli.methods import method_class
from tokcli.recipe.check import InvalidRecipe, check, resolved
from tokcli.recipe.sections import Component, Optim, Recipe
from tokcli.recipe.yaml import (
    _say_fallback,
    find_recipe,
    override,
    parse_set,
    read_yaml,
    recipe_files,
    recipe_name,
    recipes_root,
    to_yaml,
)

SHIPPED = recipe_files()


class Codes:
    """A component: what stands after the star are its recipe keys."""

    def __init__(
        self, supplied: int, *, size: int, metric: Literal["cosine", "euclidean"] = "cosine",
        revive_after: int | None = None, scale: tuple[float, float] = (0.5, 1.0),
    ) -> None: ...  # fmt: skip


class Term:
    """A loss with one key."""

    def __init__(self, *, network: str = "small") -> None: ...


class ToyRecipe(Recipe):
    """Recipe of a stage that exists in this file only."""

    stage: Literal["toy"]
    optim: Optim
    codes: Component
    loss: dict[str, dict[str, Any]] = {}


FAMILIES = {"codes": {"vq": Codes}, "loss": {"l1": Term, "perceptual": Term}}


def valid() -> dict[str, Any]:
    return {"stage": "toy", "seed": 3, "optim": {"lr": 0.1}, "codes": {"name": "vq", "size": 8}}


def checked(**changes: Any) -> ToyRecipe:
    """The valid recipe with dotted keys changed (`optim__lr=1`)."""
    tree = valid()
    override(tree, {key.replace("__", "."): value for key, value in changes.items()})
    return check(ToyRecipe, tree, "toy.yaml", FAMILIES)


def faults(**changes: Any) -> list[str]:
    with pytest.raises(InvalidRecipe) as caught:
        checked(**changes)
    return str(caught.value).splitlines()


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_unknown_key_is_refused_with_the_nearest_one() -> None:
    assert faults(optim__warmup_step=1) == ["toy.yaml: optim.warmup_step: unknown key. Did you mean 'warmup_steps'?"]


def test_key_unlike_any_other_is_refused_with_all_there_are() -> None:
    assert faults(zzz=1) == ["toy.yaml: zzz: unknown key. Choose one of codes, loss, optim, seed, stage."]


def test_wrong_type_is_refused_with_path_expected_and_got() -> None:
    assert faults(optim__warmup_steps="ten") == [
        'toy.yaml: optim.warmup_steps: should be a valid integer. Got "ten". Run tok recipes --explain optim.warmup_steps.'
    ]


def test_value_outside_its_range_is_refused_with_the_range() -> None:
    assert faults(optim__lr=-1) == ["toy.yaml: optim.lr: should be over 0. Got -1. Run tok recipes --explain optim.lr."]


@pytest.mark.parametrize("value", ["1", True, 1.5, None])
def test_nothing_but_an_integer_is_an_integer(value: Any) -> None:
    assert len(faults(seed=value)) == 1


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_infinite_numbers_are_refused(value: float) -> None:
    assert [line.split(": ")[1] for line in faults(optim__weight_decay=value)] == ["optim.weight_decay"]


def test_missing_key_is_named() -> None:
    tree = valid()
    del tree["optim"]["lr"], tree["codes"]["size"]
    with pytest.raises(InvalidRecipe) as caught:
        check(ToyRecipe, tree, "toy.yaml", FAMILIES)
    assert "toy.yaml: optim.lr: this key is missing." in str(caught.value)
    assert "toy.yaml: codes.size: this key is missing." in str(caught.value)


def test_all_faults_are_told_at_once() -> None:
    lines = faults(seed=-1, optim__lr="fast", codes__size=1.5, loss__l1={"weight": "x"}, extra=1)
    assert sorted(line.split(": ")[1] for line in lines) == [
        "codes.size",
        "extra",
        "loss.l1.weight",
        "optim.lr",
        "seed",
    ]


def test_component_takes_the_keyword_only_arguments_of_its_constructor() -> None:
    assert checked(codes__metric="euclidean").codes.keys == {
        "size": 8, "metric": "euclidean", "revive_after": None, "scale": [0.5, 1.0],
    }  # fmt: skip
    assert faults(codes__supplied=1)[0].startswith("toy.yaml: codes.supplied: unknown key.")
    assert faults(codes__metric="l3") == [
        "toy.yaml: codes.metric: should be 'cosine' or 'euclidean'. Got \"l3\". Run tok recipes --explain codes.metric."
    ]


def test_unknown_component_is_refused_with_the_nearest_one() -> None:
    assert faults(codes__name="vqq") == ["toy.yaml: codes: no such codes 'vqq'. Did you mean 'vq'?"]


def test_a_component_without_keys_says_that_there_are_none() -> None:
    with pytest.raises(InvalidRecipe, match=r"codes\.x: unknown key\. Leave it out: there are none"):
        check(ToyRecipe, valid() | {"codes": {"name": "bare", "x": 1}}, "", {"codes": {"bare": object}})


def test_names_outside_the_family_are_resolved() -> None:
    tree = valid() | {"codes": {"name": "timm:x", "size": 2}}
    assert check(ToyRecipe, tree, "", FAMILIES, lambda name: Codes if ":" in name else None).codes.keys["size"] == 2


def test_a_name_that_is_resolved_to_another_family_s_component_is_refused() -> None:
    tree = valid() | {"codes": {"name": "timm:x", "size": 2}}
    with pytest.raises(InvalidRecipe, match="codes: no such codes 'timm:x'"):
        check(ToyRecipe, tree, "", FAMILIES, lambda name: Term)


def test_a_number_is_short_for_the_weight_of_a_term() -> None:
    assert checked(loss={"l1": 1.0}).loss == checked(loss={"l1": {"weight": 1.0}}).loss == {
        "l1": {"weight": 1.0, "network": "small"}
    }  # fmt: skip


@pytest.mark.parametrize("weight", [True, "1", None, [1]])
def test_weight_of_a_term_is_a_number(weight: Any) -> None:
    assert "loss.l1.weight: should be a valid number" in faults(loss={"l1": weight})[0]


def test_list_stands_for_a_tuple_and_one_for_one_point_zero() -> None:
    recipe = checked(optim={"lr": 1, "betas": [0, 0.5]})
    assert (recipe.optim.lr, recipe.optim.betas) == (1.0, (0.0, 0.5))


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "+1e-4", ".1e-3", "1.e-4", "0.0001"])
def test_numbers_in_scientific_notation_are_floats(tmp_path: Path, text: str) -> None:
    assert read_yaml(written(tmp_path, f"lr: {text}")) == {"lr": 1e-4}


def test_duplicate_key_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(TokError, match="r.yaml:4: is not a valid recipe: key 'lr' stands twice"):
        read_yaml(written(tmp_path, "seed: 0\noptim:\n  lr: 1\n  lr: 2\n"))


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system [touch pwned]",
        "a: !!python/name:os.system",
        "a: !own 1",
        "a: &anchor {b: 1}\nc: *anchor",
        "a: &anchor [*anchor]",
        "a: &b {c: 1}\nd:\n  <<: *b",
        "? [1, 2]\n: 3",
        "a: [1, 2",
        "a: " + "[" * 1000,
        "- a\n- b",
        "",
        "a: \x00",
        "a: 1\n---\nb: 2",
    ],
)
def test_yaml_that_is_no_plain_mapping_is_refused_in_one_line(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TokError) as caught:
        read_yaml(written(tmp_path, text))
    assert str(caught.value).startswith(str(tmp_path / "r.yaml"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


def test_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.touch()
    with open(path, "r+b") as file:
        file.truncate(1 << 40)  # a hole: reading it would take minutes
    with pytest.raises(TokError, match="too large for a recipe"):
        read_yaml(path)


def test_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(TokError, match="is not a valid recipe"):
        read_yaml(tmp_path / "r.yaml")


def test_set_reads_values_as_yaml() -> None:
    given = ("optim.lr=1e-4", "a=true", "b=null", "c=[1, x]", "d=a=b", "e=")
    assert parse_set(given) == {"optim.lr": 1e-4, "a": True, "b": None, "c": [1, "x"], "d": "a=b", "e": None}


@pytest.mark.parametrize("text", ["optim.lr", "=1", " =1", "a=[1", "a=!!python/name:os.system", "a=&x [*x]"])
def test_set_without_key_or_valid_value_is_refused(text: str) -> None:
    with pytest.raises(TokError, match="--set"):
        parse_set((text,))


def test_override_makes_sections_and_refuses_values_in_their_place() -> None:
    tree = {"a": {"b": 1}}
    override(tree, {"a.b": 2, "x.y.z": 3})
    assert tree == {"a": {"b": 2}, "x": {"y": {"z": 3}}}
    with pytest.raises(TokError, match="'b' is a value, not a section"):
        override(tree, {"a.b.c": 1})


def test_checking_leaves_the_given_tree_alone() -> None:
    tree = valid()
    check(ToyRecipe, tree, "", FAMILIES)
    assert tree == valid()


def test_unknown_recipe_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(TokError, match="Did you mean 'toy/tokens'"):
        find_recipe("toy/token", preset="toy", name="tokens")


def test_recipe_is_found_by_path_by_name_and_by_default(tmp_path: Path) -> None:
    toy = recipes_root() / "toy" / "tokens.yaml"
    assert find_recipe("tokens", preset="toy", name="x") == find_recipe("toy/tokens", preset="x", name="x") == toy
    assert find_recipe(None, preset="toy", name="tokens") == find_recipe(str(toy), preset="x", name="x") == toy
    with pytest.raises(TokError, match="no such file"):
        find_recipe(str(tmp_path / "none.yaml"), preset="toy", name="x")


def test_taking_another_folder_s_recipe_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    _say_fallback.cache_clear()  # of tests before this one
    caplog.set_level(logging.INFO, "tok")
    for _ in range(2):
        assert recipe_name(find_recipe(None, preset="coco", name="proposal-ar")) == "folder/base/proposal-ar"
    find_recipe(None, preset="folder/base", name="proposal-ar")  # a user's own images: meant for them
    assert [r.getMessage() for r in caplog.records] == ["recipe: folder/base/proposal-ar (coco has none)"]


def test_every_data_set_with_a_tokenizer_has_its_own_recipes_of_what_follows() -> None:
    needed = ("tokens", "sample-ar", "sample-nar", "eval", "viz")
    homes = {path.parent for path in SHIPPED if path.stem.startswith("tokenizer-")}
    homes -= {recipes_root() / "claims"}  # an experiment on several data sets
    assert [
        f"{recipe_name(home)}/{name}" for home in homes for name in needed if not (home / f"{name}.yaml").is_file()
    ] == []


@pytest.mark.parametrize("path", SHIPPED, ids=recipe_name)
def test_shipped_recipe_is_valid_and_its_resolved_form_repeats_it(path: Path, tmp_path: Path) -> None:
    from tokcli.cli.recipes import check_file

    recipe = check_file(path)
    again = check_file(written(tmp_path, to_yaml(recipe)))
    assert resolved(again) == resolved(recipe)
    assert set(read_yaml(path)) <= set(yaml.safe_load(to_yaml(recipe)))


def test_there_are_recipes_of_every_stage() -> None:
    assert {read_yaml(path)["stage"] for path in SHIPPED} == {
        "tokenizer", "decoder", "tokens", "proposal", "sample", "eval", "viz",
    }  # fmt: skip


def test_every_shipped_recipe_opens_with_a_comment() -> None:
    assert [path for path in SHIPPED if not path.read_text(encoding="utf-8").startswith("# ")] == []


def test_all_invalid_recipes_are_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokcli.cli import recipes as catalog
    from tokcli.cli import recipes as recipes_module

    (tmp_path / "own").mkdir()
    for name, text in (
        ("a", "stage: nothing"),
        ("b", "stage: tokens\ntokens: {crop: 1}"),
        ("c", "stage: tokens\ntokens: {}"),
    ):
        (tmp_path / "own" / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(recipes_module, "recipe_files", lambda: sorted(tmp_path.rglob("*.yaml")))
    with pytest.raises(InvalidRecipe) as caught:
        catalog.check(None)
    assert [Path(line.split(":")[0]).name for line in str(caught.value).splitlines()] == ["a.yaml", "b.yaml"]


def test_recipe_of_another_stage_is_refused() -> None:
    from tokcli.command.inputs import load_recipe
    from tokcli.command.options import Options
    from tokcli.stages.tokenize import TokensRecipe

    with pytest.raises(TokError, match="is not a recipe of stage 'tokens'. Got 'decoder'"):
        load_recipe(Options(recipe="toy/decoder-conv"), TokensRecipe, "tokens", {})


@pytest.mark.parametrize("transform", [{"name": "centre-crop"}, {"name": "center-crop", "flop": True}, {}, {"name": 3}])
def test_faults_of_a_transform_are_told_beside_the_others(transform: dict[str, Any]) -> None:
    from tokcli.methods.distillation import Distillation, DistillationRecipe

    tree = read_yaml(recipes_root() / "toy" / "tokenizer-vqkd.yaml")
    tree["data"] |= {"cache_features": True, "transform": transform}
    tree["optim"]["lr"] = "fast"
    with pytest.raises(InvalidRecipe) as caught:
        check(DistillationRecipe, tree, "r", Distillation.families)
    assert {line.split(": ")[1].split(".")[0] for line in str(caught.value).splitlines()} == {"data", "optim"}


def test_cached_features_need_a_transform_that_is_not_random() -> None:
    from tokcli.methods.distillation import Distillation, DistillationRecipe

    tree = read_yaml(recipes_root() / "toy" / "tokenizer-vqkd.yaml")
    tree["data"] |= {"cache_features": True, "transform": {"name": "center-crop", "flip": True}}
    with pytest.raises(InvalidRecipe, match="r: data: cache_features needs a transform that is not random"):
        check(DistillationRecipe, tree, "r", Distillation.families)


def test_decoder_without_a_loss_is_refused() -> None:
    from tokcli.methods.pixel_decoder import FAMILIES, DecoderRecipe

    tree = read_yaml(recipes_root() / "toy" / "decoder-conv.yaml") | {"loss": {}}
    with pytest.raises(InvalidRecipe, match="r: loss: "):
        check(DecoderRecipe, tree, "r", FAMILIES)


def test_another_component_does_not_inherit_the_keys_of_the_one_before() -> None:
    tree = {"teacher": {"name": "efflite0", "layers": ["head"]}}
    override(tree, {"teacher.norm": False, "teacher.name": "clip"})
    assert tree == {"teacher": {"name": "clip", "norm": False}}


def test_naming_the_same_component_keeps_its_keys() -> None:
    tree = {"teacher": {"name": "efflite0", "layers": ["head"]}}
    override(tree, {"teacher.name": "efflite0"})
    assert tree["teacher"]["layers"] == ["head"]


def succeeded(tree: dict[str, Any], sets: dict[str, Any]) -> str:
    """Override a tokenizer's recipe; what is said of it."""
    from tokcli.methods import resolve
    from tokcli.methods.distillation import Distillation

    said: list[str] = []
    override(tree, sets, Distillation.families, resolve, lambda text, *values: said.append(text % values))
    return "; ".join(said)


@pytest.mark.parametrize("name", ["clip", "timm:vit_tiny_patch16_224"])
def test_another_teacher_keeps_what_goes_in_and_comes_out_and_says_so(name: str) -> None:
    tree = {"teacher": {"name": "vit", "image_size": 256, "projection": False, "layers": [3], "norm": True}}
    said = succeeded(tree, {"teacher.name": name})
    assert tree == {"teacher": {"name": name, "image_size": 256, "projection": False}}
    assert said == f"teacher: {name} in place of vit. Kept: image_size=256, projection=false. Dropped: layers=[3]."


def test_another_quantizer_keeps_the_size_and_width_of_its_codebook_where_it_has_them() -> None:
    codes = {"name": "vq", "codebook_size": 8, "code_dim": 4, "commitment": 0.5}
    tree = {"quantizer": dict(codes)}
    said = succeeded(tree, {"quantizer.name": "simvq"})
    assert tree == {"quantizer": {"name": "simvq", "codebook_size": 8, "code_dim": 4}}
    assert said.endswith("Kept: codebook_size=8, code_dim=4. Dropped: commitment=0.5.")
    tree = {"quantizer": dict(codes)}
    said = succeeded(tree, {"quantizer.name": "fsq", "quantizer.levels": [3, 3]})
    assert tree == {"quantizer": {"name": "fsq", "levels": [3, 3]}} and "Dropped: codebook_size=8, code_dim=4" in said


def test_another_encoder_keeps_its_image_size_and_what_is_set_anew_is_not_called_dropped() -> None:
    tree = {"encoder": {"name": "conv", "image_size": 32, "widths": [8, 8], "blocks": 3}}
    said = succeeded(tree, {"encoder.widths": [16, 16], "encoder.name": "maskgit"})
    assert tree == {"encoder": {"name": "maskgit", "image_size": 32, "widths": [16, 16]}}
    assert said == "encoder: maskgit in place of conv. Kept: image_size=32. Dropped: blocks=3."


def test_a_section_replaced_as_a_whole_says_what_it_had() -> None:
    tree = {"teacher": {"name": "vit", "image_size": 256, "layers": None}}
    said = succeeded(tree, {"teacher": {"name": "clip"}})
    assert tree == {"teacher": {"name": "clip"}} and said == "teacher: replaced as a whole. Dropped: image_size=256"


def test_a_component_that_stays_or_had_no_keys_has_nothing_to_say() -> None:
    assert succeeded({"teacher": {"name": "vit"}}, {"teacher.name": "clip"}) == ""
    assert succeeded({"teacher": {"name": "vit", "image_size": 256}}, {"teacher.name": "vit"}) == ""


FIXED = ("data", "encoder", "decoder", "loss", "gan", "optim", "train")  # what VQGAN, CVQ and FSQ are compared under


@pytest.mark.parametrize("folder", ["imagenet", "coco", "openmoji", "fashion-mnist"])
def test_recipes_of_one_comparison_differ_in_what_is_compared_only(folder: str) -> None:
    recipes = [read_yaml(recipes_root() / folder / f"tokenizer-{m}.yaml") for m in ("vqgan", "cvq", "fsq")]
    for key in FIXED:
        assert recipes[0][key] == recipes[1][key] == recipes[2][key], key
    quantizers = [recipe["quantizer"] for recipe in recipes]
    assert quantizers[1] == {**quantizers[0], "rescue": "anchors"}
    sizes = [q.get("codebook_size") or math.prod(q["levels"]) for q in quantizers]
    assert max(sizes) / min(sizes) < 1.05, sizes


@pytest.mark.parametrize("folder", ["imagenet", "coco", "openmoji", "fashion-mnist"])
def test_decoders_of_frozen_codes_are_those_that_pixel_methods_train(folder: str) -> None:
    alone, together = (
        read_yaml(recipes_root() / folder / f"{name}.yaml") for name in ("decoder-conv", "tokenizer-vqgan")
    )
    for key in ("decoder", "loss"):
        assert alone[key] == together[key], key
    for key in ("steps", "batch_size"):
        assert alone["train"][key] == together["train"][key], key


@pytest.mark.parametrize("folder", ["imagenet", "coco", "openmoji", "fashion-mnist"])
def test_tokenizers_of_one_comparison_make_equally_many_tokens(folder: str) -> None:
    grids = {}
    for method in ("vqgan", "cvq", "fsq", "llamagen", "vqkd", "cluster"):
        path = recipes_root() / folder / f"tokenizer-{method}.yaml"
        kind = method_class(method)
        recipe = check(kind.recipe_model, read_yaml(path), str(path), kind.families)
        with torch.device("meta"):
            network = kind(recipe, None, torch.device("meta")).tokenizer
        grids[method] = network.grid(recipe.data.use_size or recipe.data.size)
    assert len(set(grids.values())) == 1, grids


@pytest.mark.parametrize(
    "stage", ["tokenizer-vqgan", "tokenizer-llamagen", "tokenizer-vqkd", "tokenizer-cluster", "decoder-conv"]
)
def test_imagenet_and_coco_share_their_recipes(stage: str) -> None:
    assert read_yaml(recipes_root() / "imagenet" / f"{stage}.yaml") == read_yaml(
        recipes_root() / "coco" / f"{stage}.yaml"
    )


@pytest.mark.parametrize(
    "path",
    [p for p in SHIPPED if "gan:" in p.read_text(encoding="utf-8") and p.parent.name in ("openmoji", "fashion-mnist")],
    ids=str,
)
def test_our_own_discriminators_learn_before_the_decoder_hears_of_them(path: Path) -> None:
    gan, steps = read_yaml(path)["gan"], read_yaml(path)["train"]["steps"]
    assert 0 < gan["warmup"] <= gan["start"] < gan["start"] + gan["ramp"] < steps


@pytest.mark.parametrize(("text", "base"), [("010", 8), ("-017", 8), ("1:30", 60), ("1:30.5", 60)])
def test_numbers_that_yaml_reads_in_another_base_are_refused_with_the_line(
    tmp_path: Path, text: str, base: int
) -> None:
    (tmp_path / "x.yaml").write_text(f"stage: tokenizer\nseed: {text}\n")
    with pytest.raises(
        TokError, match=rf"x.yaml:2: is not a valid recipe: {text} would be read as another number, .* base {base}"
    ):
        read_yaml(tmp_path / "x.yaml")
    with pytest.raises(TokError, match=f"{text} would be read as another number"):
        parse_set((f"seed={text}",))
    assert parse_set((f"name='{text}'", "seed=10", "lr=0.5", "none=0", "hex=0x10", "big=1_000")) == {
        "name": text, "seed": 10, "lr": 0.5, "none": 0, "hex": 16, "big": 1000,
    }  # fmt: skip
