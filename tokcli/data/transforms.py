"""Images of any size to uint8 squares, and these to numbers in [0, 1] on a device."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from tokcli.data.randomness import generator
from tokcli.recipe.sections import Area, Aspect, Zoom

# Of an image before its short side is resized: a 1x100000 image would else become gigabytes.
LONGEST_ASPECT = 4

Padding = Literal["white", "edge"]
"""What a whole picture is laid on: white, or one colour, that of its edge."""


@runtime_checkable
class Transform(Protocol):
    """Makes (3, size, size) of (3, h, w); random choices come from the generator alone."""

    size: int
    deterministic: bool

    def __call__(self, image: UInt8[Tensor, "3 h w"], rng: torch.Generator) -> UInt8[Tensor, "3 s s"]:
        """One square of an image."""

    def describe(self) -> str:
        """What is done, in words that go into records."""


def resize(image: UInt8[Tensor, "3 h w"], height: int, width: int) -> UInt8[Tensor, "3 height width"]:
    """Antialiased bicubic resize that stays uint8: within 2 levels of Pillow's, and twice as fast."""
    if image.shape[1:] == (height, width):
        return image
    if height == width == 1:  # of which PyTorch's kernel for planes of uint8 fails
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    return functional.interpolate(image[None], size=(height, width), mode="bicubic", antialias=True)[0]


def resize_short_side(image: UInt8[Tensor, "3 h w"], short: int) -> UInt8[Tensor, "3 h2 w2"]:
    """Resize so that the shorter side is `short` pixels; images longer than 4:1 lose their ends first."""
    h, w = image.shape[1:]
    longest = LONGEST_ASPECT * min(h, w)
    image = _centre(image, min(h, longest), min(w, longest))
    h, w = image.shape[1:]
    return resize(image, short, int(short * w / h)) if h <= w else resize(image, int(short * h / w), short)


def _centre(image: Tensor, height: int, width: int) -> Tensor:
    top, left = round((image.shape[1] - height) / 2), round((image.shape[2] - width) / 2)
    return image[:, top : top + height, left : left + width]


def _flip(image: Tensor, flip: bool, rng: torch.Generator) -> Tensor:
    return image.flip(2) if flip and torch.rand((), generator=rng) < 0.5 else image


class CenterCrop:
    """Short side to `size` (bicubic, antialiased), then the central square: the field's evaluation transform.

    Args:
        size: side of the result in pixels.
        flip: mirror left-right with probability 1/2, which makes the transform random.
    """

    def __init__(self, size: int, *, flip: bool = False) -> None:
        self.size, self.flip = size, flip
        self.deterministic = not flip

    def __call__(self, image: UInt8[Tensor, "3 h w"], rng: torch.Generator) -> UInt8[Tensor, "3 s s"]:
        """One square of an image; random choices come from `rng`."""
        return _flip(_centre(resize_short_side(image, self.size), self.size, self.size), self.flip, rng)

    def describe(self) -> str:
        """What is done, in words that go into records."""
        return f"center-crop {self.size} px, bicubic antialias{', flip' if self.flip else ''}"


Fit = Callable[[Tensor, int], Tensor]


class RandomCrop:
    """Short side to zoom[0] to zoom[1] times `size`, then a square from anywhere: no change of aspect.

    Args:
        size: side of the result in pixels.
        fit: makes a picture's short side as long as asked for, see `resize_short_side`.
        zoom: range of the short side, in units of `size`; at least 1.
        flip: mirror left-right with probability 1/2.
    """

    deterministic = False

    def __init__(self, size: int, fit: Fit = resize_short_side, *, zoom: Zoom = (1.0, 1.25), flip: bool = True) -> None:
        self.size, self.fit, self.zoom, self.flip = size, fit, zoom, flip

    def __call__(self, image: UInt8[Tensor, "3 h w"], rng: torch.Generator) -> UInt8[Tensor, "3 s s"]:
        """One square of an image; random choices come from `rng`."""
        u, v, x = torch.rand(3, generator=rng, dtype=torch.float64).tolist()
        image = self.fit(image, round(self.size * (self.zoom[0] + u * (self.zoom[1] - self.zoom[0]))))
        top = int(v * (image.shape[1] - self.size + 1))
        left = int(x * (image.shape[2] - self.size + 1))
        return _flip(image[:, top : top + self.size, left : left + self.size], self.flip, rng)

    def describe(self) -> str:
        """What is done, in words that go into records."""
        low, high = self.zoom
        return f"random-crop {self.size} px, zoom {low:g} to {high:g}, bicubic antialias{', flip' * self.flip}"


