"""Images in a folder: flat or in class sub-folders, with an optional labels file and captions beside them."""

import os
import posixpath
from collections import Counter
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from tokcli.data.decode import BadImage, check_bytes, decode
from tokcli.data.sources.caption_files import (
    METADATA,
    TABLE,
    captions_beside,
    faults_beside,
    faults_of,
    read_captions,
    read_metadata,
    usable,
)
from tokcli.data.sources.classes import class_name, class_numbers, ranks, read_labels, refuse_two_classes
from tokcli.data.sources.contents import CHUNK, digest_of, file_digests
from tokcli.data.sources.listing import (
    IMAGE_EXTENSIONS,
    Keys,
    bad_name,
    data_id,
    refuse_large,
    refuse_many,
    split_named,
)
from tokcli.data.sources.summary import counted
from tokcli.data.sources.walk import DEPTH, SIDECARS, Found, walk
from tokcli.errors import TokError
from tokcli.files import from_home
from tokcli.recipe import MAX_PIXELS
from tokcli.terminal import printable


class Folder:
    """Images up to three folders deep, in sorted order; keys are paths relative to the folder.

    The class of an image is the rank of its first sub-folder among the sorted ones that hold images, or what the labels file
    says (images that it leaves out are then left out), or the label in Hugging Face's `metadata.jsonl`. Captions come from
    `captions.jsonl` (or of `metadata.jsonl` where there is none), and of images that these do not list from `x.txt` (one a line) and
    `x.json` beside `x.jpg`. Tables may lie in any folder, for what lies in and below it. No folder is read twice, however it is linked.
    Names starting with a dot are passed over. `problems` name images of other types and deeper ones, labels that are not
    understood, captions that cannot be used and those of images that are not there; `ignored` counts other files by kind.

    Raises:
        TokError: no images; or splits (`train`, `val`, ...) inside, of which one has to be chosen.
    """

    max_pixels = MAX_PIXELS

    def __init__(self, path: Path, *, labels: Path | None = None) -> None:
        self.root = path.resolve()
        self.name = str(self.root)
        where = f"--data {path}"
        found = walk(self.root)
        self.ignored = Counter(found.ignored)
        self.problems = list(found.problems)
        _refuse_splits(where, self.root, found)
        keys = self._named(found, where)
        pictures = {os.path.splitext(key)[0] for key in keys}
        if loose := sum(stem not in pictures for stem in found.sidecars):
            self.ignored["text without image"] += loose
        self._captions: dict[str, list[str]] = {}  # of tables
        names: list[str | None] = [key.split("/")[0] if "/" in key else None for key in keys]
        said = self._tables(keys, names, found.tables)
        if labels is not None:
            keys, names = self._listed(keys, labels)
        numbered = labels is not None or said
        self.labels, self.classes = (
            class_numbers(names, f"--labels {labels}" if labels else where) if numbered else ranks(names)
        )
        self.keys = keys
        self.id = self._identity(found)

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def claims(cls, spec: str) -> bool:
        """Any folder; so it is asked last."""
        return from_home(spec).is_dir()

    @classmethod
    def open(cls, spec: str, *, size: int, labels: Path | None = None) -> "Folder":
        """The images in a folder; raises TokError where there are none, or only splits."""
        return cls(from_home(spec), labels=labels)

    def key(self, i: int) -> str:
        """Sample i's path relative to the folder."""
        return self.keys[i]

    def label(self, i: int) -> int:
        """The class of sample i, -1 for none."""
        return int(self.labels[i])

    def captions(self, i: int) -> list[str]:
        """The captions of sample i, [] for none."""
        if self.keys[i] in self._captions:
            return self._captions[self.keys[i]]
        stem, parts = os.path.splitext(self.keys[i])[0], self._sidecars.get(self.keys[i], ())
        data = {end.lower(): _start(self.root / (stem + end)) for end in parts}
        return usable(captions_beside(*(data.get(end, b"") for end in SIDECARS)))

    def image(self, i: int) -> UInt8[Tensor, "3 h w"]:
        """RGB pixels of sample i; raises BadImage."""
        return decode(self.root / self.keys[i], self.keys[i], most=self.max_pixels)

    def encoded(self, i: int) -> tuple[str, bytes]:
        """The extension and the bytes of sample i; raises BadImage."""
        return read_encoded(self.root / self.keys[i], self.keys[i], self.max_pixels)

    def _named(self, found: Found, where: str) -> list[str]:
        """The keys of all images whose names can be written down."""
        self.problems += [(key, why) for key in sorted(found.images) if (why := bad_name(key))]
        keys = sorted(key for key in found.images if not bad_name(key))
        if not keys:
            looked = f"looked for {' '.join(IMAGE_EXTENSIONS)}, {DEPTH} folders deep"
            got = [
                f"{len(self.problems)} that are not read, the first: {key}: {why}" for key, why in self.problems[:1]
            ] + [f"other files: {counted(self.ignored)}"] * bool(self.ignored)
            raise TokError(
                where,
                f"no images found ({looked})",
                got=", ".join(got),
                next="Give the folder in which the tars lie"
                if ".tar" in self.ignored
                else "Give the folder that holds the images",
            )
        return keys

    def _tables(self, keys: list[str], names: list[str | None], tables: list[str]) -> bool:
        """Read the captions of tables, and the labels into `names`; returns whether a table says labels.

        A table speaks of the images in and below its own folder, and more closely than one above.
        """
        found = Keys(keys, self.root)
        labelled: dict[str, str | None] = {}
        said: dict[str, dict[str, list[str]]] = {TABLE: {}, METADATA[0]: {}}
        read: set[str] = set()
        for name in sorted(tables, key=lambda name: (name.count("/"), *_order(name))):
            folder, _, file = name.rpartition("/")
            kind = TABLE if file.lower() == TABLE else METADATA[0]
            if f"{folder}/{kind}" in read:
                self.ignored[f"{file} beside {kind}"] += 1
                continue
            read.add(f"{folder}/{kind}")
            captions: dict[str, list[str]] = {}
            classes: dict[str, str | None] = {}
            absent = 0
            refuse_large(self.root / name, len(keys))
            for row in (read_captions if kind == TABLE else read_metadata)(self.root / name):
                path = posixpath.normpath(f"{folder}/" + row.image.replace("\\", "/")) if folder else row.image
                key = found.find(path)
                if key is None:
                    absent += 1
                    refuse_many(absent, str(self.root / name))
                    self.problems.append((printable(path)[:200], f"in {name}, but no such image"))
                    continue
                captions.setdefault(key, []).extend(row.captions)
                if row.label is not ...:
                    label = self._class(key, row.label)
                    if classes.setdefault(key, label) != label:
                        refuse_two_classes(str(self.root / name), key, classes[key], label, "rows")
            said[kind].update(captions)
            labelled.update(classes)
        if labelled:  # folders then are no classes: their names among the labels would be others
            names[:] = [labelled.get(key) for key in keys]
        if said[TABLE] or any(said[METADATA[0]].values()):
            self._captions = said[TABLE] or said[METADATA[0]]
        for key, texts in self._captions.items():
            self.problems += [(key, fault) for fault in faults_of(texts)]
            texts[:] = usable(texts)
        return bool(labelled)

    def _class(self, key: str, label: object) -> str | None:
        try:
            return class_name(label)
        except ValueError as error:
            self.problems.append((key, str(error)))
            return None

    def _listed(self, keys: list[str], labels: Path) -> tuple[list[str], list[str | None]]:
        said = read_labels(labels, f"--labels {labels}", Keys(keys, self.root).find)
        if not said.classes:
            raise TokError(
                f"--labels {labels}",
                f"names none of the images in {self.root}",
                got=f"{said.first}, where {keys[0]} lies there",
                next="Write paths as they are below that folder",
            )
        self.problems += said.faults
        self.problems += [(name, f"in {labels.name}, but no such image") for name in sorted({*said.absent})]
        listed = [key for key in keys if key in said.classes]
        return listed, [said.classes[key] for key in listed]

    def _identity(self, found: Found) -> str:
        """The id, by contents; sidecars of images that no table speaks of are looked through on the way."""
        beside = [(key, os.path.splitext(key)[0]) for key in self.keys if key not in self._captions]
        self._sidecars = {key: tuple(found.sidecars[stem]) for key, stem in beside if stem in found.sidecars}
        images = digest_of(
            [f"{self.root}/{key}" for key in self.keys], [found.images[key] for key in self.keys], self.name
        )
        said = repr([self._captions.get(key, []) for key in self.keys]) if self._captions else ""
        texts = [
            (key, stem + end, state) for key, stem in beside for end, state in found.sidecars.get(stem, {}).items()
        ]

        self.problems += [
            (k, f"{name}: only its first {CHUNK:,} bytes are read") for k, name, s in texts if s[0] > CHUNK
        ]

        def looked_through(number: int, data: bytes) -> bool:
            name = texts[number][1].lower()
            faults = faults_beside(*(data if name.endswith(end) else b"" for end in SIDECARS))
            self.problems.extend((texts[number][0], fault) for fault in faults)
            return not faults

        states = np.array([state for _, _, state in texts], np.int64).reshape(-1, 5)
        written = file_digests(
            [f"{self.root}/{name}" for _, name, _ in texts], states, f"{self.name} texts 2", remember=looked_through
        )
        which = "\n".join(name for _, name, _ in texts)
        more = [part for part in (said, which) if part or not said]
        return data_id("folder", "2", self.keys, self.labels, images + written.astype("<i8").tobytes(), *more)


