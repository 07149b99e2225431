"""Teachers by name: every pretrained network is one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tokcli.pretrained import NETWORKS, READY
from tokcli.pretrained.teacher import Teacher
from tokcli.registry import lookup

__all__ = ["TEACHERS", "Teacher", "build_teacher", "teacher_class", "teacher_file", "teacher_weights"]

TEACHERS: dict[str, type[Teacher]] = dict.fromkeys([*NETWORKS, *READY], Teacher)


def teacher_class(name: str) -> type[Teacher]:
    """The class of a teacher by name, also `timm:NAME` and `open_clip:NAME/PRETRAINED`.

    Raises:
        TokError: no such teacher.
    """
    if name.startswith(("timm:", "open_clip:")):
        return Teacher
    return lookup("teacher", TEACHERS, name)


def teacher_file(weights: Mapping[str, Path], name: str) -> Path | None:
    """The file that `--teacher-weights` gives for a teacher: its own (`NAME=FILE`), else the one for all; None: none."""
    return weights.get(f"teacher:{name}") or weights.get("teacher")


def teacher_weights(weights: Mapping[str, Path] | None, name: str) -> Path | Literal["random"] | None:
    """`teacher_file`, or "random" where plans build networks without files (weights None)."""
    return "random" if weights is None else teacher_file(weights, name)


def build_teacher(name: str, keys: Mapping[str, Any], weights: Path | Literal["random"] | None = None) -> Teacher:
    """A frozen teacher.

    Args:
        name: a key of TEACHERS, `timm:NAME`, or `open_clip:NAME/PRETRAINED`.
        keys: `layers`, `norm`, `projection`, `image_size`, `grid` of the recipe.
        weights: its file (`--teacher-weights`), "random", or None to look for it.

    Raises:
        TokError: no such teacher, no weights, or weights that do not fit.
    """
    grid = keys.get("grid")  # YAML and JSON know lists only
    return teacher_class(name)(name, weights, **{**keys, "grid": tuple(grid) if grid else None})
