"""Which preset a run takes: a folder of recipes, one for each stage, sized for the images and the device."""

import dataclasses
import logging
from pathlib import Path
from statistics import median

import torch

from tokcli.artifact.opening import Artifact
from tokcli.artifact.plans import Planned
from tokcli.command.options import Options, Preset
from tokcli.data.sources import ImageSource, open_source
from tokcli.data.sources.summary import looked_at
from tokcli.device.cores import cores
from tokcli.errors import NotFound
from tokcli.recipe.yaml import preset_named, presets

log = logging.getLogger("tok")
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
        log.info("recipe: %s (%s), for %s. Otherwise: %s, or another that tok recipes lists", found.name, ABOUT[found.name], found.why, others)  # fmt: skip
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
    return (options.device or ("cuda" if torch.cuda.is_available() else "cpu")).startswith("cuda")


def _images(options: Options, spec: str) -> ImageSource | None:
    """The images, if they are on this machine; what else is wrong with them is said by who reads them."""
    try:
        return open_source(spec, size=TINY, labels=options.labels)
    except NotFound:
        return None
