"""The options that all commands share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EMBEDDED = "openmoji/train"  # the data set of those who name none


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
    dry_run: bool = False
    weights: Mapping[str, Path] = field(
        default_factory=dict
    )  # "teacher", "teacher:NAME", "vgg", "inception", "text", "language" -> file
