"""Sample store: what `tok sample` writes, batch by batch, so that a killed command goes on where it was; and how it is read.

`images/000000.png` or `images-00000.tar` (webdataset: `000000.png`, `000000.cls`), and `indices-00000.npy` (images, tokens). A
batch is done when its indices lie in `.parts`; they are put together when all are.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from tokcli.data.decode import BadImage, Part, check_bytes, decode
from tokcli.data.npy import read_npy
from tokcli.data.reading import most_processes
from tokcli.data.shard_writer import shard_writer
from tokcli.data.sources.tar_index import index_tar
from tokcli.errors import TokError
from tokcli.files import atomic_write, disk_error

PARTS = ".parts"
FORMATS = ("png", "shards")


def image_path(folder: Path, number: int, form: str = "png") -> Path:
    """Where the PNG of that number lies: for good, or until it goes into a tar."""
    return folder / ("images" if form == "png" else PARTS) / f"{number:06d}.png"


def write_batch(
    folder: Path,
    batch: int,
    numbers: range,
    indices: Int64[Tensor, "b n"],
    images: UInt8[Tensor, "b ..."],
    form: str,
    finish: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Write a batch's images, in as many threads as processes read, then its indices, which say that it is whole.

    Args:
        finish: makes the picture, uint8 (3, h, w), of what `images` hold of each; large ones do not wait in memory.
            None: they hold the picture.

    Raises:
        TokError: the disk is full or cannot be written.
    """

    def write(number: int, image: Tensor) -> None:
        path = image_path(folder, number, form)
        try:
            path.parent.mkdir(exist_ok=True)
            picture = image if finish is None else finish(image)
            Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(path, compress_level=1)
        except OSError as error:
            raise disk_error(path, error) from error

    with ThreadPoolExecutor(max(1, most_processes())) as pool:  # Pillow compresses without holding Python's lock
        list(pool.map(write, numbers, images))
    (folder / PARTS).mkdir(exist_ok=True)
    with atomic_write(folder / PARTS / f"indices-{batch:06d}.npy") as tmp, open(tmp, "wb") as file:
        np.save(file, indices.numpy())


def present(folder: Path) -> set[int]:
    """The batches that are written."""
    return {int(p.stem.removeprefix("indices-")) for p in (folder / PARTS).glob("indices-*.npy")}


def check_images(folder: Path, number: int, form: str) -> None:
    """Look whether all images are there before they are put together.

    Raises:
        TokError: somebody has removed one.
    """
    for path in (image_path(folder, one, form) for one in range(number)):
        if not path.is_file():
            raise _spoilt(folder, path, "is missing")


def _spoilt(folder: Path, path: Path, what: str) -> TokError:
    return TokError(str(path), what, next=f"Delete {folder} and repeat the command: it draws the images again")


def merge(
    folder: Path,
    number: int,
    *,
    per_file: int,
    codebook_size: int,
    form: str,
    labels: Sequence[int],
    captions: Sequence[str],
    classes: Sequence[str] = (),
) -> list[str]:
    """Put all batches together; returns the names of the files that hold indices, and images in form `shards`.

    Args:
        number: of images.
        per_file: images of one file.
        labels: class of each image, -1 for none.
        captions: of each image, or none at all.
        classes: their names, which mean the same wherever they are read.

    Raises:
        TokError: the indices are not those of so many images.
    """
    parts = [folder / PARTS / f"indices-{batch:06d}.npy" for batch in sorted(present(folder))]
    held = [read_npy(part) for part in parts]
    if len({codes.shape[1:] for codes in held}) != 1 or sum(map(len, held)) != number:
        raise _spoilt(folder, folder / PARTS, f"does not hold the indices of {number} images")
    codes = np.concatenate(held)
    names = []
    for shard, first in enumerate(range(0, number, per_file)):
        numbers = range(first, min(first + per_file, number))
        names.append(f"indices-{shard:05d}.npy")
        with atomic_write(folder / names[-1]) as tmp, open(tmp, "wb") as file:
            np.save(file, codes[numbers].astype(np.uint16 if codebook_size <= 1 << 16 else np.uint32))
        if form == "shards":
            names.append(f"images-{shard:05d}.tar")
            with atomic_write(folder / names[-1]) as tmp:
                _write_tar(tmp, folder, numbers, labels, captions, classes)
    return names


def _write_tar(
    path: Path, folder: Path, numbers: range, labels: Sequence[int], captions: Sequence[str], classes: Sequence[str]
) -> None:
    with shard_writer(path, classes) as write:
        for number in numbers:
            sample = {"__key__": f"{number:06d}", "png": image_path(folder, number, "shards").read_bytes()}
            if classes and labels[number] >= 0:
                sample["cls"] = classes[labels[number]].encode()
            if captions:
                sample["txt"] = captions[number].encode()
            write(sample)


def clean(folder: Path) -> None:
    """Remove what only a command that is not done needs."""
    shutil.rmtree(folder / PARTS, ignore_errors=True)


def image_file(number: int, form: str, per_file: int) -> str:
    """The name of the file that holds the image of that number, within the folder of a finished store."""
    return f"images-{number // per_file:05d}.tar" if form == "shards" else f"images/{number:06d}.png"


def read(
    folder: Path, numbers: Iterable[int], *, form: str, per_file: int, digests: Mapping[str, str] | None = None
) -> UInt8[Tensor, "n 3 s s"]:
    """Images by their numbers.

    Args:
        form: `png` or `shards`.
        per_file: images in each tar.
        digests: SHA-256 of each PNG by its name; None: not compared.

    Raises:
        TokError: a file is missing, damaged or not the one that was written.
    """
    images: list[Tensor] = []
    members: dict[Path, Sequence[tuple[int, int]]] = {}  # of each tar: where its images lie
    for number in numbers:
        name = image_file(number, form, per_file)
        path = folder / name
        try:
            if form == "shards":
                if path not in members:
                    members[path] = index_tar(path).images
                data: bytes | Part = Part(path, *members[path][number % per_file])
            else:
                check_bytes(path.stat().st_size, path.name)
                data = path.read_bytes()
                if digests is not None and hashlib.sha256(data).hexdigest() != digests.get(name):
                    raise BadImage(path.name, "its SHA-256 is not the one that was written")
            images.append(decode(data, path.name))
            if images[-1].shape != images[0].shape:
                raise BadImage(path.name, f"of another size than those before: {tuple(images[-1].shape[1:])}")
        except (OSError, BadImage, IndexError) as error:
            got = error.why if isinstance(error, BadImage) else str(error)
            raise TokError(
                str(path), "is missing or damaged", why=got, next="Run tok verify to name all that is"
            ) from None
    return torch.stack(images)
