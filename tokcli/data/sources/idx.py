"""MNIST's idx files, and with them the embedded set `fashion-mnist` (Xiao et al. 2017, MIT licence)."""

import gzip
import hashlib
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from tokcli.data.sources.contents import digest_of, state_of
from tokcli.data.sources.listing import data_id, embedded_split, refuse_labels
from tokcli.errors import NotFound, TokError
from tokcli.files import cache_dir, from_home
from tokcli.recipe import MAX_PIXELS

FILES = {"train": "train", "val": "t10k"}
MOST_BYTES = 550 << 20  # that are held in memory: of a compressed file, and of labels
PACKAGED = Path("usr/share/datasets/fashion-mnist")  # inside the Debian package dataset-fashion-mnist

# Known by their labels, wherever the files lie: sha256 of the label bytes, shortened.
_FASHION = {"train": "657fbd221bfc9f41", "val": "3d0e6c6ea990b53b"}
_FASHION_CLASSES = tuple("t-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot".split(", "))


def idx_splits(folder: Path) -> list[str]:
    """Which of `train` and `val` (the files named t10k) lie in a folder as idx files."""
    return [split for split, stem in FILES.items() if _file(folder, f"{stem}-images-idx3-ubyte")]


def find_fashion() -> Path:
    """The folder of Fashion-MNIST's idx files: $TOK_CACHE/fashion-mnist, else the Debian package's.

    Raises:
        TokError: not found; it says how to fetch them without being root.
    """
    cached = cache_dir() / "fashion-mnist"
    for folder in (cached, cached / PACKAGED, "/" / PACKAGED):
        if idx_splits(folder):
            return folder
    raise NotFound(
        "--data fashion-mnist",
        f"its idx files are neither in {cached} nor in /{PACKAGED}",
        next='Fetch them, without root: (cd "$(mktemp -d)" && apt-get download dataset-fashion-mnist && '
        f"mkdir -p {shlex.quote(str(cached))} && dpkg-deb -x dataset-fashion-mnist_*.deb {shlex.quote(str(cached))})",
    )


class Idx:
    """Grey images (n, h, w) in one file, their classes in another, as MNIST's; `val` reads the t10k files.

    Raises:
        TokError: a file is missing, not idx, shorter than its header claims, or without images.
    """

    max_pixels = MAX_PIXELS

    def __init__(self, folder: Path, split: str, name: str = "") -> None:
        self.folder, self.split = folder.resolve(), split
        self.name = name or str(self.folder / split)
        self.problems: list[tuple[str, str]] = []
        self._images: np.ndarray | None = None
        self.labels = _read(self._path("labels-idx1"), 1).astype(np.int32)
        with _open(self._path("images-idx3")) as file:
            self._shape = _header(file, self._path("images-idx3"), 3)
        if self._shape[0] != len(self.labels):
            raise TokError(
                f"--data {self.name}",
                "images and labels differ in number",
                got=f"{self._shape[0]} and {len(self.labels)}",
                next="Give the two files of one split",
            )
        if 0 in self._shape:
            raise TokError(
                f"--data {self.name}", "holds no images", got=f"shape {self._shape}", next="Name another data set"
            )
        digest = hashlib.sha256(self.labels.astype(np.uint8).tobytes()).hexdigest()[:16]
        most = int(self.labels.max(initial=-1)) + 1
        self.classes = list(_FASHION_CLASSES) if digest in _FASHION.values() else [str(i) for i in range(most)]
        path = self._path("images-idx3")
        self.id = data_id("idx", "2", [split], self.labels, digest_of([path], [state_of(path.stat())], str(path)))

    @classmethod
    def claims(cls, spec: str) -> bool:
        """DIR/train and DIR/val where DIR holds idx files; DIR itself is told to choose."""
        path = from_home(spec)
        return path.name in idx_splits(path.parent) or bool(idx_splits(path))

    @classmethod
    def open(cls, spec: str, *, size: int, labels: Path | None = None) -> "Idx":
        """The split that a spec names; raises TokError where it names none, or with labels."""
        refuse_labels(labels, spec)
        path = from_home(spec)
        if path.name in idx_splits(path.parent):
            return cls(path.parent, path.name)
        ways = " or ".join(str(path / split) for split in idx_splits(path))
        raise TokError(f"--data {spec}", "holds splits", next=f"Give {ways}")

    def _path(self, part: str) -> Path:
        stem = f"{FILES[self.split]}-{part}-ubyte"
        path = _file(self.folder, stem)
        if path is None:
            raise TokError(
                f"--data {self.name}", f"no {stem}[.gz] in {self.folder}", next="Download the missing file there"
            )
        return path

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_images": None}  # 47 MB that another process reads again in a third of a second

    def __len__(self) -> int:
        return self._shape[0]

    def key(self, i: int) -> str:
        """Split and number of sample i."""
        return f"{self.split}-{i:05d}"

    def label(self, i: int) -> int:
        """The class of sample i, -1 for none."""
        return int(self.labels[i])

    def captions(self, i: int) -> list[str]:
        """None: there are no captions."""
        return []

    def image(self, i: int) -> UInt8[Tensor, "3 h w"]:
        """The grey image i as RGB."""
        if self._images is None:
            self._images = _read(self._path("images-idx3"), 3)
        return torch.from_numpy(self._images[i].copy()).expand(3, -1, -1)


class FashionMnist(Idx):
    """The embedded set `fashion-mnist`: idx files that are found by themselves."""

    @classmethod
    def claims(cls, spec: str) -> bool:
        """`fashion-mnist/train`, `fashion-mnist/val`; `fashion-mnist` alone is told to choose."""
        return spec.partition("/")[0] == "fashion-mnist"

    @classmethod
    def open(cls, spec: str, *, size: int, labels: Path | None = None) -> "Idx":
        """The split that a spec names; raises TokError where it names none, where there are no files, or with labels."""
        refuse_labels(labels, spec)
        split = embedded_split(spec)
        return cls(find_fashion(), split, name=spec.rstrip("/"))


def _file(folder: Path, stem: str) -> Path | None:
    return next((path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()), None)


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def _header(file: Any, path: Path, dims: int) -> tuple[int, ...]:
    try:
        head = file.read(4 + 4 * dims)
    except (OSError, EOFError) as error:
        raise TokError(str(path), "cannot be read", why=str(error), next="Copy or download it again") from None
    shape = tuple(int(x) for x in np.frombuffer(head[4:], dtype=">u4")) if len(head) == 4 + 4 * dims else ()
    if head[:4] != bytes([0, 0, 8, dims]) or len(shape) != dims:  # 8: unsigned bytes
        raise TokError(str(path), f"not an idx file of bytes in {dims} dimensions", next="Copy or download it again")
    if np.prod(shape, dtype=object) > MOST_BYTES:
        raise TokError(
            str(path),
            f"its header claims more than {MOST_BYTES >> 20} MiB",
            got=f"shape {shape}",
            next="Make folders of images of it",
        )
    return shape


def _read(path: Path, dims: int) -> np.ndarray:
    with _open(path) as file:
        shape = _header(file, path, dims)
        try:
            data = file.read(int(np.prod(shape)))
        except (OSError, EOFError) as error:
            raise TokError(str(path), "cannot be read", why=str(error), next="Copy or download it again") from None
    if len(data) != int(np.prod(shape)):
        raise TokError(
            str(path),
            f"its header claims {int(np.prod(shape)):,} bytes",
            got=f"{len(data):,}",
            next="Copy or download it again",
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)
