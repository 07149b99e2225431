"""What `tok sample` is asked for: how many images of what, drawn how, for which captions, at which points of a sweep."""

import dataclasses
import itertools
import logging
import sys
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tokcli import distributed, loading
from tokcli.artifact.opening import Artifact
from tokcli.command.inputs import load_recipe
from tokcli.command.options import Options
from tokcli.data.randomness import generator
from tokcli.data.sources.caption_files import fault_of
from tokcli.device import on_meta
from tokcli.errors import Misuse, TokError
from tokcli.limits import TooLarge, read_bytes
from tokcli.pretrained import network_class
from tokcli.proposals import Proposal, Sampling
from tokcli.recipe.sample_options import SampleOptions, declared
from tokcli.recipe.yaml import parse_set
from tokcli.registry import nearest
from tokcli.sampling import memorisation
from tokcli.sampling.edits import Edit, read_edit
from tokcli.sampling.generator import in_window
from tokcli.sampling.sample_recipe import NUMBERS, SampleRecipe, sampling_of, with_defaults, without_replaced

log = logging.getLogger("tok")


def with_prompts(options: Options, source: str | None) -> Options:
    """The options with the captions of `--prompts` in them; as many images, unless -n says how many.

    Raises:
        TokError: see `read_prompts`, or several processes that cannot all read standard input.
    """
    if source is None:
        return options
    if source == "-" and distributed.world_size() > 1:
        raise Misuse("--prompts -", "several processes cannot share standard input", next="Give a file")
    prompts = read_prompts(source)
    sets = {**options.sets, "sample.prompts": prompts}
    if not any(key in sets for key in NUMBERS):
        sets["sample.number"] = len(prompts)
    return dataclasses.replace(options, sets=sets)


def check_prompts(prompts: list[str] | None, facts: Mapping[str, Any]) -> None:
    """Refuse captions for a network that reads none, and none for one that does."""
    by_text = facts.get("condition") == "text"
    if prompts is not None and not by_text:
        kind = "classes" if facts["classes"] else "nothing"
        raise TokError(
            "--prompts",
            f"the proposal network is conditioned on {kind}, not on captions",
            next="Pick classes with --classes" if facts["classes"] else "Leave it out",
        )
    if by_text and not prompts:
        raise TokError(
            "--prompts",
            "the proposal network draws what captions say, and there are none",
            next="Give --prompts FILE, or - for standard input, one caption a line",
        )
    for number, prompt in enumerate(prompts or [], 1):
        if fault := fault_of(prompt):
            raise TokError("sample.prompts", f"caption {number} cannot be used: {fault}", next="Leave it out")
    if prompts and not all(prompt.strip() for prompt in prompts):
        raise TokError("sample.prompts", "an empty caption", next="Leave it out")


class Unnamed(list[str]):
    """Classes of which a plan knows the number alone: they are called by it, and a name may be any of them."""


def class_numbers(asked: list[int | str] | None, names: list[str]) -> list[int]:
    """The classes that are drawn in rotation, as numbers; [-1] if the network has no classes.

    Raises:
        TokError: a class that does not exist.
    """
    if not names:
        if asked:
            raise TokError(
                "--classes",
                "the proposal network was trained without classes",
                got=str(asked),
                next="Leave --classes out",
            )
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
            known = f"Choose 0 to {len(names) - 1}" if text.lstrip("-").isdecimal() else nearest(text, names)
            raise TokError("--classes", f"no such class '{text}'", next=known)
    return found


