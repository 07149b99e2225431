"""What a command reads: its preset and recipe, its data and the artifacts that it starts from."""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from tokcli.artifact import plans
from tokcli.artifact.opening import Artifact, examined, open_artifact, scan
from tokcli.artifact.plans import Planned
from tokcli.command.options import Options, Preset
from tokcli.command.session import device_named
from tokcli.data.addresses import may_read
from tokcli.data.sources import ImageSource, open_source
from tokcli.data.sources.summary import looked_at
from tokcli.device import cores, emulated_bfloat16, usual_device
from tokcli.errors import NotFound, TokError
from tokcli.recipe.check import check
from tokcli.recipe.sections import Expects, Recipe
from tokcli.recipe.yaml import find_recipe, is_preset, override, preset_named, presets, read_yaml


def check_expected(expected: Expects, **actual: Any) -> None:
    """Compare a recipe's `expects` with the real inputs.

    Raises:
        TokError: naming every fact that differs.
    """
    facts = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in actual.items()}
    wrong = [name for name, value in facts.items() if not expected.accepts(name, value)]
    if wrong:
        said = "; ".join(f"expects.{name}: {_either(getattr(expected, name))}, not {facts[name]}" for name in wrong)
        ways = " ".join(f"--set 'expects.{name}={json.dumps(facts[name])}'" for name in wrong)
        raise TokError("recipe", "its expectations are not met", why=said, next=f"Train on these all the same: {ways}")


def _either(wanted: Any) -> str:
    return " or ".join(map(str, wanted)) if isinstance(wanted, list) else str(wanted)


R = TypeVar("R", bound=Recipe)


log = logging.getLogger("tok")


def load_recipe(
    options: Options,
    model: type[R],
    name: str,
    families: Mapping[str, Mapping[str, Callable[..., Any]]],
    resolve: Callable[[str], Callable[..., Any] | None] = lambda name: None,
    say: Callable[..., None] = log.info,
) -> R:
    """The recipe of this command, overridden by its flags and checked.

    Args:
        model: the stage's recipe.
        name: default file name, such as `tokenizer-vqkd`, in the options' preset.
        families, resolve: see `recipe.check`.
        say: is told which keys went with a component that a flag replaced.
    """
    path = find_recipe(options.recipe, preset=options.preset.name if options.preset else "", name=name)
    tree = read_yaml(path)
    stage = model.model_fields["stage"].annotation
    wanted = getattr(stage, "__args__", ("",))[0]
    if tree.get("stage") != wanted:
        raise TokError(
            str(path),
            f"is not a recipe of stage '{wanted}'",
            got=repr(tree.get("stage")),
            next="Give a recipe of this stage: tok recipes lists them",
        )
    override(tree, {**_for_device(options, tree), **options.sets}, families, resolve, say)
    return check(model, tree, str(path), families, resolve)


def _for_device(options: Options, tree: Mapping[str, Any]) -> dict[str, Any]:
    """float32 where a preset's recipe has bfloat16, on a device without instructions for it, which is many times slower in it. A recipe that
    `--recipe` names itself stays as it is.
    """
    if options.preset is None or not names_no_recipe(options):
        return {}
    try:
        why = emulated_bfloat16(device_named(options.device or usual_device().type, "--device"))
    except TokError:  # a dry run may be of another machine's device; where it is needed it is refused
        return {}
    if not why:
        return {}
    slow = [key for key, keys in tree.items() if isinstance(keys, Mapping) and keys.get("precision") == "bfloat16"]
    if found := {name: "float32" for key in slow if (name := f"{key}.precision") not in options.sets}:
        said = ", ".join(f"{key}={value}" for key, value in found.items())
        log.info("recipe: %s, since %s", said, why)
    return found


def names_no_recipe(options: Options) -> bool:
    """Whether the recipe is a preset's for this stage: `--recipe` names the preset, or nothing."""
    return options.recipe is None or is_preset(options.recipe)