class RandomResizedCrop:
    """A random part of the image by area and aspect, resized to the square (Szegedy et al. 2015, section 6).

    Args:
        size: side of the result in pixels.
        scale: range of the part's area, as a share of the image's.
        ratio: range of the part's width / height, drawn uniformly in the logarithm.
        flip: mirror left-right with probability 1/2.
    """

    deterministic = False

    def __init__(
        self, size: int, *, scale: Area = (0.8, 1.0), ratio: Aspect = (3 / 4, 4 / 3), flip: bool = True
    ) -> None:
        self.size, self.scale, self.ratio, self.flip = size, scale, ratio, flip

    def __call__(self, image: UInt8[Tensor, "3 h w"], rng: torch.Generator) -> UInt8[Tensor, "3 s s"]:
        """One square of an image; random choices come from `rng`."""
        top, left, h, w = self._box(image.shape[1], image.shape[2], rng)
        part = image[:, top : top + h, left : left + w]
        return _flip(resize(part, self.size, self.size), self.flip, rng)

    def _box(self, height: int, width: int, rng: torch.Generator) -> tuple[int, int, int, int]:
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for area, aspect, y, x in torch.rand(10, 4, generator=rng, dtype=torch.float64).tolist():
            pixels = height * width * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + aspect * (high - low))
            w, h = max(1, round(math.sqrt(pixels * ratio))), max(1, round(math.sqrt(pixels / ratio)))
            if w <= width and h <= height:
                return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w
        # The image is longer than any part asked for: its centre, at the nearest aspect allowed.
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
        return (height - h) // 2, (width - w) // 2, h, w

    def describe(self) -> str:
        """What is done, in words that go into records."""
        (a, b), (c, d) = self.scale, self.ratio
        return (
            f"random-resized-crop {self.size} px, scale {a:g} to {b:g}, ratio {c:.3g} to {d:.3g}, "
            f"bicubic antialias{', flip' * self.flip}"
        )


class Pad:
    """The whole picture in the middle of a square, its long side `size` (bicubic, antialiased): for cut-outs, which crops cut.

    Args:
        size: side of the result in pixels.
        colour: what fills the square: `white`, or `edge`, the median colour along the picture's edge.
        flip: mirror left-right with probability 1/2, which makes the transform random.
    """

    def __init__(self, size: int, *, colour: Padding = "white", flip: bool = False) -> None:
        self.size, self.colour, self.flip = size, colour, flip
        self.deterministic = not flip

    def __call__(self, image: UInt8[Tensor, "3 h w"], rng: torch.Generator) -> UInt8[Tensor, "3 s s"]:
        """One square of an image; random choices come from `rng`."""
        return _flip(on_square(image, self.size, self.colour), self.flip, rng)

    def describe(self) -> str:
        """What is done, in words that go into records."""
        return f"pad {self.size} px, {self.colour}, bicubic antialias{', flip' * self.flip}"


def fill_colour(image: UInt8[Tensor, "3 h w"], padding: Padding) -> UInt8[Tensor, " 3"]:
    """What a picture is laid on."""
    return edge_colour(image) if padding == "edge" else torch.full((3,), 255, dtype=torch.uint8)


def edge_colour(image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, " 3"]:
    """The median colour along a picture's edge."""
    return torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], 1).median(1).values


def on_square(image: UInt8[Tensor, "3 h w"], side: int, colour: Padding) -> UInt8[Tensor, "3 side side"]:
    """The whole picture, its long side resized to `side`, in the middle of a square of one colour."""
    h, w = image.shape[1:]
    height, width = (max(1, round(side * length / max(h, w))) for length in (h, w))
    small = resize(image, height, width)
    square = fill_colour(small, colour)[:, None, None].expand(3, side, side).clone()
    top, left = (side - height) // 2, (side - width) // 2
    square[:, top : top + height, left : left + width] = small
    return square


TRANSFORMS: dict[str, type[CenterCrop] | type[Pad] | type[RandomCrop] | type[RandomResizedCrop]] = {
    "center-crop": CenterCrop,
    "pad": Pad,
    "random-crop": RandomCrop,
    "random-resized-crop": RandomResizedCrop,
}


CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")


