"""The ranges of recipe keys: in the constructors' types, so that a recipe's check finds all faults at once."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from tokcli.data.transforms import TRANSFORMS
from tokcli.losses import LOSSES
from tokcli.models import DECODERS, DISCRIMINATORS, ENCODERS
from tokcli.pretrained.teacher import TEACHERS
from tokcli.proposals import CONDITIONS, PROPOSALS
from tokcli.quantizers import QUANTIZERS
from tokcli.recipe.check import InvalidRecipe, check, component_model
from tokcli.recipe.yaml import override, read_yaml, recipes_root
from tokcli.stages.train_proposal import FAMILIES, ProposalRecipe

SIZES = {"width": 16, "depth": 1, "heads": 2, "mlp_width": 8}
CODES = {"codebook_size": 8, "code_dim": 4}
OUTSIDE: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
    *((PROPOSALS[name], SIZES, {key: 0}) for name in ("ar", "gpt2", "nar") for key in SIZES),
    *(
        (PROPOSALS[name], SIZES, bad)
        for name in ("ar", "gpt2", "nar")
        for bad in ({"dropout": 1.0}, {"label_drop": 1.5})
    ),
    *((PROPOSALS["ar"], SIZES, {"random_order": shares}) for shares in ([0.5, 0.5], [-0.1, 0.5], [0.5, 1.1])),
    (PROPOSALS["nar"], SIZES, {"label_smoothing": 1.0}),
    (PROPOSALS["gpt2"], SIZES, {"language": "gpt3"}),
    (CONDITIONS["text"], {}, {"length": 0}),
    (CONDITIONS["text"], {}, {"depth": -1}),
    *((QUANTIZERS[name], CODES, {key: 0}) for name in ("vq", "simvq", "ibq") for key in CODES),
    (QUANTIZERS["vq"], CODES, {"codebook_size": (1 << 32) + 1}),
    *((QUANTIZERS["vq"], CODES, bad) for bad in ({"decay": 1.0}, {"rescue_after": 0}, {"rescue_below": 1.0})),
    *((QUANTIZERS["fsq"], {}, {"levels": levels}) for levels in ([], [2, 5], [5, 0])),
    *((QUANTIZERS["lfq"], {}, {"code_dim": bits}) for bits in (0, 31)),
    *((ENCODERS["conv"], {"image_size": 16}, {"widths": widths}) for widths in ([], [8, 0])),
    *((DECODERS["maskgit"], {}, {"widths": widths}) for widths in ([], [8, 0])),
    (DISCRIMINATORS["patch"], {}, {"depth": 0}),
    (LOSSES["perceptual"], {}, {"layers": []}),
    (TEACHERS["clip"], {}, {"layers": []}),
    (TRANSFORMS["random-crop"], {}, {"zoom": [0.5, 1.0]}),
    (TRANSFORMS["random-resized-crop"], {}, {"scale": [0.9, 0.5]}),
    (TRANSFORMS["random-resized-crop"], {}, {"ratio": [0.0, 1.0]}),
]


@pytest.mark.parametrize(("factory", "given", "bad"), OUTSIDE, ids=lambda v: getattr(v, "__name__", str(v)))
def test_a_value_outside_its_range_is_refused_by_its_key(factory: Any, given: dict[str, Any], bad: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        component_model(factory).model_validate_json(json.dumps({**given, **bad}))  # as recipes are read
    assert {error["loc"][0] for error in caught.value.errors()} == set(bad)


def test_two_faults_of_one_component_are_two_lines() -> None:
    tree = read_yaml(recipes_root() / "toy" / "proposal-ar.yaml")
    override(tree, {"proposal.width": 0, "proposal.dropout": 2, "proposal.random_order": [1, 0]})
    with pytest.raises(InvalidRecipe) as caught:
        check(ProposalRecipe, tree, "r", FAMILIES)
    assert str(caught.value).splitlines() == [
        "r: proposal.width: should be at least 1. Got 0. Run tok recipes --explain proposal.width.",
        "r: proposal.dropout: should be under 1. Got 2. Run tok recipes --explain proposal.dropout.",
        "r: proposal.random_order: should be [low, high] with 0 <= low < high <= 1. Got [1.0, 0.0]. Run tok recipes --explain proposal.random_order.",
    ]
