"""Encoders: images to features `z_e` of code_dim, one per patch."""

import math
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from tokcli.errors import TokError
from tokcli.models.blocks import Grid, Trunk, start_weights, task_layers
from tokcli.models.conv import Downsample, PositionAttention, ResidualBlock, group_norm, halved, training_layout
from tokcli.models.maskgit import MaskGITEncoder
from tokcli.pretrained import usual
from tokcli.pretrained.teacher import Teacher
from tokcli.recipe.sections import Blocks, Layers, Share, Side, SomeBlocks, Widths


@runtime_checkable
class Encoder(Protocol):
    """What stages need of an encoder; its constructor is `(code_dim, *, image_size, ...)`."""

    code_dim: int
    image_size: int  # of training, in pixels

    def grid(self, size: int | Grid) -> Grid:
        """Rows and columns of features for an image of `size` pixels (a side, or height and width)."""
        ...

    def __call__(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b n d"]:
        """Features in row-major order of the grid, for images in [0, 1]."""
        ...


class ViTEncoder(nn.Module):
    """Vision transformer with task layers, VQ-KD's student (Peng et al. 2022, section 2.1).

    ViT-B/16 at 224 px with code_dim 32 has 86,404,640 parameters.

    Args:
        code_dim: width of `z_e`.
        image_size: training size in pixels; fixes the position table, other sizes get it resized.
        patch_size: side of a patch in pixels; divides every image side.
        width: channels of a token.
        depth: number of blocks.
        heads: attention heads per block; must divide the width.
        mlp_ratio: hidden width of the MLP, as a multiple of the width.
        dropout: share of values dropped, in [0, 1), where blocks add to the residual stream.
        class_token: add a token that sees all patches and is dropped at the end.
    """

    def __init__(
        self,
        code_dim: int,
        *,
        image_size: Side,
        patch_size: PositiveInt,
        width: PositiveInt,
        depth: SomeBlocks,
        heads: PositiveInt,
        mlp_ratio: PositiveFloat = 4.0,
        dropout: Share = 0.0,
        class_token: bool = True,
    ) -> None:
        super().__init__()
        self.code_dim, self.image_size, self.patch_size = code_dim, image_size, patch_size
        self.patches = nn.Conv2d(3, width, patch_size, patch_size)
        start_weights(self.patches)
        self.trunk = Trunk(self.grid(image_size), width, depth, heads, mlp_ratio, dropout, class_token)
        self.head = task_layers(width, code_dim)

    def grid(self, size: int | Grid) -> Grid:
        """Rows and columns of features for an image of `size` pixels (a side, or height and width).

        Raises:
            TokError: a side is no positive multiple of the patch size.
        """
        height, width = (size, size) if isinstance(size, int) else size
        if height % self.patch_size or width % self.patch_size or min(height, width) < 1:
            raise TokError(
                "encoder.patch_size",
                "must divide the image size",
                got=f"patches of {self.patch_size} px in images of {height}x{width} px",
                next="Set encoder.patch_size to a divisor of data.size",
            )
        return height // self.patch_size, width // self.patch_size

    def forward(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b n d"]:
        """Features in row-major order of the grid, for images in [0, 1]."""
        grid = self.grid((images.shape[2], images.shape[3]))
        x = self.patches(2 * images - 1)  # (b, width, h, w)
        return self.head(self.trunk(x.flatten(2).transpose(1, 2), grid))


class ConvEncoder(nn.Module):
    """VQGAN's convolutional encoder (Esser et al. 2021) and a 1x1 convolution to code_dim.

    The published f16 encoder has widths [128, 128, 256, 256, 512], 29,298,176 parameters before that 1x1 convolution; f8
    has widths [128, 128, 256, 512], 26,345,728. It has no position table: any multiple of `stride` is a size.

    Args:
        code_dim: width of `z_e`.
        image_size: training size in pixels, a multiple of 2^(len(widths) - 1).
        widths: channels of each stage, from the image's resolution down to the grid's; each stage is half as large as the
            one before it.
        blocks: residual blocks per stage.
        channels: channels before the last 1x1 convolution, which maps features to `z_e`.
        attention: self-attention at the grid's resolution, after each of its blocks and in the middle block.
    """

    def __init__(
        self,
        code_dim: int,
        *,
        image_size: Side,
        widths: Widths,
        blocks: Blocks = 2,
        channels: PositiveInt = 256,
        attention: bool = True,
    ) -> None:
        super().__init__()
        self.code_dim, self.image_size, self.stride = code_dim, image_size, 2 ** (len(widths) - 1)
        self.grid(image_size)
        before = widths[0]
        layers: list[nn.Module] = [nn.Conv2d(3, before, 3, padding=1)]
        for stage, width in enumerate(widths, 1):
            for _ in range(blocks):
                layers.append(ResidualBlock(before, width))
                before = width
                if attention and stage == len(widths):
                    layers.append(PositionAttention(width))
            if stage < len(widths):
                layers.append(Downsample(width))
        layers.append(ResidualBlock(before, before))
        layers += [PositionAttention(before)] if attention else []
        layers += [
            ResidualBlock(before, before),
            group_norm(before),
            nn.SiLU(),
            nn.Conv2d(before, channels, 3, padding=1),
        ]
        self.layers = nn.Sequential(*layers)
        self.embed = nn.Conv2d(channels, code_dim, 1)

    def grid(self, size: int | Grid) -> Grid:
        """Rows and columns of features for an image of `size` pixels (a side, or height and width).

        Raises:
            TokError: a side is no positive multiple of the stride.
        """
        return halved(size, self.stride)

    def forward(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b n d"]:
        """Features in row-major order of the grid, for images in [0, 1]."""
        self.grid((images.shape[2], images.shape[3]))
        features = self.embed(self.layers(training_layout(2 * images - 1)))
        return features.flatten(2).transpose(1, 2)


class TeacherEncoder(nn.Module):
    """A frozen teacher as the encoder (Cluster, arXiv 2411.04406, section 3): `z_e` are its patch features.

    Not in ENCODERS: what it is, the recipe's section `teacher` says.

    Args:
        teacher: stays frozen.
        image_size: of the images it is trained on, in pixels.
        grid: rows and columns of tokens, to which the teacher's maps are resized; None: its largest map's.
    """

    def __init__(self, teacher: Teacher, image_size: int, grid: Grid | None = None) -> None:
        super().__init__()
        self.teacher, self.image_size, self.code_dim = teacher, image_size, teacher.feature_dim
        self._grid = teacher.grid() if grid is None else grid

    def grid(self, size: int | Grid) -> Grid:
        """The same grid whatever the images' size: the teacher resizes them."""
        return _fixed(self._grid, size, "teacher.grid")

    def forward(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b n d"]:
        """Features in row-major order of the grid, without gradients, for images in [0, 1]."""
        return self.teacher(images, self._grid)


class PretrainedEncoder(nn.Module):
    """A pretrained network and a learned projection of its features to narrow codes, as in VFMTok (arXiv 2507.08441).

    Args:
        code_dim: width of `z_e`.
        weights: the network's file; "random" where they are loaded later or not needed; None: looked for.
        image_size: training size in pixels. Images are resized to the network's own size, whatever they have.
        network: the network's name, as of a teacher.
        layers: names or numbers of the layers; null: the network's default.
        grid: rows and columns of tokens; null: those of the network's largest map at its own size.
        learning_rate: the network's learning rate as a multiple of `optim.lr`; null: the network stays frozen.
    """

    def __init__(
        self,
        code_dim: int,
        weights: Path | Literal["random"] | None = None,
        *,
        image_size: Side,
        network: str,
        layers: Layers | None = None,
        grid: tuple[PositiveInt, PositiveInt] | None = None,
        learning_rate: PositiveFloat | None = None,
    ) -> None:
        super().__init__()
        self.body = Teacher(network, weights, layers=layers, grid=grid)
        self.code_dim, self.image_size, self.tuned = code_dim, image_size, learning_rate is not None
        self.project = task_layers(self.body.feature_dim, code_dim)
        if learning_rate is not None:
            self.body.requires_grad_(True)
            self.body.lr_scale = learning_rate  # type: ignore[assignment]  # the optimizer's groups read it

    @staticmethod
    def settled(name: str, keys: dict[str, Any]) -> dict[str, Any]:
        """With the network's own layers, where the recipe says no others."""
        return keys | {"layers": usual(keys["network"], "encoder").layers if keys["layers"] is None else keys["layers"]}

    def grid(self, size: int | Grid) -> Grid:
        """The same grid whatever the images' size: the network resizes them."""
        return _fixed(self.body.grid(), size, "encoder.grid")

    def is_frozen_copy_of(self, teacher: Teacher) -> bool:
        """Whether the network was built as this teacher and stays so: then its features are the teacher's, on the encoder's grid."""
        return not self.tuned and self.body.described_as(teacher)

    def has_weights_of(self, teacher: Teacher) -> bool:
        """Whether the network's weights are this teacher's, bit for bit; they may have been loaded since it was built."""
        mine, theirs = self.body.state_dict(), teacher.state_dict()
        return mine.keys() == theirs.keys() and all(
            torch.equal(t.to(theirs[n].device), theirs[n]) for n, t in mine.items()
        )

    def forward(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b n d"]:
        """Features in row-major order of the grid, for images in [0, 1]; the network is in eval mode, tuned or not."""
        features = self.body.features(images) if self.tuned else self.body(images)
        return self.project(features)


def _fixed(grid: Grid, size: int | Grid, key: str) -> Grid:
    """A grid that does not depend on the images' size, which it must divide."""
    height, width = (size, size) if isinstance(size, int) else size
    if height % grid[0] or width % grid[1]:
        rows, columns = grid
        raise TokError(
            "grid",
            f"{rows}x{columns} tokens do not cut the image into equal patches",
            got=f"{height}x{width} px",
            next=f"Make data.size and data.use_size multiples of {math.lcm(rows, columns)}, or set another {key}",
        )
    return grid


ENCODERS: dict[str, type[ViTEncoder] | type[ConvEncoder] | type[MaskGITEncoder] | type[PretrainedEncoder]] = {
    "vit": ViTEncoder,
    "conv": ConvEncoder,
    "maskgit": MaskGITEncoder,
    "pretrained": PretrainedEncoder,
}