def _order(name: str) -> tuple[int, str]:
    """Where a table comes among those of its folder: of metadata.jsonl and metadata.csv the first is read."""
    file = name.rpartition("/")[2].lower()
    return METADATA.index(file) if file in METADATA else -1, name


def _start(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(CHUNK)


def read_encoded(path: Path, key: str, most: int) -> tuple[str, bytes]:
    """A file's extension in lower case, and its bytes; raises BadImage, also where they are too many for `most` pixels."""
    try:
        check_bytes(path.stat().st_size, key, most)
        return path.suffix[1:].lower(), path.read_bytes()
    except OSError as error:
        raise BadImage(key, error.strerror or "cannot be read") from None


def _refuse_splits(where: str, root: Path, found: Found) -> None:
    """Splits side by side are no classes, nor is a split alone: train is one of the words that everybody uses."""
    folders = {folder for key in (*found.images, *found.deep) for folder in _parents(key)}
    beside: dict[str, list[str]] = {}
    for folder in sorted(folders):
        beside.setdefault(folder.rpartition("/")[0], []).append(folder)
    for parent, children in beside.items():
        splits = [child for child in children if split_named(child.rpartition("/")[2])]
        kinds = {split_named(child.rpartition("/")[2]) for child in splits}
        if len(kinds) > 1 or (kinds and not parent and len(splits) == len(children)):
            there = " or ".join(str(root / child) for child in splits)
            raise TokError(where, "holds the splits of a data set", next=f"Give {there}")


def _parents(key: str) -> list[str]:
    parts = key.split("/")[:-1]
    return ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
