"""`tok recipes --explain`: every key of every recipe has a meaning, and the docs are what the code says."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from click.testing import CliRunner
from pydantic import Field, PositiveInt

from tokcli import build
from tokcli.cli import cli, recipes
from tokcli.cli.recipes import check_file, topics
from tokcli.errors import Misuse
from tokcli.recipe.check import InvalidRecipe, check, component_model, leaving_out, resolved
from tokcli.recipe.explain import Key, keys, meaning_of
from tokcli.recipe.sections import Area, Component, Recipe, Share
from tokcli.recipe.yaml import recipe_files, recipe_name

TOPICS = topics()


class Part:
    """A component.

    Args:
        size: of it,
            in pixels; None: any.
        low, high: bounds.

    Raises:
        TokError: never.
    """

    def __init__(
        self, *, size: Annotated[int, Field(gt=0)] | None = None, low: Share = 0.0, high: Literal["a", "b"] = "a",
        scale: Area, many: list[str] = [],
    ) -> None: ...  # fmt: skip


class Finer(Part):
    """A finer component.

    Args:
        low: see `Part`.
        scale: shares.
    """


def explained(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["recipes", *arguments, "--explain"])


@pytest.mark.parametrize("name", TOPICS)
def test_every_key_has_a_meaning(name: str) -> None:
    assert [key.name for key in TOPICS[name].keys if not key.meaning] == []


@pytest.mark.parametrize("name", TOPICS)
def test_a_key_that_may_be_null_says_what_null_means(name: str) -> None:
    assert [key.name for key in TOPICS[name].keys if "null" in key.type and "null" not in key.meaning] == []


def test_a_key_is_explained_by_its_annotation_and_the_docstring() -> None:
    assert keys(component_model(Part), Part) == [
        Key("size", "integer or null", "at least 1", "null", "of it, in pixels; null: any."),
        Key("low", "number", "at least 0 and under 1", "0.0", "bounds."),
        Key("high", "a or b", "", '"a"', "bounds."),
        Key("scale", "[number, number]", "0 < low <= high <= 1", "required", ""),
        Key("many", "list of text", "", "[]", ""),
    ]


def test_a_subclass_adds_to_the_meanings_of_its_base() -> None:
    assert meaning_of(Finer) == meaning_of(Part) | {"scale": "shares."}


class Base:
    """A component.

    Args:
        size: of it.
        low: the least.
        kept: what a member decides.
    """

    def __init__(self, supplied: int, *, size: PositiveInt, low: float = 0.5, kept: str = "a") -> None:
        self.given = (supplied, size, low, kept)


class Member(Base):
    """One of several.

    Args:
        own: of this member.
    """

    fixed_keys: ClassVar[dict[str, Any]] = {"kept": "b"}

    def __init__(self, *supplied: Any, own: PositiveInt = 3, low: float = 0.25, **keys: Any) -> None:
        super().__init__(*supplied, low=low, **self.fixed_keys, **keys)
        self.own = own


class Inheritor(Member):
    """Has no constructor of its own."""


class Opaque(Base):
    """Names all of its keys: those of its base are not its own."""

    def __init__(self, *, own: int = 3) -> None:
        super().__init__(1, size=own)


@pytest.mark.parametrize("kind", [Member, Inheritor])
def test_keys_that_a_constructor_hands_on_are_those_of_its_base(kind: type) -> None:
    assert keys(component_model(kind), kind) == [
        Key("size", "integer", "at least 1", "required", "of it."),
        Key("low", "number", "", "0.25", "the least."),
        Key("own", "integer", "at least 1", "3", "of this member."),
    ]
    assert build.component("part", {"m": kind}, {"name": "m", "size": 2}, 7).given == (7, 2, 0.25, "b")
    faults = r"(?s)part.size: should be at least 1.*part.kept: unknown key"
    with pytest.raises(InvalidRecipe, match=faults):
        check(Whole, {"stage": "x", "part": {"name": "m", "size": 0, "kept": "c"}}, "r.yaml", {"part": {"m": kind}})
    assert set(component_model(leaving_out(kind, "size")).model_fields) == {"size", "low", "own"}


def test_a_constructor_that_hands_nothing_on_has_its_own_keys_alone() -> None:
    assert [key.name for key in keys(component_model(Opaque), Opaque)] == ["own"]


class Whole(Recipe):
    """A recipe of one component."""

    part: Component


@pytest.mark.parametrize("path", recipe_files(), ids=recipe_name)
def test_every_key_of_a_shipped_recipe_is_explained(path: Path) -> None:
    recipe = resolved(check_file(path))
    name = {"tokenizer": f"tokenizer-{recipe.get('method')}"}.get(recipe["stage"], recipe["stage"])
    name = {
        "tokenizer-fsq": "tokenizer-vqgan",
        "tokenizer-cvq": "tokenizer-vqgan",
        "tokenizer-llamagen": "tokenizer-vqgan",
    }.get(name, name)
    assert set(recipe) == {key.name for key in TOPICS[f"recipe.{name}"].keys}
    for section in set(recipe) & {"optim", "train", "gan", "tokens", "sample", "eval", "viz"}:
        assert set(recipe[section] or {}) <= {key.name for key in TOPICS[section].keys}
    for section in set(recipe) & {"quantizer", "encoder", "decoder", "proposal", "condition"}:
        own = TOPICS[f"{section}.{recipe[section]['name']}"].keys
        assert set(recipe[section]) - {"name"} == {key.name for key in own}


def test_the_command_prints_type_range_default_and_meaning() -> None:
    text = " ".join(explained("quantizer.lfq").stdout.split())
    assert "temperature number, over 0, default 0.01 temperature of the soft assignment to codes" in text
    assert "code_dim integer, at least 1 and at most 30, required bits of a code" in text


def test_a_component_without_keys_says_so() -> None:
    assert explained("condition.none").stdout.endswith("It has no keys.\n")


def test_without_a_name_everything_is_listed() -> None:
    assert [line.split()[0] for line in explained().stdout.splitlines()] == list(TOPICS)


@pytest.mark.parametrize("name", TOPICS)
def test_every_key_can_be_explained_by_its_path_as_errors_advise(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "topics", lambda: TOPICS)
    section = "" if name.startswith("recipe.") else f"{name}."
    for key in TOPICS[name].keys:
        assert key.name in recipes.explanation(f"{section}{key.name}")


def test_a_family_lists_its_components() -> None:
    assert [line.split()[0] for line in explained("quantizer").stdout.splitlines()] == [
        name for name in TOPICS if name.startswith("quantizer.")
    ]


def test_a_key_of_a_family_is_explained_in_every_component_that_has_it() -> None:
    decay, commitment = explained("quantizer.decay").stdout, explained("quantizer.commitment").stdout
    assert decay.startswith("quantizer.vq:") and "null is 0.99" in decay and "commitment" not in decay
    assert [line.split(":")[0] for line in commitment.splitlines() if line.startswith("quantizer.")] == [
        name for name in TOPICS if name.startswith("quantizer.") and TOPICS[name].only("commitment").keys
    ]
    assert explained("optim.lr").stdout.startswith("optim:") and explained("quantizer.vq.decay").stdout == decay


def test_an_unknown_section_is_refused_with_the_nearest() -> None:
    assert "Did you mean 'quantizer.vq'?" in str(explained("quantiser.vq").exception)
    assert "Did you mean 'quantizer.decay'?" in str(explained("quantizer.decya").exception)


def test_explaining_and_checking_at_once_is_misuse() -> None:
    assert isinstance(explained("--check").exception, Misuse)
