"""The recipe of `tok sample`, and the sampler's settings that it gives a proposal network."""

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, create_model, model_validator

from tokcli.errors import TokError
from tokcli.proposals import Proposal, Sampling
from tokcli.recipe.sample_options import Option, SampleOptions, declared
from tokcli.recipe.sections import Recipe, Section

NUMBERS = ("sample.number", "sample.per_class")


class _Checked(Section):
    """What no single key of the section can say."""

    @model_validator(mode="after")
    def _check(self) -> "_Checked":
        number, per_class, classes = (getattr(self, key) for key in ("number", "per_class", "classes"))
        if (number is None) == (per_class is None):
            both = "" if number is None else ", not both"
            raise ValueError(f"either number or per_class must be given{both}")
        if per_class is not None and classes == "data":
            raise ValueError("per_class does not go with classes: data, whose numbers are those of the data")
        return self


@dataclasses.dataclass(frozen=True)
class _Within:
    """Refuses a value outside of an option's range."""

    option: Option

    @property
    def text(self) -> str:
        """The range in words."""
        return self.option.range.text if self.option.range else ""

    def __call__(self, value: Any) -> Any:
        fault = self.option.fault(value)
        if fault:
            raise ValueError(f"should be {fault}. Got {value}")
        return value


def section_of(owner: type) -> type[Section]:
    """The model of the recipe's section whose keys are the options that a dataclass declares."""
    fields: dict[str, Any] = {}
    for key, one in declared(owner).items():
        kind = one.type | None if one.nullable else one.type
        ranged = Annotated[kind, AfterValidator(_Within(one))] if one.range else kind
        fields[key] = (ranged, Field(one.unset, description=one.meaning))
    return create_model("Sample", __base__=_Checked, __doc__=owner.__doc__, **fields)


if TYPE_CHECKING:
    Sample = SampleOptions
else:
    Sample = section_of(SampleOptions)


class SampleRecipe(Recipe):
    """Recipe of stage sample.

    Args:
        sample: see `sample`.
    """

    stage: Literal["sample"]
    sample: Sample


def without_replaced(sets: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe keys to be set, and null for those of the recipe whose place they take.

    -n takes the place of --per-class and the other way round; an option that another's new value leaves unread goes.
    """
    found = dict(sets)
    if any(sets.get(key) is not None for key in NUMBERS):
        found |= {key: sets.get(key) for key in NUMBERS}
    for key, one in declared(SampleOptions).items():
        if one.needs and sets.get(f"sample.{one.needs[0]}", one.needs[1][0]) not in one.needs[1]:
            found.setdefault(f"sample.{key}", None)
    return found


def sampling_of(section: Sample, network: Proposal | type[Proposal]) -> Sampling:
    """The sampler's settings.

    Raises:
        TokError: a value out of range, or an option that this network, or another option's value, leaves unread.
    """
    options = declared(Sampling)
    values = {key: getattr(section, key) for key in options}
    given = {key: value for key, value in values.items() if value is not None}
    for key, value in given.items():
        one = options[key]
        if value == one.unset:
            continue
        why = "" if key in network.sampling_keys else "this proposal network does not read it"
        if not why and not _needed(one, given):
            of = one.needs[0] if one.needs else ""
            why = f"{of} {given.get(of, options[of].default)} does not read it"
        if why:
            off = json.dumps(one.unset)
            raise TokError(f"sample.{key}", why, got=f"{value}", next=f"Leave it out, or --set sample.{key}={off}")
    return Sampling(**given)


def _needed(one: Option, given: Mapping[str, Any]) -> bool:
    """Whether an option is read beside the others that are given."""
    if one.needs is None:
        return True
    key, values = one.needs
    return given.get(key, declared(Sampling)[key].default) in values


def with_defaults(recipe: SampleRecipe, network: Proposal) -> SampleRecipe:
    """The recipe with the sampler's defaults as values, for what this network reads; what it does not read stays null."""
    options = declared(Sampling)
    given = {key: getattr(recipe.sample, key) for key in options if getattr(recipe.sample, key) is not None}
    for key, one in options.items():
        if key not in given and key in network.sampling_keys and _needed(one, given):
            setattr(recipe.sample, key, one.default)
            recipe.settled[f"sample.{key}"] = one.default
    return recipe
