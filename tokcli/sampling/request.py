"""What is asked of `tok sample`: the recipe, each image's class, the sampler's settings, the points of a sweep."""

import dataclasses
import itertools
import json
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from tokcli import distributed
from tokcli.command.options import Options
from tokcli.data.prompts import read_prompts
from tokcli.data.randomness import generator
from tokcli.errors import Misuse, TokError
from tokcli.proposals import Proposal, Sampling
from tokcli.recipe.overrides import parse_set
from tokcli.recipe.sections import Recipe, Section
from tokcli.registry import nearest

NUMBERS = ("sample.number", "sample.per_class")


class Sample(Section):
    """How many images of what, and how their tokens are drawn. Keys that a mode does not read stay null."""

    number: int | None = Field(None, ge=1, le=10_000_000)  # of images, or
    per_class: int | None = Field(None, ge=1, le=1_000_000)  # of images of each class asked for
    classes: list[int | str] | Literal["data"] | None = (
        None  # names or numbers, in turn; "data": as in training; None: all
    )
    prompts: list[str] | None = None  # captions, in turn, for a text-conditional network
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    cfg_scale: float = 1.0
    cfg_schedule: Literal["constant", "linear", "power-cosine"] = (
        "constant"  # over steps, or over an AR network's positions
    )
    cfg_power: float | None = None  # of power-cosine
    cfg_done: Literal["before", "after"] | None = None  # of a moving schedule; null becomes before, as published
    cfg_interval: tuple[float, float] = (0.0, 1.0)  # shares of the way between which guidance acts
    steps: int | None = None
    order: Literal["confidence", "halton"] | None = None  # which tokens a masked network finds first
    choice_temperature: float | None = None  # of order confidence
    keep_top: int | float | None = None  # of an image to edit: rows of tokens, or a share of them, that stay
    paste: bool = False  # lay the image's own pixels over what an edit leaves alone
    precision: Literal["float32", "bfloat16"] = "float32"  # of the proposal network's matrix products
    compile: bool = False  # run the proposal network by torch.compile, which rounds otherwise
    batch_size: int = Field(16, ge=1)  # images at a time
    shard_size: int = Field(256, ge=1)  # images of one file of indices, and of one tar
    format: Literal["png", "shards"] = "png"
    grid: str | None = None  # rows x columns of the contact sheet
    neighbours: str | None = None  # extractor, or pixels, by which the nearest training images are found

    @model_validator(mode="after")
    def _check(self) -> "Sample":
        if (self.number is None) == (self.per_class is None):
            both = "" if self.number is None else ", not both"
            raise ValueError(f"either number or per_class must be given{both}")
        if self.per_class is not None and self.classes == "data":
            raise ValueError("per_class does not go with classes: data, whose numbers are those of the data")
        if self.cfg_schedule != "constant" and self.cfg_done is None:
            self.cfg_done = "before"  # recorded: what a schedule counts was another thing once
        if self.grid is not None and not re.fullmatch(r"[1-9]\d?x[1-9]\d?", self.grid):
            raise ValueError(f"grid should be ROWSxCOLUMNS, such as 10x8, each from 1 to 99. Got '{self.grid}'")
        return self


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


def one_number(sets: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe keys to be set, of which -n or --per-class takes the place of the recipe's own number of the other kind."""
    given = any(sets.get(key) is not None for key in NUMBERS)
    return {**sets, **{key: sets.get(key) for key in NUMBERS if given}}


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
    for given in asked:
        text = str(given).strip()
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


def image_labels(recipe: SampleRecipe, names: list[str], counts: list[int]) -> list[int]:
    """The class of every image: those asked for in turn, or drawn at the training frequencies; -1 without classes.

    Args:
        names: of the classes that the network knows.
        counts: training images of each.

    Raises:
        TokError: a class that does not exist, or a number per class where there are none.
    """
    asked, number, per_class = recipe.sample.classes, recipe.sample.number, recipe.sample.per_class
    if asked == "data" and names and number:
        weights = torch.tensor(counts, dtype=torch.float64)
        return [int(torch.multinomial(weights, 1, generator=generator(recipe.seed, "class", i))) for i in range(number)]
    numbers = class_numbers(None if asked == "data" else asked, names)
    if per_class and not names:
        raise TokError(
            "--per-class", "the proposal network was trained without classes", next="-n says how many images"
        )
    number = number or (per_class or 1) * len(numbers)
    return [numbers[i % len(numbers)] for i in range(number)]


def sampling_of(section: Sample, network: Proposal | type[Proposal]) -> Sampling:
    """The sampler's settings.

    Raises:
        TokError: a value out of range, or a key that this mode, order or schedule does not read.
    """
    names = {field.name for field in dataclasses.fields(Sampling)}
    given = {k: v for k, v in section if k in names and v is not None}
    asked = [k for k, v in given.items() if v != Sample.model_fields[k].default]
    unread, why = [k for k in asked if k not in network.sampling_keys], "this proposal network does not read it"
    if not unread and section.cfg_power is not None and section.cfg_schedule != "power-cosine":
        unread, why = ["cfg_power"], f"schedule {section.cfg_schedule} does not read it"
    if not unread and section.cfg_done is not None and section.cfg_schedule == "constant":
        unread, why = ["cfg_done"], "schedule constant does not read it"
    if not unread and section.choice_temperature is not None and section.order not in (None, "confidence"):
        unread, why = ["choice_temperature"], f"order {section.order} does not read it"
    if unread:
        off = Sample.model_fields[unread[0]].default
        raise TokError(f"sample.{unread[0]}", why, next=f"Leave it out, or --set sample.{unread[0]}={json.dumps(off)}")
    return Sampling(**given)


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
