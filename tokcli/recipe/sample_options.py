"""The options of `tok sample`, each declared once, as a field of a dataclass.

Read from here: the command's flags, the keys of the recipe's section `sample`, their ranges, which proposal networks read them, what
can be swept, what a report's page is charted over, and the table in the docs. The command line imports this: no torch, no pydantic.
"""

import dataclasses
import math
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

MODES = ("ar", "nar")


class Range(NamedTuple):
    """Values that an option may have: in words, and as a test."""

    text: str
    holds: Callable[[Any], bool]


def at_least(low: int) -> Range:
    """Numbers from `low` on."""
    return Range(f"at least {low}", lambda v: v >= low)


def between(low: int, high: int) -> Range:
    """Numbers from `low` to `high`."""
    return Range(f"at least {low} and at most {high:,}", lambda v: low <= v <= high)


POSITIVE = Range("over 0", lambda v: v > 0)
MASS = Range("over 0 and at most 1", lambda v: 0 < v <= 1)
TEMPERATURE = Range("0 or at least 1e-6", lambda v: v == 0 or v >= 1e-6)  # float32 would divide by zero
SPAN = Range("[from, to] with 0 <= from < to <= 1", lambda v: 0 <= v[0] < v[1] <= 1)
LAYOUT = Range("ROWSxCOLUMNS, such as 10x8, each from 1 to 99", lambda v: bool(re.fullmatch(r"[1-9]\d?x[1-9]\d?", v)))


