"""The options that all commands share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

EMBEDDED = "openmoji/train"  # the data set of those who name none


class Preset(NamedTuple):
    """A folder of recipes, one for each stage."""

    name: str  # such as "folder/small"
    why: str  # it was taken, in words


@dataclass(frozen=True)
class Options:
    """The flags that say where; recipes say what."""

    workspace: Path = Path("artifacts")
    out: Path | None = None
    recipe: str | None = None
    sets: Mapping[str, Any] = field(default_factory=dict)  # dotted key -> value, from --set and the shorthands
    data: str | None = None
    labels: Path | None = None
    device: str | None = None
    threads: int | None = None
    workers: int | None = None  # processes that read images at most; None: as there are cores
    dry_run: bool = False
    preset: Preset | None = None  # that recipes come from which --recipe does not name; see `with_preset`
    weights: Mapping[str, Path] = field(
        default_factory=dict
    )  # "teacher", "teacher:NAME", "vgg", "inception", "text", "language" -> file
