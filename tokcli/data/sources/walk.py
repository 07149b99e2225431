"""What lies in a folder: images, texts beside them, and everything else by kind."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tokcli.data.sources.caption_files import METADATA, TABLE
from tokcli.data.sources.contents import State, state_of
from tokcli.data.sources.listing import IMAGE_EXTENSIONS, OTHER_IMAGES

DEPTH = 3
SIDECARS = (".txt", ".json")
LINK = "link to a folder that is read already"
# of archives, systems and storage boxes: what lies in them only looks like images of the set
SIDE_FOLDERS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found")


Links = list[tuple[os.DirEntry[str], str]]  # to folders, and the prefix of what lies in them


@dataclass
class Found:
    """Files by their path relative to the folder, with what changes when they do."""

    images: dict[str, State] = field(default_factory=dict)
    # path without extension -> extension as it is written -> state
    sidecars: dict[str, dict[str, State]] = field(default_factory=dict)
    deep: list[str] = field(default_factory=list)  # images in folders that are too deep
    problems: list[tuple[str, str]] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)  # other files by extension
    tables: list[str] = field(default_factory=list)  # of captions and metadata


def walk(root: Path) -> Found:
    """Everything in a folder; links are followed (class folders often are links), but no folder is read twice.

    Deeper images are looked for too, so that they can be named.
    """
    found = Found()
    links: Links = []
    seen = {
        _inode(folder) for folder in (root, *root.parents)
    }  # a link to one above would bring in what lies beside, such as val
    _scan(str(root), "", found, links, seen)
    while links:  # after the folders themselves: under its own name a folder comes first, then under the first link
        links.sort(key=lambda link: link[1])
        entry, prefix = links.pop(0)
        _enter(entry, prefix, found, links, seen)
    found.problems.sort()
    found.problems += [(key, f"deeper than {DEPTH} folders") for key in sorted(found.deep)]
    found.tables.sort()
    return found


def _inode(folder: str | Path) -> tuple[int, int]:
    state = os.stat(folder)
    return state.st_dev, state.st_ino


def _scan(folder: str, prefix: str, found: Found, links: Links, seen: set[tuple[int, int]]) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                _file(entry, prefix + entry.name, prefix.count("/"), found)
            elif entry.is_symlink():
                links.append((entry, f"{prefix}{entry.name}/"))
            else:
                _enter(entry, f"{prefix}{entry.name}/", found, links, seen)


def _enter(entry: os.DirEntry[str], prefix: str, found: Found, links: Links, seen: set[tuple[int, int]]) -> None:
    inode = _inode(entry.path)
    if entry.name in SIDE_FOLDERS:
        found.ignored[f"folder {entry.name}"] += 1
    elif inode in seen:
        found.ignored[LINK] += 1
    else:
        seen.add(inode)
        _scan(entry.path, prefix, found, links, seen)


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
    elif entry.name.lower() in (TABLE, *METADATA):
        found.tables.append(key)
    elif lower in SIDECARS:
        beside = found.sidecars.setdefault(stem, {})
        other = next((end for end in beside if end.lower() == lower), "")
        if other:
            found.ignored[f"second {lower} of an image"] += 1
        if extension > other:  # of .txt and .TXT the first
            beside.pop(other, None)
            beside[extension] = state_of(entry.stat())
    elif lower in OTHER_IMAGES:
        found.problems.append((key, f"images of type {lower} are not read"))
    else:
        found.ignored[lower or "without extension"] += 1