class CropViews:
    """Several squares of one image, the same whenever and wherever made: what `tok tokenize` encodes.

    View 0 is the centre crop; crop j is a function of (seed, sample number, j) and keeps the aspect. With `corners` the views are
    instead, for each range, the centre and the four corners of the central square: with flips LlamaGen's ten crops. With `padding`
    the square is that of the whole picture, of which the views are parts.

    Args:
        size: side of each view in pixels.
        crops: random crops beside the centre crop.
        flip: follow each view by its mirror image.
        scale: range of a crop's area, as a share of the largest square in the image; it may lie anywhere. (1, 1): no zoom.
        corners: sides of the central square, in units of `size`, rounded down to pixels; each over 1.
        padding: what the whole picture is laid on; None: its central square is taken.
        seed: of the crops.

    Raises:
        ValueError: a scale or a range outside its bounds, or random crops beside corners.
    """

    def __init__(
        self,
        size: int,
        *,
        crops: int = 0,
        flip: bool = False,
        scale: tuple[float, float] = (0.8, 1.0),
        corners: Sequence[float] = (),
        padding: Padding | None = None,
        seed: int = 0,
    ) -> None:
        self.size, self.crops, self.flip, self.corners, self.seed = size, crops, flip, tuple(corners), seed
        self.center = evaluation_transform(size, padding)
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be two shares of the area, 0 < low <= high <= 1, not {scale}")
        if corners and (crops or int(size * min(corners)) <= size):
            least = f"at least {1 + 1 / size:.4g} at {size} px, so that corners differ"
            raise ValueError(f"corners must be {least}, and without random crops: not {list(corners)} and {crops}")
        # Of the largest square, not of the image: 0.8 of a 3:2 photo's area is no square inside it.
        self.fit = functools.partial(on_square, colour=padding) if padding else resize_short_side
        self.crop = RandomCrop(size, self.fit, zoom=(scale[1] ** -0.5, scale[0] ** -0.5), flip=False)
        bases = [f"{place}-{times:g}" for times in self.corners for place in ("center", *CORNERS)]
        bases = bases or ["center", *(f"crop{j}" for j in range(1, crops + 1))]
        self.names = [name for base in bases for name in ([base, f"{base}-flip"] if flip else [base])]

    def __call__(self, image: UInt8[Tensor, "3 h w"], index: int) -> UInt8[Tensor, "views 3 s s"]:
        """All views of sample number `index`, in the order of `names`."""
        views = []
        for times in self.corners:
            views += self._five(image, int(self.size * times))
        if not self.corners:
            views = [self.center(image, torch.Generator())]
        for j in range(1, self.crops + 1):
            views.append(self.crop(image, generator(self.seed, "crop", index, j)))
        if self.flip:
            views = [turned for view in views for turned in (view, view.flip(2))]
        return torch.stack(views).contiguous()

    def _five(self, image: UInt8[Tensor, "3 h w"], side: int) -> list[Tensor]:
        """The centre and the corners of the central square, which is resized to `side` pixels."""
        square, last = _centre(self.fit(image, side), side, side), side - self.size
        corners = [square[:, y : y + self.size, x : x + self.size] for y in (0, last) for x in (0, last)]
        return [_centre(square, self.size, self.size), *corners]


def padding_kept(facts: Mapping[str, Any]) -> dict[str, str]:
    """The fact `padding` of an artifact, for one that is made from it; {} where pictures are cropped."""
    known = facts.get("padding")
    return {"padding": known} if known else {}


def evaluation_transform(size: int, padding: Padding | None = None) -> CenterCrop | Pad:
    """How images are made square for measuring: short side to `size` (bicubic, antialiased), centre crop; whole with padding."""
    return Pad(size, colour=padding) if padding else CenterCrop(size)


FLAT = 2  # grey levels: a patch whose channels all vary by less than this is blank


def unit(images: UInt8[Tensor, "b 3 h w"], device: torch.device) -> Float[Tensor, "b 3 h w"]:
    """uint8 images as float in [0, 1] on the device."""
    return images.to(device, non_blocking=True).float() / 255


def filled(patches: UInt8[Tensor, "b 3 s s"], grid: tuple[int, int]) -> Tensor:
    """Which cells of the grid hold more than one flat colour, bool (b, n)."""
    cells = patches.unflatten(2, (grid[0], -1)).unflatten(4, (grid[1], -1)).permute(0, 2, 4, 1, 3, 5).flatten(4).int()
    return ((cells.amax(-1) - cells.amin(-1)).amax(-1) >= FLAT).flatten(1)
