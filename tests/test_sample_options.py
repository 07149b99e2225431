"""One declaration of an option: flag, recipe key, range, who reads it, sweep and chart follow from it."""

from dataclasses import dataclass
from typing import Any

import click
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from tokcli.cli.flags import flags_of, with_options
from tokcli.errors import TokError
from tokcli.proposals import PROPOSALS, Proposal, Sampling
from tokcli.proposals.draw import SCHEDULES
from tokcli.proposals.nar import ORDERS
from tokcli.recipe import sample_options
from tokcli.recipe.explain import keys
from tokcli.recipe.sample_options import SampleOptions, at_least, charted, declared, keys_of, option
from tokcli.sampling import request, sample_recipe
from tokcli.sampling.request import sweep_points
from tokcli.sampling.sample_recipe import Sample, SampleRecipe, sampling_of, section_of, with_defaults, without_replaced


@dataclass(frozen=True, kw_only=True)
class Noisy(Sampling):
    """The sampler's options and one more."""

    noise: float = option(0.5, "Noise.", "--noise", metavar="X", range=at_least(0), modes=("nar",), charted=True)


@dataclass(frozen=True, kw_only=True)
class NoisySample(Noisy, SampleOptions):
    """The recipe's section with it."""


class Reads(PROPOSALS["nar"]):  # type: ignore[misc]
    sampling_keys = keys_of("nar") | {"noise"}


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The option, declared where all are."""
    monkeypatch.setattr(sample_recipe, "Sampling", Noisy)
    monkeypatch.setattr(request, "SampleOptions", NoisySample)
    monkeypatch.setattr(sample_options, "SampleOptions", NoisySample)


def test_a_declared_option_is_a_flag() -> None:
    given: list[dict[str, Any]] = []
    command = click.command()(with_options(flags_of(NoisySample))(lambda **flags: given.append(flags)))
    assert CliRunner().invoke(command, ["--noise", "2", "--steps", "3"]).exit_code == 0
    assert given[0]["noise"] == 2.0 and given[0]["steps"] == 3 and given[0]["cfg_scale"] is None
    assert "--noise X" in CliRunner().invoke(command, ["--help"]).output


def test_a_declared_option_is_a_recipe_key_with_its_range() -> None:
    section = section_of(NoisySample)
    assert section(number=1).noise is None and section(number=1, noise=2.0).noise == 2.0
    with pytest.raises(ValidationError, match="should be at least 0. Got -1"):
        section(number=1, noise=-1.0)


def test_a_declared_option_is_read_by_networks_that_say_so_and_refused_by_others(noisy: None) -> None:
    asked = section_of(NoisySample)(number=1, noise=2.0)
    assert sampling_of(asked, Reads).noise == 2.0
    with pytest.raises(
        TokError, match=r"sample.noise: this proposal network does not read it.* --set sample.noise=null"
    ):
        sampling_of(asked, PROPOSALS["ar"])


def test_a_declared_option_is_swept_and_charted_and_explained(noisy: None) -> None:
    assert sweep_points(["noise=0,1"]) == [{"sample.noise": 0}, {"sample.noise": 1}]
    assert "noise" in charted()
    (found,) = [key for key in keys(section_of(NoisySample), None) if key.name == "noise"]
    assert found == (
        "noise", "number or null", "at least 0", "null", "Noise. Only networks of mode nar read it. null means 0.5 if it is read. Flag `--noise`.",
    )  # fmt: skip


def test_what_changes_no_image_is_not_swept() -> None:
    with pytest.raises(TokError, match="sample.batch_size changes no image"):
        sweep_points(["batch_size=1,2"])


def test_choices_are_those_that_exist() -> None:
    options = declared(Sampling)
    assert options["cfg_schedule"].choices == tuple(SCHEDULES) and options["order"].choices == tuple(ORDERS)


def recipe(**keys: Any) -> SampleRecipe:
    return SampleRecipe(stage="sample", sample=Sample(number=1, **keys))


def network(mode: str) -> Proposal:
    return PROPOSALS[mode](8, (2, 2), 2, width=8, depth=1, heads=1, mlp_width=8)


@pytest.mark.parametrize(
    ("mode", "given", "recorded"),
    [
        ("ar", {}, {}),
        ("ar", {"cfg_schedule": "linear"}, {"cfg_done": "before"}),
        ("ar", {"cfg_schedule": "power-cosine", "cfg_done": "after"}, {"cfg_power": 1.0}),
        ("nar", {}, {"steps": 8, "order": "confidence", "choice_temperature": 4.5}),
        ("nar", {"steps": 3, "order": "halton"}, {}),
    ],
)
def test_defaults_are_recorded_for_networks_that_read_them(
    mode: str, given: dict[str, Any], recorded: dict[str, Any]
) -> None:
    before = recipe(**given)
    found = with_defaults(recipe(**given), network(mode))
    changed = {key: value for key, value in found.sample if value != getattr(before.sample, key)}
    assert changed == recorded and found.settled == {f"sample.{key}": value for key, value in recorded.items()}
    assert sampling_of(found.sample, network(mode)) == sampling_of(before.sample, network(mode))


def test_a_new_value_takes_what_it_leaves_unread_with_it() -> None:
    assert without_replaced({"sample.order": "halton"}) == {"sample.order": "halton", "sample.choice_temperature": None}
    assert without_replaced({"sample.order": "confidence"}) == {"sample.order": "confidence"}
    given = {"sample.cfg_schedule": "constant", "sample.cfg_power": 2.0}  # named: it is refused, not left out
    assert without_replaced(given) == {**given, "sample.cfg_done": None}
    assert without_replaced({"sample.per_class": 2}) == {"sample.per_class": 2, "sample.number": None}
