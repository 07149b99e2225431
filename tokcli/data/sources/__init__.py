"""Image sources behind `--data`: embedded sets, folders, COCO's layout, idx files, webdataset tars."""

import re
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import UInt8
from torch import Tensor

from tokcli.data.decode import BadImage
from tokcli.data.sources.coco import Coco, coco_split, coco_splits
from tokcli.data.sources.folder import Folder
from tokcli.data.sources.idx import FILES, Idx, find_fashion, idx_splits
from tokcli.data.sources.openmoji import OpenMoji
from tokcli.data.sources.subset import evenly, limited
from tokcli.data.sources.tars import Tars
from tokcli.errors import NotFound, TokError
from tokcli.registry import nearest

__all__ = ["SOURCES", "BadImage", "ImageSource", "evenly", "limited", "open_source", "sibling"]


@runtime_checkable
class ImageSource(Protocol):
    """Numbered images with key, class (-1: none) and captions; opening decodes nothing; it can be pickled."""

    name: str  # how to name it again: "openmoji/train", "/data/photos", "/data/a-{000..009}.tar"
    id: str  # "data-" and 12 digits, equal for equal data wherever it lies
    classes: list[str]  # [] where unlabelled
    problems: list[tuple[str, str]]  # (key, why) of samples that were found missing or damaged while listing

    def __len__(self) -> int: ...

    def key(self, i: int) -> str:
        """The name of sample i, one line of text."""

    def label(self, i: int) -> int:
        """The class of sample i, -1 for none."""

    def captions(self, i: int) -> list[str]:
        """The captions of sample i, [] for none."""

    def image(self, i: int) -> UInt8[Tensor, "3 h w"]:
        """RGB pixels of sample i; raises BadImage."""


SOURCES: dict[str, type[ImageSource]] = {
    "openmoji": OpenMoji,
    "fashion-mnist": Idx,
    "folder": Folder,
    "coco": Coco,
    "idx": Idx,
    "tar": Tars,
}
EMBEDDED = ("openmoji", "fashion-mnist")
SPLITS = ("train", "val")


def open_source(spec: str, *, size: int, labels: Path | None = None) -> ImageSource:
    """The images that `--data spec` names; an embedded set goes before a folder (write ./openmoji).

    Args:
        spec: NAME/SPLIT, DIR, DIR/SPLIT of COCO's layout or of idx files, or tars with braces.
        size: in pixels; what vector images are rendered for.
        labels: a file of lines `relative/path<TAB>class`, for a folder.

    Raises:
        NotFound: nothing there.
        TokError: no images in it, several splits to choose from, or a URL.
    """
    where = f"--data {spec}"
    source = _open(spec, where, size, labels)
    if labels is not None and not isinstance(source, Folder):
        raise TokError("--labels", f"goes with a folder of images, not with {spec}")
    return source


def _open(spec: str, where: str, size: int, labels: Path | None) -> ImageSource:
    name, _, split = spec.rstrip("/").partition("/")
    if name in EMBEDDED:
        if split not in SPLITS:
            raise TokError(where, f"Give {name}/train or {name}/val")
        return OpenMoji(split, size=size) if name == "openmoji" else Idx(find_fashion(), split, name=spec.rstrip("/"))
    if re.match(r"[A-Za-z][A-Za-z0-9+.\-]+:", spec) and not Path(spec).exists():
        raise TokError(where, "only local files are read: no URLs, no pipes", next="Download the data first")
    if (spec.endswith((".tar", ".tgz", ".tar.gz")) or "{" in spec) and not Path(spec).is_dir():
        return Tars(spec)
    path = Path(spec).expanduser()
    if found := coco_split(path):
        return Coco(*found)
    if path.name in FILES and path.name in idx_splits(path.parent):
        return Idx(path.parent, path.name)
    if not path.is_dir():
        known = nearest(name, EMBEDDED)
        hint = known if known.startswith("Did") else f"Embedded: {', '.join(f'{n}/train' for n in EMBEDDED)}"
        if not path.exists():
            raise NotFound(where, "no such folder", next=hint)
        raise TokError(where, "not a folder or a tar", next=hint)
    if splits := coco_splits(path) or idx_splits(path):
        raise TokError(where, "holds splits", next=f"Give {' or '.join(str(path / one) for one in splits)}")
    return Folder(path, labels=labels)


def sibling(spec: str, split: str) -> str | None:
    """The same data's other split ("openmoji/train", "val" -> "openmoji/val"), if there is one."""
    name, _, own = spec.rstrip("/").partition("/")
    if name in EMBEDDED:
        return f"{name}/{split}" if own in SPLITS and own != split else None
    path = Path(spec)
    current = next((one for one in SPLITS if re.fullmatch(one + r"(\d{4})?", path.name)), None)
    if current is None or current == split:
        return None
    other = path.parent / path.name.replace(current, split, 1)
    there = other.is_dir() or coco_split(other) or (path.name in FILES and split in idx_splits(path.parent))
    return str(other) if there else None
