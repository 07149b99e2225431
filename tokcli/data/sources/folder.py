"""Images in a folder: flat or in class sub-folders, with an optional labels file and captions beside them."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from tokcli.data.decode import BadImage, decode
from tokcli.data.sources.listing import (
    IMAGE_EXTENSIONS,
    bad_name,
    caption_lines,
    class_numbers,
    data_id,
    read_captions,
    read_labels,
)
from tokcli.errors import TokError

DEPTH = 3
SPLIT_NAMES = {"train", "val", "valid", "validation", "test"}


class Folder:
    """Images up to three folders deep, in sorted order; keys are paths relative to the folder.

    The class of an image is the rank of its first sub-folder among the sorted ones that hold images, or what
    the labels file says (images that it leaves out are then left out). Captions come from `captions.jsonl` in
    the folder, else from `x.txt` beside `x.jpg`, one a line. Names starting with a dot are passed over.

    Raises:
        TokError: no images; or nothing but splits (`train`, `val`, ...) inside, of which one has to be chosen.
    """

    def __init__(self, path: Path, *, labels: Path | None = None) -> None:
        self.root = path.resolve()
        self.name = str(self.root)
        where = f"--data {path}"
        self._refuse_splits(where)
        sizes, texts, lost = self._scan()
        self.problems = lost + [(key, why) for key in sizes if (why := bad_name(key))]
        keys = sorted(key for key in sizes if not bad_name(key))
        if not keys:
            extensions = " ".join(IMAGE_EXTENSIONS)
            raise TokError(where, f"no images found (looked for {extensions}, {DEPTH} folders deep)")
        if labels is None:
            names = [key.split("/")[0] if "/" in key else None for key in keys]
        else:
            keys, names = self._listed(keys, labels)
        self.labels, self.classes = class_numbers(names, f"--labels {labels}") if labels else _ranks(names)
        self.keys = keys
        self._sidecars = {key for key in keys if os.path.splitext(key)[0] in texts}
        table = self.root / "captions.jsonl"
        self._captions = read_captions(table) if table.is_file() else None
        said = [hashlib.sha256(table.read_bytes()).hexdigest()] if self._captions is not None else []
        written = (texts.get(os.path.splitext(key)[0], 0) for key in keys)
        self.id = data_id("folder", "1", keys, self.labels, [*(sizes[k] for k in keys), *written], *said)

    @classmethod
    def claims(cls, spec: str) -> bool:
        """Any folder; so it is asked last."""
        return Path(spec).expanduser().is_dir()

    @classmethod
    def open(cls, spec: str, *, size: int, labels: Path | None = None) -> "Folder":
        """The images in a folder; raises TokError where there are none, or only splits."""
        return cls(Path(spec).expanduser(), labels=labels)

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, i: int) -> str:
        """Sample i's path relative to the folder."""
        return self.keys[i]

    def label(self, i: int) -> int:
        """The class of sample i, -1 for none."""
        return int(self.labels[i])

    def captions(self, i: int) -> list[str]:
        """The captions of sample i, [] for none."""
        if self._captions is not None:
            return self._captions.get(self.keys[i], [])
        if self.keys[i] not in self._sidecars:
            return []
        sidecar = (self.root / self.keys[i]).with_suffix(".txt")
        return caption_lines(sidecar.read_text(encoding="utf-8", errors="replace"))

    def image(self, i: int) -> UInt8[Tensor, "3 h w"]:
        """RGB pixels of sample i; raises BadImage."""
        return read_image(self.root / self.keys[i], self.keys[i])

    def _refuse_splits(self, where: str) -> None:
        children = {entry.name for entry in self.root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
        if "train" in children <= SPLIT_NAMES:  # else each split would be a class
            there = " or ".join(str(self.root / name) for name in sorted(children))
            raise TokError(where, "holds the splits of a data set", next=f"Give {there}")

    def _scan(self) -> tuple[dict[str, int], dict[str, int], list[tuple[str, str]]]:
        """Bytes of each image, and of each .txt under its path without the extension; what is named an image and is none."""
        sizes: dict[str, int] = {}
        texts: dict[str, int] = {}
        lost: list[tuple[str, str]] = []
        for key, size in _walk(self.root, "", DEPTH):
            stem, extension = os.path.splitext(key)
            if extension.lower() in IMAGE_EXTENSIONS and size is None:
                lost.append((key, "a link to nothing, or a device"))
            elif extension.lower() in IMAGE_EXTENSIONS and size is not None:
                sizes[key] = size
            elif extension == ".txt" and size is not None:
                texts[stem] = size
        return sizes, texts, sorted(lost)

    def _listed(self, keys: list[str], labels: Path) -> tuple[list[str], list[str | None]]:
        table = read_labels(labels, f"--labels {labels}")
        listed = [key for key in keys if key in table]
        if not listed:
            first = next(iter(table), "nothing")
            raise TokError(
                f"--labels {labels}",
                f"names none of the images in {self.root}",
                got=f"{first}, where {keys[0]} lies there",
            )
        missing = sorted(set(table) - set(listed))
        self.problems += [(key, f"in {labels.name}, but no such image") for key in missing]
        return listed, [table[key] for key in listed]


def read_image(path: Path, key: str) -> UInt8[Tensor, "3 h w"]:
    """Decode a file.

    Raises:
        BadImage: missing, empty or not an image.
    """
    try:
        if path.stat().st_size == 0:
            raise BadImage(key, "empty file")
    except OSError as error:
        raise BadImage(key, error.strerror or "cannot be read") from None
    return decode(path, key)


def _ranks(names: list[str | None]) -> tuple[np.ndarray, list[str]]:
    # Not class_numbers: folders 0, 1, 10, 2 are ranked as names too, like every other loader does.
    classes = sorted({name for name in names if name is not None})
    numbers = {name: i for i, name in enumerate(classes)}
    return np.array([-1 if name is None else numbers[name] for name in names], dtype=np.int32), classes


def _walk(folder: Path | str, prefix: str, depth: int) -> Iterator[tuple[str, int | None]]:
    # Links are followed (class folders often are links); the depth bounds a circle of them.
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_file():
                yield prefix + entry.name, entry.stat().st_size
            elif not entry.is_dir():
                yield prefix + entry.name, None
            elif depth:
                yield from _walk(entry.path, f"{prefix}{entry.name}/", depth - 1)
