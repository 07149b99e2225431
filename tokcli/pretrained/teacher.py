"""Pretrained networks as teachers, by name: the patch features that a VQ-KD tokenizer learns to reconstruct."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from tokcli.errors import TokError
from tokcli.pretrained import NETWORKS, READY, build_network, usual
from tokcli.recipe.sections import Layers, Side
from tokcli.registry import lookup

log = logging.getLogger("tok")
Grid = tuple[int, int]


class Teacher(nn.Module):
    """Frozen patch features, without class and register tokens, of images in [0, 1].

    Args:
        name: the network's name.
        weights: its file; "random" for tests and for the meta device; None: cache, package or hub.
        layers: names or numbers of the layers; None: the network's default. The maps of several layers are
            resized to one grid, normalised per patch, scaled by 1/sqrt(#layers) and concatenated, so that each
            layer weighs the same in a cosine.
        norm: apply the network's final norm (and CLIP's projection) to each layer.
        projection: project the normed features as CLIP does its class token (ViT-B/16: from 768 to 512 wide); False: leave
            them as they are. Networks without a projection give the same either way, so that a recipe holds for any teacher.
        image_size: pixels that images are resized to (bicubic, antialiased, square); None: as `grid` says, else the
            network's default.
        grid: rows and columns of the features: images are resized to the pixels at which the largest map has them. A network
            that takes no such size is run at its default, and its maps are resized. None: those of the largest map.

    Raises:
        TokError: no such network or layer, no weights, both `image_size` and `grid`, or a size or norm that the network does
            not have.
    """

    def __init__(
        self,
        name: str,
        weights: Path | Literal["random"] | None = None,
        *,
        layers: Layers | None = None,
        norm: bool = True,
        projection: bool = True,
        image_size: Side | None = None,
        grid: tuple[PositiveInt, PositiveInt] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.network = build_network(name, weights, role="teacher", weights_flag="--teacher-weights")
        if not norm and not self.network.has_final_norm:
            raise TokError(
                f"teacher {name}",
                "norm: false changes nothing",
                why="the network has no final norm",
                next="Leave teacher.norm out",
            )
        self.layers: list[int | str] = list(self.network.resolve(layers))
        if image_size is not None and grid is not None:
            raise TokError(
                "teacher.grid",
                f"image_size = {image_size} decides already",
                got=f"{grid[0]}x{grid[1]}",
                next="Give one of the two: --set teacher.grid=null or --set teacher.image_size=null",
            )
        self.norm = norm
        self.network.projects = projection
        self.projection = projection if norm and self.network.has_projection else None  # None: there is none to apply
        found = self._size_of(grid) if grid else None
        if grid and found is None and weights != "random":  # not in plans, nor where weights are loaded later
            log.warning(
                "teacher %s: takes no images that give it %dx%d patches: its features at %d px are resized to them",
                name,
                *grid,
                self.network.image_size,
            )
        self.image_size = image_size or found or self.network.image_size
        self.feature_dim, largest = self._shape(self.image_size)
        self._grid = grid or largest

    @staticmethod
    def settled(name: str, keys: dict[str, Any]) -> dict[str, Any]:
        """With the network's own layers and image size, where neither the recipe nor a grid says others."""
        own = usual(name, "teacher")
        layers = own.layers if keys["layers"] is None else keys["layers"]
        size = own.image_size if keys["image_size"] is None and keys["grid"] is None else keys["image_size"]
        return keys | {"layers": layers, "image_size": size}

    def _shape(self, size: int) -> tuple[int, Grid]:
        """Width of the features, and the largest map's rows and columns, of images of `size` pixels."""
        shapes = self.network.shapes(size, self.layers, norm=self.norm)
        largest = max(((h, w) for _, h, w in shapes), key=lambda grid: grid[0] * grid[1])
        return sum(channels for channels, _, _ in shapes), largest

    def _size_of(self, grid: Grid) -> int | None:
        """Pixels at which the largest map has that grid; None where the network takes no such size."""
        size = round(self.network.image_size * grid[0] / self._shape(self.network.image_size)[1][0])
        try:
            return size if self._shape(size)[1] == grid else None
        except (TokError, RuntimeError):  # the latter of networks that reshape to a fixed number of windows
            return None

    @property
    def sha256(self) -> str | None:
        """SHA-256 of the weights' file, or "random"."""
        return self.network.sha256

    def described_as(self, other: "Teacher") -> bool:
        """Whether features on one grid are equal by what both were built of: network, file of weights, layers, norm, projection, size."""
        mine, others = (
            (t.name, t.sha256, t.layers, t.norm, t.projection, t.image_size, type(t)) for t in (self, other)
        )
        return mine == others

    def grid(self, size: int | None = None) -> tuple[int, int]:
        """(rows, columns) of the features, whatever the images' `size`: they are resized to `image_size`."""
        return self._grid

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"], grid: tuple[int, int] | None = None) -> Float[Tensor, "b n d"]:
        """`features`, without gradients."""
        return self.features(images, grid)

    def features(self, images: Float[Tensor, "b 3 h w"], grid: tuple[int, int] | None = None) -> Float[Tensor, "b n d"]:
        """Features in float32, patches in raster order.

        Args:
            images: in [0, 1].
            grid: rows and columns that each layer's map is resampled to (bicubic, antialiased), so that a fine layer gives
                the mean over a patch and not a point of it; None: `grid()`, the largest among the layers.
        """
        maps = self.network.maps(images, self.layers, size=self.image_size, norm=self.norm)
        maps = [_resized(m, grid or self._grid) for m in maps]
        if len(maps) > 1:
            maps = [F.normalize(m, dim=1) * len(maps) ** -0.5 for m in maps]
        return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=2)


