"""What a recipe expects of its inputs: one value or several, the first of which is planned with."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tokcli.command.inputs import check_expected
from tokcli.errors import TokError
from tokcli.methods import method_class, resolve
from tokcli.recipe.check import InvalidRecipe, check
from tokcli.recipe.sections import Expects, Recipe
from tokcli.recipe.yaml import read_yaml, recipes_root


class Wanting(Recipe):
    """A recipe that wants something of its inputs."""

    expects: Expects = Expects()


def test_any_value_of_a_list_is_accepted_and_the_first_is_planned_with() -> None:
    expects = Expects(code_dim=[32, 768], grid=(2, 2))
    check_expected(expects, code_dim=768, grid=[2, 2], codebook_size=5)
    assert expects.planned() == {"codebook_size": None, "code_dim": 32, "grid": (2, 2), "classes": None}


def test_every_fact_that_differs_is_told_with_what_accepts_it() -> None:
    with pytest.raises(TokError) as caught:
        check_expected(Expects(code_dim=[32, 768], grid=(2, 2), classes=0), code_dim=512, grid=(4, 2), classes=0)
    assert str(caught.value) == (
        "recipe: its expectations are not met: expects.code_dim: 32 or 768, not 512; expects.grid: (2, 2), not (4, 2). "
        "Train on these all the same: --set 'expects.code_dim=512' --set 'expects.grid=[4, 2]'."
    )


@pytest.mark.parametrize("value", [0, -1, [], [32, 0]])
def test_counts_are_at_least_one(value: Any) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        check(Wanting, {"stage": "s", "expects": {"code_dim": value}}, "r", {})
    assert (
        str(caught.value)
        == f"r: expects.code_dim: should be at least 1, or a list of such numbers. Got {value}. Run tok recipes --explain expects.code_dim."
    )


@pytest.mark.parametrize("value", [True, 1.5, "many", [1, "2"]])
def test_counts_are_whole_numbers(value: Any) -> None:
    with pytest.raises(InvalidRecipe, match="r: expects.code_dim: should be a valid integer"):
        check(Wanting, {"stage": "s", "expects": {"code_dim": value}}, "r", {})


@pytest.mark.parametrize("keys", [{"grid": (0, 2)}, {"grid": (2,)}, {"classes": -1}])
def test_a_grid_has_cells_and_classes_are_not_negative(keys: Any) -> None:
    with pytest.raises(ValidationError):
        Expects(**keys)


@pytest.mark.parametrize("folder", ["imagenet", "coco"])
@pytest.mark.parametrize("method", ["fsq", "vqgan", "vqkd"])
def test_proposal_networks_of_the_tables_accept_every_row_s_codebook(folder: str, method: str) -> None:
    quantizer = _quantizer(folder, method)
    for path in (recipes_root() / folder).glob("proposal-*.yaml"):
        if "llamagen" not in path.name:  # those are for LlamaGen's 16,384 codes
            check_expected(Expects(codebook_size=read_yaml(path)["expects"]["codebook_size"]), codebook_size=quantizer)


def _quantizer(folder: str, method: str) -> int:
    import torch

    path = Path(recipes_root() / folder / f"tokenizer-{method}.yaml")
    kind = method_class(method)
    recipe = check(kind.recipe_model, read_yaml(path), str(path), kind.families, resolve)
    with torch.device("meta"):
        return kind(recipe, None, torch.device("meta")).tokenizer.quantizer.codebook_size
