"""MS-COCO's layout: a folder of images and annotations/captions_*.json with several captions an image."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from tokcli.data.decode import decode
from tokcli.data.sources.caption_files import captions_of, faults_of, usable
from tokcli.data.sources.contents import State, digest_of, state_of
from tokcli.data.sources.folder import read_encoded
from tokcli.data.sources.listing import bad_name, data_id, refuse_labels
from tokcli.errors import TokError
from tokcli.files import from_home
from tokcli.limits import TooLarge, read_json
from tokcli.recipe import MAX_PIXELS

MOST_JSON, SOME, EACH = (
    750_000_000,
    100_000_000,
    10_000,
)  # bytes of memory for captions: at most, at least, for each image


def coco_split(path: Path) -> tuple[Path, Path] | None:
    """The image folder and captions file behind DIR/train2017, or DIR/train for short; None if not COCO's.

    Raises:
        TokError: DIR/train where there are captions of several years.
    """
    files = sorted(path.parent.glob("annotations/captions_*.json"))
    named = {file.stem.removeprefix("captions_"): file for file in files}
    fitting = [name for name in named if name == path.name or re.fullmatch(re.escape(path.name) + r"\d{4}", name)]
    if path.name in named:
        fitting = [path.name]
    if len(fitting) > 1:
        raise TokError(f"--data {path}", "there are captions of several years", got=", ".join(fitting), next="Name one")
    if not fitting:
        return None
    folders = [folder for folder in (path.parent / fitting[0], path) if folder.is_dir()]
    return (folders[0], named[fitting[0]]) if folders else None


def coco_splits(path: Path) -> list[str]:
    """The names of the splits inside a COCO folder, [] for any other folder."""
    names = [file.stem.removeprefix("captions_") for file in sorted(path.glob("annotations/captions_*.json"))]
    return [name for name in names if (path / name).is_dir()]


class Coco:
    """The images that a captions file lists, sorted by file name; there are no classes.

    Images listed but not there are `problems`; images there but not listed are left out.

    Raises:
        TokError: the JSON is broken, not of COCO's form, or none of its images is in the folder.
    """

    max_pixels = MAX_PIXELS

    def __init__(self, folder: Path, captions: Path) -> None:
        self.root = folder.resolve()
        self.name = str(self.root)
        self.classes: list[str] = []
        names, texts = _read(captions, min(MOST_JSON, SOME + EACH * sum(1 for _ in os.scandir(folder))))
        self.problems: list[tuple[str, str]] = []
        self.keys: list[str] = []
        self._captions: list[list[str]] = []
        states: list[State] = []
        for number, key in sorted(names.items(), key=lambda item: item[1]):
            why = bad_name(key) or ("leads out of the folder" if ".." in Path(key).parts or key[:1] == "/" else "")
            try:
                state = state_of((self.root / ("." if why else key)).stat())
                why = why or ("" if (self.root / key).is_file() else "not a file")
            except (OSError, ValueError):
                why = f"in {captions.name}, but no such image"
            if why:
                self.problems.append((key, why))
                continue
            self.keys.append(key)
            self.problems += [(key, fault) for fault in faults_of(texts.get(number, []))]
            self._captions.append(usable(texts.get(number, [])))
            states.append(state)
        if not self.keys:
            raise TokError(
                f"--data {folder}",
                f"holds none of the {len(names)} images in {captions}",
                next="Unpack the images there",
            )
        said = json.dumps(self._captions)
        images = digest_of([self.root / key for key in self.keys], states, self.name)
        self.id = data_id("coco", "2", self.keys, np.full(len(self.keys), -1), images, said)

    @classmethod
    def claims(cls, spec: str) -> bool:
        """DIR/train2017, or DIR/train for short, beside DIR/annotations; DIR itself is told to choose."""
        path = from_home(spec)
        return coco_split(path) is not None or bool(coco_splits(path))

    @classmethod
    def open(cls, spec: str, *, size: int, labels: Path | None = None) -> "Coco":
        """The split that a spec names; raises TokError where it names none, or with labels."""
        refuse_labels(labels, spec)
        path = from_home(spec)
        if found := coco_split(path):
            return cls(*found)
        ways = " or ".join(str(path / split) for split in coco_splits(path))
        raise TokError(f"--data {spec}", "holds splits", next=f"Give {ways}")

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, i: int) -> str:
        """Sample i's file name."""
        return self.keys[i]

    def label(self, i: int) -> int:
        """-1: there are no classes."""
        return -1

    def captions(self, i: int) -> list[str]:
        """The captions of sample i, [] for none."""
        return self._captions[i]

    def image(self, i: int) -> UInt8[Tensor, "3 h w"]:
        """RGB pixels of sample i; raises BadImage."""
        return decode(self.root / self.keys[i], self.keys[i], most=self.max_pixels)

    def encoded(self, i: int) -> tuple[str, bytes]:
        """The extension and the bytes of sample i; raises BadImage."""
        return read_encoded(self.root / self.keys[i], self.keys[i], self.max_pixels)


def _read(path: Path, most: int) -> tuple[dict[int, str], dict[int, list[str]]]:
    try:
        table: Any = read_json(path, most)
        names = {int(image["id"]): str(image["file_name"]) for image in table["images"]}
        texts: dict[int, list[str]] = {}
        for row in table["annotations"]:
            texts.setdefault(int(row["image_id"]), []).extend(captions_of(row) or [])
    except OSError as error:
        raise TokError(
            str(path), "cannot be read", why=error.strerror or str(error), next="Check its permissions"
        ) from None
    except TooLarge as error:
        raise TokError(str(path), str(error), next="Write the captions as captions.jsonl beside the images") from None
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise TokError(
            str(path),
            "not COCO's captions",
            why=f"{type(error).__name__}: {error}",
            next="Download the annotations again",
        ) from None
    return names, texts
