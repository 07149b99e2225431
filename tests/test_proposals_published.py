"""Recipes of published networks, samplers and tokens: their sizes and values."""

from typing import Any

import pytest
import torch

from tokcli.build import build_proposal, parameter_count
from tokcli.cli.recipes import check_file
from tokcli.recipe.check import resolved
from tokcli.recipe.yaml import recipes_root


def sized(name: str, codebook_size: int, classes: int) -> int:
    recipe = resolved(check_file(recipes_root() / f"{name}.yaml"))
    with torch.device("meta"):
        return parameter_count(build_proposal(recipe, codebook_size, (16, 16), classes))


def test_the_medium_recipe_counts_the_published_parameters() -> None:
    assert sized("imagenet/proposal-ar-medium", 8192, 1000) == 327_158_784


@pytest.mark.parametrize(("size", "millions"), [("b", 111), ("l", 343), ("xl", 775)])
def test_llamagen_recipes_have_the_published_sizes(size: str, millions: int) -> None:
    # ours predicts classes too: 1,001 more rows of the head than LlamaGen's
    recipe = resolved(check_file(recipes_root() / f"imagenet/proposal-ar-llamagen-{size}.yaml"))
    extra = 1001 * recipe["proposal"]["width"]
    assert round((sized(f"imagenet/proposal-ar-llamagen-{size}", 16384, 1000) - extra) / 1e6) == millions


def test_maskgit_and_gpt2_recipes_have_the_published_sizes() -> None:
    block = 4 * 768**2 + 2 * 768 * 3072 + 2 * 768
    tables = (8192 + 1000 + 2) * 768 + 257 * 768 + 8192 * 768
    assert sized("imagenet/proposal-nar", 8192, 1000) == 24 * block + 768 + tables
    words, positions = 50257 * 1024, 1024 * 1024  # of the 354,823,168 of GPT-2 medium
    ours = 354_823_168 - words - positions + (8192 + 1000 + 1) * 1024 + 257 * 1024
    assert sized("imagenet/proposal-ar-gpt2", 8192, 1000) == ours


OFFICIAL_AR = {"optim.eps": 1e-6, "optim.decay": "all", "optim.betas": [0.9, 0.98], "optim.weight_decay": 0.2}
TABLES_AR = {"sample.temperature": 1.0, "sample.top_k": 600, "sample.top_p": 0.92}
LLAMAGEN = {"proposal.position": "rope-2d-llamagen", "proposal.dropout": 0.1, "proposal.scale_residual": False}
UNFILTERED = {"sample.temperature": 1.0, "sample.top_k": 0, "sample.top_p": 1.0}
MASKGIT = UNFILTERED | {"sample.cfg_scale": 1.0, "sample.choice_temperature": 4.5, "sample.order": "confidence"}
PUBLISHED: dict[str, dict[str, Any]] = {
    "imagenet/proposal-ar-medium": OFFICIAL_AR | {"proposal.scale_residual": False},
    "coco/proposal-ar-medium": OFFICIAL_AR | {"proposal.scale_residual": False},
    "imagenet/proposal-ar-gpt2": OFFICIAL_AR,
    "coco/proposal-ar-gpt2": OFFICIAL_AR,
    "imagenet/proposal-ar-llamagen-b": LLAMAGEN,
    "imagenet/proposal-ar-llamagen-l": LLAMAGEN,
    "imagenet/proposal-ar-llamagen-xl": LLAMAGEN,
    "imagenet/proposal-ar-rar": {"proposal.attention_dropout": 0.1, "proposal.random_order": [0.5, 0.75]},
    "imagenet/proposal-nar": {"proposal.attention_dropout": 0.1, "proposal.mask_ratio": "cosine"},
    "coco/proposal-nar-t2i": {"proposal.attention_dropout": 0.1, "proposal.mask_ratio": "cosine"},
    "imagenet/sample-ar": TABLES_AR | {"sample.cfg_scale": 1.75},
    "imagenet/sample-ar-gpt2": TABLES_AR,
    "coco/sample-ar": TABLES_AR,
    "coco/sample-ar-gpt2": TABLES_AR,
    "imagenet/sample-ar-llamagen": UNFILTERED | {"sample.cfg_scale": 2.0},
    "imagenet/sample-ar-rar": UNFILTERED | {"sample.cfg_scale": 16.0, "sample.cfg_power": 2.75},
    "imagenet/sample-nar": MASKGIT,
    "coco/sample-nar": MASKGIT,
    "imagenet/tokens": {"tokens.scale": [1.0, 1.0], "tokens.flip": True},
    "coco/tokens": {"tokens.scale": [1.0, 1.0], "tokens.flip": True},
    "imagenet/tokens-llamagen": {"tokens.corners": [1.1, 1.05], "tokens.flip": True},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_values_that_are_published(name: str) -> None:
    recipe = resolved(check_file(recipes_root() / f"{name}.yaml"))
    found = {key: recipe[key.split(".")[0]][key.split(".")[1]] for key in PUBLISHED[name]}
    assert found == PUBLISHED[name]
