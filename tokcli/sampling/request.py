"""What is asked of `tok sample`: the recipe, each image's class, the sampler's settings, the points of a sweep."""

import dataclasses
import itertools
import json
import logging
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field, create_model, model_validator

from tokcli import distributed
from tokcli.command.options import Options
from tokcli.data.prompts import read_prompts
from tokcli.data.randomness import generator
from tokcli.errors import Misuse, TokError
from tokcli.proposals import Proposal, Sampling
from tokcli.recipe.overrides import parse_set
from tokcli.recipe.sample_options import Option, SampleOptions, declared
from tokcli.recipe.sections import Recipe, Section
from tokcli.registry import nearest

NUMBERS = ("sample.number", "sample.per_class")

log = logging.getLogger("tok")


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


def with_prompts(options: Options, source: str | None) -> Options:
    """The options with the captions of `--prompts` in them; as many images, unless -n says how many.

    Raises:
        TokError: see `read_prompts`, or several processes that cannot all read standard input.
    """
    if source is None:
        return options
    if source == "-" and distributed.world_size() > 1:
        raise Misuse("--prompts -", "several processes cannot share standard input", next="give a file")
    prompts = read_prompts(source)
    sets = {**options.sets, "sample.prompts": prompts}
    if not any(key in sets for key in NUMBERS):
        sets["sample.number"] = len(prompts)
    return dataclasses.replace(options, sets=sets)


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


def check_prompts(prompts: list[str] | None, facts: Mapping[str, Any]) -> None:
    """Refuse captions for a network that reads none, and none for one that does."""
    by_text = facts.get("condition") == "text"
    if prompts is not None and not by_text:
        kind = "classes" if facts["classes"] else "nothing"
        raise TokError("--prompts", f"the proposal network is conditioned on {kind}, not on captions",
                       next="--classes picks classes" if facts["classes"] else "leave it out")  # fmt: skip
    if by_text and not prompts:
        raise TokError("--prompts", "the proposal network draws what captions say, and there are none",
                       next="give --prompts FILE, or - for standard input, one caption a line")  # fmt: skip
    if prompts and not all(prompt.strip() for prompt in prompts):
        raise TokError("sample.prompts", "an empty caption", next="leave it out")


class Unnamed(list[str]):
    """Classes of which a plan knows the number alone: they are called by it, and a name may be any of them."""


def class_numbers(asked: list[int | str] | None, names: list[str]) -> list[int]:
    """The classes that images take in turn, as numbers; [-1] where the network knows no classes.

    Raises:
        TokError: a class that does not exist.
    """
    if not names:
        if asked:
            raise TokError("--classes", "the proposal network was trained without classes", got=str(asked))
        return [-1]
    if asked is None:
        return list(range(len(names)))
    found = []
    for text in _whole_names([str(given) for given in asked], names):
        if text in names:
            found.append(names.index(text))
        elif text.isdecimal() and int(text) < len(names):
            found.append(int(text))
        elif isinstance(names, Unnamed) and not text.lstrip("-").isdecimal():
            found.append(0)
        else:
            known = f"numbers 0 to {len(names) - 1}" if text.lstrip("-").isdecimal() else nearest(text, names)
            raise TokError("--classes", f"no such class '{text}'", next=known)
    return found


def _whole_names(parts: list[str], names: list[str]) -> list[str]:
    """Names that a list was split at commas from: those with commas inside, such as "tench, Tinca tinca", are put together again."""
    found, place = [], 0
    while place < len(parts):
        ends = (end for end in range(len(parts), place + 1, -1) if ",".join(parts[place:end]).strip() in names)
        end = next(ends, place + 1)
        found.append(",".join(parts[place:end]).strip())
        place = end
    return found


def _trained(numbers: list[int], asked: bool, names: list[str], counts: list[int]) -> list[int]:
    """Without those classes that no training image has; numbers with gaps, such as years, stand for none."""
    held = [number for number in numbers if number < 0 or counts[number]]
    if asked and len(held) < len(numbers):
        name = next(names[number] for number in numbers if number >= 0 and not counts[number])
        raise TokError(
            "--classes", f"no training image has class '{name}'", next="Ask for others, or leave --classes out"
        )
    if names and len(held) < len(numbers):
        log.info("%d of %d classes are drawn: no training image has the others", len(held), len(numbers))
    return held or numbers


def image_labels(recipe: SampleRecipe, names: list[str], counts: list[int]) -> list[int]:
    """The class of every image: those asked for in turn, or drawn at the training frequencies; -1 without classes.

    Args:
        names: of the classes that the network knows.
        counts: training images of each.

    Raises:
        TokError: a class that does not exist or that no training image has, or a number per class where there are none.
    """
    asked, number, per_class = recipe.sample.classes, recipe.sample.number, recipe.sample.per_class
    if asked == "data" and names and number:
        weights = torch.tensor(counts, dtype=torch.float64)
        return [int(torch.multinomial(weights, 1, generator=generator(recipe.seed, "class", i))) for i in range(number)]
    named = None if asked == "data" else asked
    numbers = _trained(class_numbers(named, names), bool(named), names, counts)
    if per_class and not names:
        raise TokError(
            "--per-class", "the proposal network was trained without classes", next="-n says how many images"
        )
    number = number or (per_class or 1) * len(numbers)
    return [numbers[i % len(numbers)] for i in range(number)]


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
            raise TokError(f"sample.{key}", why, got=f"Got {value}", next=f"Leave it out, or --set sample.{key}={off}")
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


def sweep_points(sweeps: Sequence[str], sets: Container[str] = ()) -> list[dict[str, Any]]:
    """Every combination of `("cfg_scale=1,1.5", "temperature=0.9,1")`, as recipe keys; one empty point without sweeps.

    Args:
        sets: recipe keys that other flags name.

    Raises:
        TokError: not KEY=VALUE,VALUE, or a key or a value given twice.
        Misuse: another flag says a value too.
    """
    axes: dict[str, list[Any]] = {}
    for text in sweeps:
        key, sign, values = text.partition("=")
        if not sign or not key.strip() or not values.strip():
            raise TokError(f"--sweep {text}", "expected KEY=VALUE,VALUE", next="for example --sweep cfg_scale=1,1.5,2")
        key = key.strip()
        key = key if "." in key or key == "seed" else f"sample.{key}"
        if key in axes:
            raise TokError(f"--sweep {text}", "is given twice", next="list all values behind one --sweep")
        one = declared(SampleOptions).get(key.removeprefix("sample."))
        if one and not one.sweeps:
            known = ", ".join(key for key, one in declared(SampleOptions).items() if one.sweeps)
            raise TokError(f"--sweep {text}", f"{key} changes no image", next=f"Sweep one of {known}, seed")
        if key in sets:
            raise Misuse(f"--sweep {text}", f"{key} is given by another flag too", next="leave one of them out")
        axes[key] = found = parse_set((f"{key}=[{values}]",), flag=f"--sweep {text}")[key]
        if any(one in found[:i] for i, one in enumerate(found)):  # 1 and 1.0 are one
            raise TokError(f"--sweep {text}", "names a value twice", next="each makes the same images once")
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


def point_name(point: Mapping[str, Any]) -> str:
    """A point of a sweep as a folder's name: `cfg_scale=1.5,temperature=0.9`."""
    parts = [f"{key.removeprefix('sample.')}={value}" for key, value in point.items()]
    return ",".join(parts).replace("/", "-").replace(" ", "")