@dataclass(frozen=True, kw_only=True)
class Option:
    """What is declared of an option.

    Args:
        key: in the recipe's section.
        type, default: of its value.
        help: for `--help` and the docs.
        flags: of the command; none: the recipe and `--set` alone.
        metavar: of the flag's value.
        parse: the flag's text as a value, where the type does not say how; a ValueError says what is wrong with it.
        range: what a value must be; null is not asked.
        modes: of the proposal networks that can read it; each says in its `sampling_keys` whether it does.
        needs: another option, and its values with which alone this one is read.
        sweeps: whether `--sweep` takes it; what changes no image is not swept.
        charted: whether a report draws its numbers over it.
    """

    key: str
    type: Any
    default: Any
    help: str
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    parse: Callable[[str], Any] | None = None
    range: Range | None = None
    modes: tuple[str, ...] = MODES
    needs: tuple[str, tuple[Any, ...]] | None = None
    sweeps: bool = True
    charted: bool = False

    @property
    def nullable(self) -> bool:
        """Whether recipes say null where it is not read: by some networks, or without what it needs."""
        return self.needs is not None or self.modes != MODES

    @property
    def unset(self) -> Any:
        """Its value in a recipe that leaves it out."""
        return None if self.nullable else self.default

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values of an option of few."""
        return typing.get_args(self.type) if typing.get_origin(self.type) is Literal else ()

    @property
    def meaning(self) -> str:
        """The help, and what else the docs say: who reads it, what stands for null, its flags."""
        notes = ["null: not given."] if self.default is None and "Default: " not in self.help else []
        if self.modes != MODES:
            notes.append(f"Only networks of mode {' or '.join(self.modes)} read it.")
        if self.needs:
            notes.append(f"Only read with {self.needs[0]} {' or '.join(map(str, self.needs[1]))}.")
        if self.nullable:
            notes.append(f"null means {self.default} if it is read.")
        if self.flags:
            notes.append(f"Flag `{', '.join(self.flags)}`.")
        return " ".join([self.help.replace("Default: ", "null: "), *notes])

    def fault(self, value: Any) -> str | None:
        """What a value of the right type should be, if it is not that."""
        if value is None:
            return None
        if isinstance(value, float) and not math.isfinite(value):
            return "a finite number"
        if self.choices and value not in self.choices:
            return " or ".join(map(str, self.choices))
        return None if self.range is None or self.range.holds(value) else self.range.text


def option(default: Any, help: str, *flags: str, **more: Any) -> Any:
    """A field of a dataclass that declares an option; arguments as of `Option`."""
    return dataclasses.field(default=default, metadata={"help": help, "flags": flags, **more})


def declared(owner: type) -> dict[str, Option]:
    """The options that a dataclass declares, by key."""
    types = typing.get_type_hints(owner)
    return {
        one.name: Option(key=one.name, type=types[one.name], default=one.default, **one.metadata)
        for one in dataclasses.fields(owner)
    }


def class_names(text: str) -> list[int | str] | Literal["data"]:
    """`cat,dog` as a list; `data` as it is.

    Raises:
        ValueError: it is empty.
    """
    if not text.strip():
        raise ValueError("it is empty: name classes, or leave it out")
    return "data" if text == "data" else [*text.split(",")]


def rows_or_share(text: str) -> int | float:
    """A whole number of rows, or a share with a point.

    Raises:
        ValueError: it is no number.
    """
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise ValueError(f"expected a number, got '{text}'") from None


@dataclass(frozen=True, kw_only=True)
class RequestOptions:
    """How many images of what."""

    number: int | None = option(None, "Number of images.", "-n", "--number", metavar="N", range=between(1, 10_000_000))
    per_class: int | None = option(
        None, "Number of images of each class, instead of -n.", "--per-class", metavar="N", range=between(1, 1_000_000)
    )
    classes: list[int | str] | Literal["data"] | None = option(
        None,
        "Names or numbers of classes, which are drawn in rotation, or `data`: as often as in the training data. Default: all classes in rotation.",
        "--classes",
        metavar="A,B,...",
        parse=class_names,
    )
    prompts: list[str] | None = option(
        None, "Captions for a text-conditional network; if there are more images, they are repeated in order."
    )


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """How codes are drawn from a proposal network."""

    cfg_scale: float = option(
        1.0,
        "Scale of classifier-free guidance; 1 switches it off.",
        "--cfg-scale",
        metavar="S",
        range=at_least(0),
        charted=True,
    )
    temperature: float = option(
        1.0,
        "Sampling temperature; 0 always takes the most likely token.",
        "--temperature",
        metavar="T",
        range=TEMPERATURE,
        charted=True,
    )
    top_k: int = option(
        0,
        "Draw from the K most likely tokens; 0 switches this off.",
        "--top-k",
        metavar="K",
        range=at_least(0),
        charted=True,
    )
    top_p: float = option(
        1.0,
        "Draw from the most likely tokens whose probabilities add up to P; 1 switches this off.",
        "--top-p",
        metavar="P",
        range=MASS,
        charted=True,
    )
    cfg_schedule: Literal["constant", "linear", "power-cosine"] = option(
        "constant",
        "How the scale of guidance changes over the decoding steps, or over the positions of an autoregressive network.",
    )
    cfg_power: float = option(
        1.0,
        "Exponent of the schedule; a higher one lets guidance start later.",
        range=POSITIVE,
        needs=("cfg_schedule", ("power-cosine",)),
    )
    cfg_done: Literal["before", "after"] = option(
        "before",
        "Whether a schedule that changes counts the steps before the current one, as published, or the current one too.",
        needs=("cfg_schedule", ("linear", "power-cosine")),
    )
    cfg_interval: tuple[float, float] = option(
        (0.0, 1.0), "Part of the steps in which guidance acts, as shares of their number.", range=SPAN
    )
    steps: int = option(
        8,
        "Number of decoding steps of a masked network.",
        "--steps",
        metavar="N",
        range=at_least(1),
        modes=("nar",),
        charted=True,
    )
    order: Literal["confidence", "halton"] = option(
        "confidence",
        "Order in which a masked network fills in tokens: the most confident first, or Halton's sequence.",
        "--order",
        modes=("nar",),
    )
    choice_temperature: float = option(
        4.5,
        "Weight of the noise when tokens are chosen by confidence; it falls linearly to 0.",
        range=at_least(0),
        modes=("nar",),
        needs=("order", ("confidence",)),
        charted=True,
    )
    compile: bool = option(
        False,
        "Run the proposal network with torch.compile; on a GPU, an autoregressive one as CUDA graphs. Logits differ by rounding.",
        "--compile/--no-compile",
    )


@dataclass(frozen=True, kw_only=True)
class SampleOptions(SamplerOptions, RequestOptions):
    """How many images of what, and how their tokens are drawn."""

    keep_top: int | float | None = option(
        None,
        "Top rows of tokens to keep of the edited image, as a number (4) or a share (0.5); the rest is redrawn.",
        "--keep-top",
        metavar="N|SHARE",
        parse=rows_or_share,
    )
    margin: float = option(
        0.5,
        "What the network sees around a masked part of the edited image, on each side, as a share of the part's longer side.",
        range=at_least(0),
    )
    precision: Literal["float32", "bfloat16"] = option(
        "float32", "Precision of the proposal network's matrix products."
    )
    grid: str | None = option(
        None,
        "Rows and columns of the contact sheet, sheet.png. Default: up to 24 classes, 10 images of each.",
        "--grid",
        metavar="ROWSxCOLUMNS",
        range=LAYOUT,
        sweeps=False,
    )
    format: Literal["png", "shards"] = option(
        "png", "Write one PNG per image, or webdataset tars, which --data can read.", "--format", sweeps=False
    )
    neighbours: str | None = option(
        None,
        "Also write neighbours.png: samples beside their nearest training images, by pixels or by the features of a network.",
        "--neighbours",
        metavar="NETWORK|pixels",
        sweeps=False,
    )
    batch_size: int = option(
        16, "Number of images drawn at a time.", "--batch-size", metavar="N", range=at_least(1), sweeps=False
    )
    shard_size: int = option(
        256, "Number of images in each file of indices and in each tar.", range=at_least(1), sweeps=False
    )


def keys_of(mode: str) -> frozenset[str]:
    """The sampler's options that proposal networks of a mode can read."""
    return frozenset(key for key, one in declared(SamplerOptions).items() if mode in one.modes)


def charted() -> tuple[str, ...]:
    """Keys of the section that a report draws its numbers over."""
    return tuple(key for key, one in declared(SampleOptions).items() if one.charted)