def _resized(m: Float[Tensor, "b c h w"], grid: tuple[int, int]) -> Float[Tensor, "b c gh gw"]:
    if m.shape[-2:] == grid:
        return m
    return F.interpolate(m, grid, mode="bicubic", align_corners=False, antialias=True)


__all__ = ["TEACHERS", "Teacher", "build_teacher", "teacher_class", "teacher_file", "teacher_weights"]

TEACHERS: dict[str, type[Teacher]] = dict.fromkeys([*NETWORKS, *READY], Teacher)


def teacher_class(name: str) -> type[Teacher]:
    """The class of a teacher by name, also `timm:NAME` and `open_clip:NAME/PRETRAINED`.

    Raises:
        TokError: no such teacher.
    """
    if name.startswith(("timm:", "open_clip:")):
        return Teacher
    return lookup("teacher", TEACHERS, name)


def teacher_file(weights: Mapping[str, Path], name: str) -> Path | None:
    """The file that `--teacher-weights` gives for a teacher: its own (`NAME=FILE`), else the one for all; None: none."""
    return weights.get(f"teacher:{name}") or weights.get("teacher")


def teacher_weights(weights: Mapping[str, Path] | None, name: str) -> Path | Literal["random"] | None:
    """`teacher_file`, or "random" where plans build networks without files (weights None)."""
    return "random" if weights is None else teacher_file(weights, name)


def build_teacher(name: str, keys: Mapping[str, Any], weights: Path | Literal["random"] | None = None) -> Teacher:
    """A frozen teacher.

    Args:
        name: a key of TEACHERS, `timm:NAME`, or `open_clip:NAME/PRETRAINED`.
        keys: `layers`, `norm`, `projection`, `image_size`, `grid` of the recipe.
        weights: its file (`--teacher-weights`), "random", or None to look for it.

    Raises:
        TokError: no such teacher, no weights, or weights that do not fit.
    """
    grid = keys.get("grid")  # YAML and JSON know lists only
    return teacher_class(name)(name, weights, **{**keys, "grid": tuple(grid) if grid else None})