def method_of(options: Options, given: str | None) -> str:
    """The tokenizer method: `--method` or `--set method=`, else that of the recipe that `--recipe` names, else VQ-KD.

    Raises:
        TokError: they and the recipe, whose other keys are its method's, name different ones.
    """
    said = options.sets.get("method")
    if said is not None and given not in (None, said):
        raise TokError(f"--method {given}", "is not what --set says", got=f"method={said}", next="Leave one out")
    given = given if said is None else str(said)
    if names_no_recipe(options):
        return given or "vqkd"
    path = find_recipe(options.recipe, preset=options.preset.name if options.preset else "", name="")
    recorded = str(read_yaml(path).get("method", given or "vqkd"))
    if given not in (None, recorded):
        raise TokError(
            f"--method {given}",
            f"is not that of {path}",
            got=f"method: {recorded}",
            next=f"Choose a recipe of {given}, or leave the method out",
        )
    return recorded


def open_input(options: Options, flag: str, given: Path, kinds: Sequence[str]) -> Artifact:
    """The artifact that a flag names; in a dry run it may be the plan of one.

    Raises:
        TokError: see `artifact.open_artifact` and `planned.open_planned`.
    """
    plan = plans.open_planned(given, flag, kinds, dry_run=options.dry_run)
    return plan or open_artifact(given, flag, kinds)


def choose(
    options: Options,
    flag: str,
    given: Path | None,
    kinds: Sequence[str],
    fits: Callable[[Artifact], bool] = lambda a: True,
    maker: str = "",
) -> Artifact:
    """The input named by a flag, or the one artifact of the workspace that fits.

    Args:
        flag: such as `--tokenizer`.
        given: its value.
        kinds: the kinds of artifact it accepts.
        fits: which of them go with the other inputs.
        maker: the command that makes one, for the message.

    Raises:
        TokError: none or several fit.
    """
    if given is not None:
        return open_input(options, flag, given, kinds)
    found = [a for a in scan(options.workspace) if a.kind in kinds and fits(a)]
    chosen = examined(_only(found, flag, kinds, f"in {options.workspace}", maker))
    log.info("%s %s (the only one that fits)", flag, chosen.path)
    return chosen


def _only(found: Sequence[Artifact], flag: str, kinds: Sequence[str], where: str, maker: str) -> Artifact:
    if not found:
        raise TokError(flag, f"no {' or '.join(kinds)} that fits is {where}", next=f"Name one, or make it: {maker}")
    if len(found) > 1:
        listed = ", ".join(str(a.path) for a in found)
        raise TokError(flag, f"{len(found)} fit", got=listed, next=f"Pick one with {flag} PATH")
    return found[0]


DECODING = ("decoder", "tokenizer")  # kinds that may hold a pixel decoder


def check_decodes(chosen: Artifact, flag: str, given: str | Path) -> None:
    """Refuse a tokenizer without a pixel decoder where one is needed.

    Raises:
        TokError: it is one.
    """
    if chosen.kind == "tokenizer" and not chosen.facts["has_decoder"]:
        next = f"Train one: tok train-decoder --tokenizer {given}"
        raise TokError(f"{flag} {given}", "is a tokenizer without a pixel decoder", next=next)


def choose_decoder(options: Options, given: Path | None, tokenizer_id: str | None) -> Artifact:
    """What turns a tokenizer's codes into pixels: `--decoder`, else a decoder made for it, else the tokenizer's own.

    Raises:
        TokError: none or several decoders fit, or the tokenizer named has none.
    """
    if given is not None:
        chosen = open_input(options, "--decoder", given, DECODING)
        check_decodes(chosen, "--decoder", given)
        return chosen
    found = scan(options.workspace)
    chosen = examined(decoder_among(found, tokenizer_id, "--decoder", where=f"in {options.workspace}"))
    log.info("--decoder %s (the only one that fits)", chosen.path)
    return chosen


