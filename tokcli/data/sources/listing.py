"""What sources share before any image is decoded: names of files and of splits, tables, one id."""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from tokcli.data.decode import FORMATS
from tokcli.errors import TokError

IMAGE_EXTENSIONS = tuple(
    ".png .jpg .jpeg .jpe .jfif .webp .bmp .tif .tiff .gif".split() + ([".avif"] if "AVIF" in FORMATS else [])
)
OTHER_IMAGES = tuple(  # by name; nothing here reads them
    ".avif .heic .heif .jp2 .j2k .jxl .psd .svg .ico .ppm .pgm .pnm .dds .tga .exr .hdr .mpo .raw .dng .cr2 .nef .arw".split()
)


def data_id(kind: str, version: str, keys: Iterable[str], labels: np.ndarray, contents: bytes, *more: str) -> str:
    """`data-` and 12 digits: the same data has the same id wherever it lies.

    Args:
        kind, version: of the source, and of how its id is made.
        contents: a digest of all images; see `contents.py`.
        more: other texts that say what the data is.
    """
    digest = hashlib.blake2b(digest_size=6)
    for part in (kind, version, *more):
        digest.update(part.encode("utf-8", "surrogatepass") + b"\x00")
    for key in keys:
        digest.update(key.encode("utf-8", "surrogateescape") + b"\n")
    digest.update(np.ascontiguousarray(labels, dtype="<i4").tobytes())
    digest.update(contents)
    return f"data-{digest.hexdigest()}"


def is_url(spec: str) -> bool:
    """Whether a spec begins like `https:`, `s3:` or `pipe:` and is no file here."""
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.\-]+:", spec)) and not Path(spec).exists()


def embedded_split(spec: str) -> str:
    """The split of an embedded set: `openmoji/val` -> `val`.

    Raises:
        TokError: neither `train` nor `val`.
    """
    name, _, split = spec.rstrip("/").partition("/")
    if split not in ("train", "val"):
        raise TokError(f"--data {spec}", "names no split", next=f"Give {name}/train or {name}/val")
    return split


def refuse_labels(labels: Path | None, spec: str) -> None:
    """For sources that know their classes by themselves.

    Raises:
        TokError: there is a labels file.
    """
    if labels is not None:
        raise TokError("--labels", f"goes with a folder of images, not with {spec}", next="Leave it out")


def bad_name(key: str) -> str:
    """Why a file's name cannot be written, one a line, into keys.txt; empty when it can."""
    try:
        key.encode("utf-8")
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    return "its name holds a line break" if any(c in key for c in "\n\r") else ""


class Keys:
    """Finds images by names as others write them: with back slashes, ./ or the folder before, in another case, with decomposed accents."""

    def __init__(self, keys: Iterable[str], root: Path) -> None:
        self._keys, self._root = set(keys), str(root) + "/"
        self._folded: dict[str, str | None] = {}

    def find(self, name: str) -> str | None:
        """The key that a name means; None where there is none, or more than one."""
        if name in self._keys:
            return name
        if not self._folded and self._keys:
            for key in self._keys:
                fold = self._fold(key)
                self._folded[fold] = None if fold in self._folded else key
        return self._folded.get(self._fold(name))

    def _fold(self, name: str) -> str:
        plain = name.removeprefix(self._root).replace("\\", "/").removeprefix("./")
        return unicodedata.normalize("NFC", plain).casefold()


TABLE_BYTES, ROW_BYTES = 64 << 20, 64 << 10  # of a table of captions: at all, and for each image
MOST_FAULTS = 100_000  # rows of a table that cannot be used


def refuse_large(table: Path, images: int) -> None:
    """Stop at a table that is too long for so many images.

    Raises:
        TokError: so it is.
    """
    most = TABLE_BYTES + ROW_BYTES * images
    if table.is_file() and (size := table.stat().st_size) > most:
        raise TokError(
            str(table),
            f"is too large for {images:,} images",
            got=f"{size:,} bytes, more than {most:,}",
            next="Split it",
        )


def refuse_many(found: int, table: str, what: str = "images that are not there") -> None:
    """Stop at a table that is not of these images.

    Raises:
        TokError: it names too many others, or is otherwise not understood.
    """
    if found > MOST_FAULTS:
        raise TokError(table, f"names more than {MOST_FAULTS:,} {what}", next="Give the table of these images")


def lines(text: str) -> list[str]:
    """Lines as editors count them: str.splitlines would also break at form feeds, U+0085 and U+2028."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


NUMBERED = re.compile(r"(?P<split>.+)-\d+-of-(?P<all>\d+)")
ROLES = "image|label|caption"


def without_columns(spec: str) -> tuple[str, str]:
    """A spec and its columns: `photos/train:image=picture,label=kind` -> (`photos/train`, `image=picture,label=kind`)."""
    found = re.fullmatch(rf"(?s)(.+?):((?:{ROLES})=.*)", spec)
    return (found[1], found[2]) if found and not Path(spec).exists() else (spec, "")


def split_of(path: Path) -> str:
    """The split that a file's name says: `train-00000-of-00002.parquet` and `train.parquet` -> `train`; "" for none."""
    if numbered := NUMBERED.fullmatch(path.stem):
        return numbered["split"]
    first = re.split(r"[-._]", path.stem)[0]
    return first if split_named(first) else ""


NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}


_END = r"(?i:[ _-]?set)?(?:[ _-]?\d{4})?$"


def split_named(name: str) -> str | None:
    """Which of `train`, `val` and `test` a folder's name says; None for any other name."""
    stem = re.sub(_END, "", name.lower())
    return next((split for split, names in NAMES.items() if stem in names), None)


def other_names(name: str, split: str) -> list[str]:
    """What another split beside the split `name` may be called, the likeliest first; [] where `name` says no other split.

    Case and end are those of `name`, if there is one of that case: `Train` -> `Val`, `train2017` -> `val2017`, `training_set` -> `val_set`.
    """
    if split_named(name) in (None, split):
        return []
    end = re.search(_END, name)[0]  # type: ignore[index]  # it may be empty
    styled = [style(other) for other in NAMES[split] for style in (_like(name), str, str.capitalize)]
    return [other + end for other in dict.fromkeys(styled)]


def _like(name: str) -> Callable[[str], str]:
    return str.upper if name.isupper() else str.capitalize if name[:1].isupper() else str.lower