def _whole_names(parts: list[str], names: list[str]) -> list[str]:
    """Names that a list was split at commas from: those with commas inside, such as "tench, Tinca tinca", are put together again."""
    if all(part.strip() in names for part in parts):
        return [part.strip() for part in parts]  # each is a name: there is nothing to put together
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
    """The class of every image: the requested ones in rotation, or drawn as often as in the training data; -1 without classes.

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
            "--per-class", "the proposal network was trained without classes", next="Say how many images with -n"
        )
    number = number or (per_class or 1) * len(numbers)
    return [numbers[i % len(numbers)] for i in range(number)]


@dataclasses.dataclass(frozen=True)
class Request:
    """One samples artifact to be made."""

    options: Options
    recipe: SampleRecipe
    settings: Sampling
    labels: Sequence[int]
    edit: Edit | None


def request_of(
    options: Options, point: Mapping[str, Any], proposal: Artifact, edit: Path | None, mask: Path | None
) -> Request:
    """The recipe of one point of a sweep, and what follows from it; whatever is wrong with it is said here."""
    facts, sets = proposal.facts, without_replaced({**options.sets, **point})
    if not facts["classes"] and facts.get("condition") != "text" and "sample.cfg_scale" not in sets:
        log.info("the proposal network has no classes: guidance is off")
        sets["sample.cfg_scale"] = 1.0
    out = options.out / point_name(point) if options.out and point else options.out
    options = dataclasses.replace(options, sets=sets, out=out)
    recipe = load_recipe(options, SampleRecipe, f"sample-{facts['mode']}", {})
    with on_meta():
        network = loading.proposal_of(proposal)
    recipe = with_defaults(recipe, network)
    settings, asked = sampling_of(recipe.sample, network), recipe.sample
    labels = image_labels(recipe, *_classes(proposal))
    check_prompts(asked.prompts, facts)
    if asked.neighbours not in (None, memorisation.PIXELS):
        network_class(str(asked.neighbours), role="extractor")
    picture = None
    if edit is not None:
        if asked.neighbours:
            raise Misuse("--neighbours", "compares whole samples with training images, not edits", next="Leave it out")
        picture = read_edit(
            edit,
            mask,
            asked.keep_top,
            mode=facts["mode"],
            size=facts["use_size"],
            grid=tuple(facts["grid"]),
            margin=asked.margin,
            padding=facts.get("padding"),
        )
        settings, labels = _for_edit(settings, labels, picture, recipe, network)
    elif mask is not None or asked.keep_top is not None:
        flag = "--mask" if mask is not None else "--keep-top"
        raise Misuse(flag, "is for editing a picture", next="Name it: --edit IMAGE")
    for drawn in picture.drawn if picture else [network.tokens]:
        network.check_sampling(in_window(settings, drawn, network) if picture else settings, drawn)
    return Request(options, recipe, settings, labels, picture)


def _classes(proposal: Artifact) -> tuple[list[str], list[int]]:
    """The names of the classes that the network knows, and how many training images each had; of a plan, what it knows."""
    names, counts = proposal.facts["classes"], proposal.facts["class_counts"]
    if isinstance(names, int):
        names = Unnamed(map(str, range(names)))
    return names, [1] * len(names) if counts is None else counts


def _for_edit(
    settings: Sampling, labels: list[int], edit: Edit, recipe: SampleRecipe, network: Proposal
) -> tuple[Sampling, list[int]]:
    """No class where none was named, hence no guidance."""
    said = [
        f"{w.side}x{w.side} px at {w.left},{w.top}: {n} tokens" for w, n in zip(edit.windows, edit.drawn, strict=True)
    ]
    log.info("drawn anew in %d window%s: %s", len(said), "s" * (len(said) > 1), "; ".join(said))
    if recipe.sample.classes is None and network.classes:
        if not network.label_drop:
            why = "the network was trained with every label, and needs the picture's class"
            raise TokError("--classes", why, next="Name it: --classes NAME")
        log.info("no --classes: the edit is drawn without class and guidance")
        settings, labels = dataclasses.replace(settings, cfg_scale=1.0), [-1] * len(labels)
    return settings, labels


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
            raise TokError(
                f"--sweep {text}", "expected KEY=VALUE,VALUE", next="Write for example --sweep cfg_scale=1,1.5,2"
            )
        key = key.strip()
        key = key if "." in key or key == "seed" else f"sample.{key}"
        if key in axes:
            raise TokError(f"--sweep {text}", "is given twice", next="List all values behind one --sweep")
        one = declared(SampleOptions).get(key.removeprefix("sample."))
        if one and not one.sweeps:
            known = ", ".join(key for key, one in declared(SampleOptions).items() if one.sweeps)
            raise TokError(f"--sweep {text}", f"{key} changes no image", next=f"Sweep one of {known}, seed")
        if key in sets:
            raise Misuse(f"--sweep {text}", f"{key} is given by another flag too", next="Leave one of them out")
        axes[key] = found = parse_set((f"{key}=[{values}]",), flag=f"--sweep {text}")[key]
        if any(one in found[:i] for i, one in enumerate(found)):  # 1 and 1.0 are one
            raise TokError(
                f"--sweep {text}", "names a value twice, which would make the same images", next="Name it once"
            )
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


def point_name(point: Mapping[str, Any]) -> str:
    """A point of a sweep as a folder's name: `cfg_scale=1.5,temperature=0.9`."""
    parts = [f"{key.removeprefix('sample.')}={value}" for key, value in point.items()]
    return ",".join(parts).replace("/", "-").replace(" ", "")


MOST_PROMPTS = 64 << 20  # bytes: of a million captions


def read_prompts(source: str) -> list[str]:
    """The captions in a file, or of standard input where `source` is `-`, without the white space around them.

    Raises:
        TokError: unreadable, not UTF-8, no line at all, or an empty one.
    """
    where = f"--prompts {source}"
    try:
        if source == "-" and sys.stdin is None:  # it is closed
            raise TokError(where, "standard input is closed", next="Give a file, or write captions to it")
        data = sys.stdin.buffer.read(MOST_PROMPTS + 1) if source == "-" else read_bytes(Path(source), MOST_PROMPTS)
        if len(data) > MOST_PROMPTS:
            raise TooLarge(f"has more than {MOST_PROMPTS:,} bytes")
        lines = (
            data.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
        )  # splitlines also breaks at form feeds and the like
        prompts = [line.strip() for line in (lines if lines[-1] else lines[:-1])]
    except UnicodeDecodeError as error:
        raise TokError(where, "is not UTF-8 text", why=str(error), next="Save it as UTF-8 text") from None
    except TooLarge as error:
        raise TokError(where, str(error), next="Split it") from None
    except OSError as error:
        raise TokError(
            where, "cannot be read", why=error.strerror or str(error), next="Check the path and its permissions"
        ) from None
    if not prompts:
        raise TokError(where, "holds no captions", next="Write one a line")
    if "" in prompts:
        raise TokError(where, f"line {prompts.index('') + 1} holds no caption", next="Write one caption a line")
    return prompts
