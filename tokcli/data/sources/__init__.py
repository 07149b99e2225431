"""Image sources behind `--data`: embedded sets, tars, Parquet, COCO's layout, idx files, folders.

A new kind of source is one file and one line in `SOURCES`: `open_source` asks each member whether a spec is its own.
"""

import os
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import UInt8
from torch import Tensor

from tokcli.data.decode import BadImage
from tokcli.data.object_stores import STORES
from tokcli.data.sources.coco import Coco
from tokcli.data.sources.folder import Folder
from tokcli.data.sources.idx import FashionMnist, Idx
from tokcli.data.sources.listing import is_url, other_names, split_of, without_columns
from tokcli.data.sources.openmoji import OpenMoji
from tokcli.data.sources.parquet import Parquet
from tokcli.data.sources.remote_tars import RemoteTars
from tokcli.data.sources.samples import Samples
from tokcli.data.sources.subset import evenly, limited, padded, padding_of
from tokcli.data.sources.summary import say_found
from tokcli.data.sources.tars import Tars
from tokcli.errors import Misuse, NotFound, TokError
from tokcli.files import from_home
from tokcli.recipe import MAX_PIXELS
from tokcli.registry import nearest

__all__ = [
    "SOURCES",
    "BadImage",
    "Encoded",
    "ImageSource",
    "Source",
    "evenly",
    "limited",
    "names_data",
    "open_source",
    "padded",
    "padding_of",
    "sibling",
]


@runtime_checkable
class ImageSource(Protocol):
    """Numbered images with key, class (-1: none) and captions; opening decodes nothing; it can be pickled."""

    name: str  # how to name it again: "openmoji/train", "/data/photos", "/data/a-{000..009}.tar"
    id: str  # "data-" and 12 digits, equal for equal data wherever it lies
    classes: list[str]  # [] where unlabelled
    problems: list[tuple[str, str]]  # (key, why) of samples that were found missing or damaged while listing
    max_pixels: int  # of an image; larger ones are not decoded

    def __len__(self) -> int: ...

    def key(self, i: int) -> str:
        """The name of sample i, one line of text."""

    def label(self, i: int) -> int:
        """The class of sample i, -1 for none."""

    def captions(self, i: int) -> list[str]:
        """The captions of sample i, [] for none."""

    def image(self, i: int) -> UInt8[Tensor, "3 h w"]:
        """RGB pixels of sample i; raises BadImage."""


@runtime_checkable
class Encoded(Protocol):
    """An image source that has its images as files: what packs them need not encode them again."""

    def encoded(self, i: int) -> tuple[str, bytes]:
        """The extension, such as "jpg" ("" where nobody says it), and the bytes of sample i; raises BadImage."""


class Source(ImageSource, Protocol):
    """An image source that `--data` can name."""

    @classmethod
    def claims(cls, spec: str) -> bool:
        """Whether a spec is of this kind; it looks at names and opens no image."""

    @classmethod
    def open(cls, spec: str, *, size: int, labels: Path | None = None) -> ImageSource:
        """The images of a spec that this kind claims.

        Args:
            spec: what `--data` says.
            size: in pixels; what vector images are rendered for.
            labels: the file that `--labels` names; a kind that does not read one refuses it.

        Raises:
            TokError: no images, several splits to choose from, or labels that are not read.
        """


# Asked in this order. A folder of images is what any folder is that no other kind claims: it is asked last.
SOURCES: dict[str, type[Source]] = {
    "openmoji": OpenMoji,
    "fashion-mnist": FashionMnist,
    "samples": Samples,
    "tar": Tars,
    "url": RemoteTars,
    "parquet": Parquet,
    "coco": Coco,
    "idx": Idx,
    "folder": Folder,
}
EMBEDDED = ("openmoji", "fashion-mnist")


def open_source(spec: str, *, size: int, labels: Path | None = None, max_pixels: int = MAX_PIXELS) -> ImageSource:
    """The images that `--data spec` names; an embedded set goes before a folder (write ./openmoji).

    What was found is said in one line on stderr.

    Args:
        spec: NAME/SPLIT, DIR, DIR/SPLIT of COCO's layout or of idx files, tars with braces, or Parquet with its columns (DIR:image=a,label=b).
        size: in pixels; what vector images are rendered for.
        labels: a file of lines `relative/path<TAB>class`, for a folder.
        max_pixels: of an image; larger ones are bad, see `decode`.

    Raises:
        NotFound: nothing there.
        TokError: no images in it, several splits to choose from, or a URL.
    """
    if not spec.strip():
        raise Misuse("--data", "is empty", next="Name a data set; . is the folder that you are in")
    kind = _kind(spec)
    if kind is not None:
        source = kind.open(spec, size=size, labels=labels)
        source.max_pixels = max_pixels
        say_found(source)
        return source
    where = f"--data {spec}"
    bare, columns = without_columns(spec)
    if columns and _kind(bare) is not None:
        raise TokError(f"--columns {columns}", f"goes with Parquet, not with {bare}", next="Leave it out")
    if is_url(spec):
        kinds = f"{', '.join(STORES)} and https addresses"
        raise TokError(where, f"only tars at {kinds} are read, and no pipes", next="Download the data first")
    known = nearest(spec.partition("/")[0], EMBEDDED)
    hint = (
        known
        if known.startswith("Did")
        else f"Choose a folder, or one of {', '.join(f'{name}/train' for name in EMBEDDED)}"
    )
    if not from_home(spec).exists():
        raise NotFound(where, "no such folder", next=hint)
    raise TokError(where, "not a folder or a tar", next=hint)


def names_data(spec: str) -> bool:
    """Whether `open_source` knows what a spec is: an embedded set, an address that is read, or something that is there."""
    return _found(spec) is not None


def _found(spec: str) -> type[Source] | None:
    """The kind of source that a recorded or guessed spec is of; None also where it lies out of sight, in somebody's closed folder."""
    try:
        return _kind(spec)
    except OSError:
        if os.path.lexists(from_home(without_columns(spec)[0])):
            raise
        return None


def _kind(spec: str) -> type[Source] | None:
    """The kind of source that a spec is of; None where no kind claims it."""
    asked = sorted(SOURCES.values(), key=lambda kind: kind is Folder)
    return next((kind for kind in asked if kind.claims(spec)), None)


def sibling(spec: str, split: str) -> str | None:
    """The same data's other split ("openmoji/train", "val" -> "openmoji/val"), if there is one."""
    bare, columns = without_columns(spec)
    folder, _, name = bare.rstrip("/").rpartition("/")
    # the split of a folder such as train-set, then that of files such as train-00000-of-00002.parquet
    names = [name, split_of(Path(name))]
    others = [f"{folder}/{other}" for one in names for other in other_names(one, split)] if folder else []
    found = next((other for other in others if _found(other) is not None), None)
    return f"{found}:{columns}" if found and columns else found
