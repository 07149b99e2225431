"""What lies in a folder: images, texts beside them, and everything else by kind."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tokcli.data.sources.contents import State, state_of
from tokcli.data.sources.listing import IMAGE_EXTENSIONS, OTHER_IMAGES

DEPTH = 3
SIDECARS = (".txt", ".json")
SIDE_FOLDERS = ("__MACOSX",)  # of archives and systems: what lies in them only looks like images


@dataclass
class Found:
    """Files by their path relative to the folder, with what changes when they do."""

    images: dict[str, State] = field(default_factory=dict)
    sidecars: dict[str, dict[str, State]] = field(default_factory=dict)  # path without extension -> extension -> state
    deep: list[str] = field(default_factory=list)  # images in folders that are too deep
    problems: list[tuple[str, str]] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)  # other files by extension


def walk(root: Path) -> Found:
    """Everything in a folder; links are followed (class folders often are links), one that leads back into itself once.

    Deeper images are looked for too, so that they can be named.
    """
    found = Found()
    _scan(str(root), "", (_inode(root),), found)
    found.problems.sort()
    found.problems += [(key, f"deeper than {DEPTH} folders") for key in sorted(found.deep)]
    return found


def _inode(folder: str | Path) -> tuple[int, int]:
    state = os.stat(folder)
    return state.st_dev, state.st_ino


def _scan(folder: str, prefix: str, above: tuple[tuple[int, int], ...], found: Found) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                _enter(entry, prefix, above, found)
            else:
                _file(entry, prefix + entry.name, len(above) - 1, found)


def _enter(entry: os.DirEntry[str], prefix: str, above: tuple[tuple[int, int], ...], found: Found) -> None:
    inode = _inode(entry.path)
    if entry.name in SIDE_FOLDERS:
        found.ignored[f"folder {entry.name}"] += 1
    elif above.count(inode) > 1:
        found.ignored["folder link back into itself"] += 1
    else:
        _scan(entry.path, f"{prefix}{entry.name}/", (*above, inode), found)


def _file(entry: os.DirEntry[str], key: str, depth: int, found: Found) -> None:
    stem, extension = os.path.splitext(key)
    lower = extension.lower()
    image = lower in IMAGE_EXTENSIONS
    if not entry.is_file():
        if image:
            found.problems.append((key, "a link to nothing, or a device"))
    elif image and depth > DEPTH:
        found.deep.append(key)
    elif image:
        found.images[key] = state_of(entry.stat())
    elif lower in SIDECARS:
        found.sidecars.setdefault(stem, {})[lower] = state_of(entry.stat())
    elif lower in OTHER_IMAGES:
        found.problems.append((key, f"images of type {lower} are not read"))
    else:
        found.ignored[lower or "without extension"] += 1
