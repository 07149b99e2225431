"""Published reference statistics: `.npz` files of pytorch-fid's form (mu, sigma) and of ADM's (also mu_s, sigma_s, arr_0)."""

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from tokcli.errors import TokError
from tokcli.limits import check_zip
from tokcli.metrics.fid import Gaussian
from tokcli.pretrained.inception import POOLED, SPATIAL

AT_ONCE, BATCH_BYTES = 64, 64 << 20  # images, and bytes of them, that are read together
MOST_NUMBERS = max(POOLED, SPATIAL) ** 2  # of an array
MOST_SIDE = 2048  # pixels: the square of it is what an image may have
IMAGES = "arr_0"


def read_npz(path: Path, where: str) -> tuple[Gaussian, Gaussian | None, int | None]:
    """Statistics of Inception's pooled and, in ADM's files, spatial features, and how many images stand beside them.

    They are of a number of images that no file tells: ADM's are of the whole data set, the images beside them 10,000 of it.

    Raises:
        TokError: not a whole `.npz`, without mu and sigma, or of other features.
    """
    try:
        check_zip(path)
        with zipfile.ZipFile(path) as archive:
            held = {name.removesuffix(".npy") for name in archive.namelist()}
            arrays = {key: _array(archive, key) for key in ("mu", "sigma", "mu_s", "sigma_s") if key in held}
            images = _header(archive)[0][0] if IMAGES in held else None
    except Exception as error:  # a damaged zip fails in as many ways as it has fields
        why = (str(error) or "empty").splitlines()[0]
        raise TokError(where, "is not a whole .npz file", why=why, next="Download or write it again") from None
    if not {"mu", "sigma"} <= arrays.keys():
        raise TokError(
            where,
            "holds no statistics: mu and sigma",
            got=", ".join(arrays) or "neither",
            next="Run python -m pytorch_fid --save-stats IMAGES STATISTICS.npz to make them",
        )
    pooled = _gaussian(arrays["mu"], arrays["sigma"], POOLED, where)
    if not {"mu_s", "sigma_s"} <= arrays.keys():
        return pooled, None, images
    return pooled, _gaussian(arrays["mu_s"], arrays["sigma_s"], SPATIAL, where), images


def _gaussian(mean: np.ndarray, covariance: np.ndarray, width: int, where: str) -> Gaussian:
    if mean.shape != (width,) or covariance.shape != (width, width):
        got = f"mean {mean.shape}, covariance {covariance.shape}"
        raise TokError(
            where,
            f"is not of Inception's {width:,} features",
            got=got,
            next="Give statistics that pytorch-fid, clean-fid or ADM's script wrote with Inception's 2,048 pooled features",
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise TokError(where, "holds numbers that are not finite", next="Fetch it again")
    return Gaussian(mean.astype(np.float64), covariance.astype(np.float64), None, where)


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of floats, of which no more is read than Inception's features need."""
    with archive.open(f"{name}.npy") as member:
        shape, fortran, dtype = _read_header(member)
        count = math.prod(shape)
        if dtype.kind != "f" or count > MOST_NUMBERS or len(shape) > 2:
            raise ValueError(f"{name} is {dtype} {shape}, not numbers of Inception's features")
        data = member.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise ValueError(f"{name} is cut off")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _read_header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(member)
    if any(side < 0 for side in shape):
        raise ValueError(f"a shape of {shape}")
    return shape, fortran, dtype


def _header(archive: zipfile.ZipFile) -> tuple[tuple[int, ...], int]:
    """Shape of the images in a file, and where they begin in their member."""
    with archive.open(f"{IMAGES}.npy") as member:
        shape, fortran, dtype = _read_header(member)
        if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or fortran or shape[1] * shape[2] > MOST_SIDE**2:
            raise ValueError(f"{IMAGES} is not uint8 images (n, h, w, 3) of up to {MOST_SIDE} px but {dtype} {shape}")
        return shape, member.tell()


def read_images(path: Path) -> Iterator[UInt8[Tensor, "b 3 h w"]]:
    """The images of an ADM file in batches, without holding them all: 10,000 of 256 px are 2 GB.

    Raises:
        TokError: the file ends too early.
    """
    with zipfile.ZipFile(path) as archive:
        shape, start = _header(archive)
        size = math.prod(shape[1:])
        at_once = max(1, min(AT_ONCE, BATCH_BYTES // max(1, size)))
        with archive.open(f"{IMAGES}.npy") as member:
            member.seek(start)
            for first in range(0, shape[0], at_once):
                count = min(at_once, shape[0] - first)
                data = member.read(count * size)
                if len(data) != count * size:
                    raise TokError(
                        str(path),
                        f"is cut off after image {first + len(data) // size} of {shape[0]}",
                        next="Download it again",
                    )
                images = np.frombuffer(data, dtype=np.uint8).reshape(count, *shape[1:])
                yield torch.from_numpy(images.copy()).permute(0, 3, 1, 2)