def decoder_among(
    artifacts: Sequence[Artifact], tokenizer_id: str | None, flag: str, where: str = "beside it"
) -> Artifact:
    """The one decoder that was trained for a tokenizer, else the tokenizer itself where it has a pixel decoder.

    Raises:
        TokError: none or several fit.
    """
    of_it = [a for a in artifacts if a.input_id("tokenizer") == tokenizer_id]
    trained = [a for a in of_it if a.kind == "decoder"]
    fits = trained or [a for a in of_it if a.kind == "tokenizer" and a.facts["has_decoder"]]
    return _only(fits, flag, DECODING, where, "tok train-decoder")


SMALL, BASE = "folder/small", "folder/base"
ABOUT = {SMALL: "64 px, minutes on a CPU", BASE: "128 px, for a GPU"}
FEW = 2000  # images, for which the networks of `BASE` are too large
TINY = 96  # pixels of a short side, which 128 px only blow up


def own_preset(spec: str) -> str | None:
    """The preset of an embedded data set or of a published one: `openmoji/train` -> `openmoji`; None for a user's own path."""
    head = spec.split("/")[0]
    return head if head in presets() and not Path(spec).is_dir() else None


def with_preset(options: Options, spec: str, made_by: Artifact | None = None) -> tuple[Options, ImageSource | None]:
    """The options with a preset, and the images, where they were opened to choose it.

    `--recipe` names one, else the input artifact's is taken, so that its sizes go on; else that of the data set; else one that
    suits the user's own images and the device, which is said. A recipe in a file has none but its input's.

    Args:
        spec: the data.
        made_by: the input artifact.
    """
    source: ImageSource | None = None
    recorded = preset_recorded(made_by) if made_by else None
    named = preset_named(options.recipe)
    found = Preset(named, "--recipe names it") if named else None
    if found is None and made_by is not None and recorded is not None:
        found = Preset(recorded, f"{made_by.path} was made by it")
        if recorded != own_preset(spec):
            log.info("recipe: %s, the preset of %s", recorded, made_by.path)
    if found is None and (own := own_preset(spec)):
        found = Preset(own, "the data set's own")
    if found is None and not (options.recipe or "").endswith((".yaml", ".yml")):
        source = _images(options, spec)
        found = choose_preset(source, on_gpu=_on_gpu(options), cores=options.threads or cores())
        others = ", ".join(f"--recipe {name} ({about})" for name, about in ABOUT.items() if name != found.name)
        log.info(
            "recipe: %s (%s), for %s. Otherwise: %s, or another that tok recipes lists",
            found.name,
            ABOUT[found.name],
            found.why,
            others,
        )
    return dataclasses.replace(options, preset=found), source


def preset_recorded(a: Artifact) -> str | None:
    """The preset that an artifact, or the plan of one, was made by."""
    at = a.manifest if isinstance(a, Planned) else a.manifest["provenance"]
    known = at.get("preset")
    name = known.get("name") if isinstance(known, dict) else None
    return name if isinstance(name, str) and name in presets() else None


def choose_preset(source: ImageSource | None, *, on_gpu: bool, cores: int) -> Preset:
    """The preset for a user's own images, and why.

    Args:
        source: the images; None where they are not on this machine.
        on_gpu: whether it runs on a GPU.
        cores: of the CPU, that it may use.
    """
    where = "a GPU" if on_gpu else f"a CPU with {cores} core{'s' * (cores != 1)}"
    if source is None:
        return Preset(BASE if on_gpu else SMALL, f"images that are not on this machine, on {where}")
    sides = [min(size) for size in looked_at(source)]
    side = round(median(sides)) if sides else None
    what = f"{len(source):,} image{'s' * (len(source) != 1)}" + (
        f" of {side} px (the short side, at the median)" if side else ""
    )
    large = on_gpu and len(source) >= FEW and (side is None or side >= TINY)
    return Preset(BASE if large else SMALL, f"{what} on {where}")


def _on_gpu(options: Options) -> bool:
    return (options.device or usual_device().type).startswith("cuda")


def _images(options: Options, spec: str) -> ImageSource | None:
    """The images, if they are here or at an address that the user has named; what else is wrong is said by who reads them."""
    if not may_read(spec):
        return None
    try:
        return open_source(spec, size=TINY, labels=options.labels)
    except NotFound:
        return None
