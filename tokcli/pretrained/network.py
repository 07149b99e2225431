"""What every pretrained network offers: frozen weights from a file, images in [0, 1], features as maps or as one vector."""

from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from tokcli.artifact.weights import load_strict, load_tensors
from tokcli.data.sources.contents import known_sha256
from tokcli.errors import TokError
from tokcli.pretrained.published_weights import Source
from tokcli.registry import nearest


def library(name: str) -> Any:
    """A module of timm or open_clip: where it is first imported under the meta device, as dry runs do, torch 2.6 fails in it."""
    with torch.device("cpu"):
        return import_module(name)


class Frozen(nn.Module):
    """A network that never learns: random weights until `load`, always in eval mode.

    Args:
        name: what the user calls it.
        body: the library's module.
    """

    sha256: str | None = None  # of the file the weights came from, or "random"

    def __init__(self, name: str, body: nn.Module) -> None:
        super().__init__()
        self.name, self.body = name, body
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Frozen":
        """Stay in eval mode: dropout and batch statistics of a frozen network never wake up."""
        return super().train(False)

    @classmethod
    def source(cls, name: str) -> Source:
        """Where the weights are found when the user names no file; asked before anything is built."""
        raise NotImplementedError

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of other layouts of the same weights to those of `body`."""
        return state

    def load(self, path: Path, where: str) -> None:
        """Take the weights of a file, strictly.

        Args:
            where: what the weights are for, in messages.

        Raises:
            TokError: unreadable, other names or shapes, or values that are not finite.
        """
        try:
            state = self.convert(load_tensors(path))
        except (KeyError, RuntimeError, ValueError, IndexError) as error:
            raise TokError(
                where,
                f"{path} does not hold the weights of this network",
                why=str(error),
                next="Give the file of this network",
            ) from None
        broken = [name for name, t in state.items() if t.is_floating_point() and not bool(t.isfinite().all())]
        if broken:
            raise TokError(
                where,
                f"{path} holds values that are not finite",
                got=", ".join(broken[:3]),
                next="Download the file again",
            )
        load_strict(self.body, state, f"{where}: {path}")
        self.sha256 = known_sha256(path)


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Network(Frozen):
    """A frozen pretrained network, built with random weights; `load` gives it those of a file.

    A layer is named as in `layer_names`; an int counts blocks, from the end if negative. Subclasses say which
    is which.

    Args:
        name: what the user calls it.
        body: the library's module.
        mean, std: per channel of RGB in [0, 1].
    """

    image_size: int = 224  # pixels, what a teacher takes by default
    extractor_size: int = 224  # pixels, what `pooled` resizes to by default
    resize: Literal["bicubic", "bilinear"] = "bicubic"  # bicubic with antialiasing, bilinear without
    multiple: int = 1  # image sides must be a multiple of this many pixels
    block_name: str = "blocks.{}"
    channels_last: bool = False
    has_final_norm: bool = False  # whether `norm` in `maps` means anything
    has_projection: bool = False  # whether a learned projection follows the final norm
    projects: bool = True  # whether `maps` with `norm` apply it; set on an instance
    layer_names: tuple[str, ...] = ()
    default_layers: tuple[str, ...] = ()  # what a teacher gives
    perceptual_layers: tuple[str, ...] = ()  # what a perceptual loss compares
    mean: Tensor
    std: Tensor

    def __init__(
        self, name: str, body: nn.Module, *, mean: tuple[float, ...] = IMAGENET[0], std: tuple[float, ...] = IMAGENET[1]
    ) -> None:
        if self.channels_last:
            body = body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        super().__init__(name, body)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def fold(self) -> None:
        """Rewrite `body` for speed alone, once it has its weights; most networks have nothing to rewrite."""

    # --- features ---

    def prepare(self, images: Float[Tensor, "b 3 h w"], size: int | None = None) -> Float[Tensor, "b 3 s t"]:
        """Images in [0, 1] resized to `size` pixels square (None: as they are) and normalised."""
        images = images.float()
        if size is not None and images.shape[-2:] != (size, size):
            if self.resize == "bicubic":  # bicubic overshoots: keep what the network sees in the range of images
                images = F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
            else:
                images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
        h, w = images.shape[-2:]
        if h % self.multiple or w % self.multiple:
            what = f"images must be a multiple of {self.multiple} pixels high and wide"
            raise TokError(self.name, what, got=f"{h}x{w}", next="Set image_size")
        images = (images - self.mean) / self.std
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def maps(
        self,
        images: Float[Tensor, "b 3 h w"],
        layers: list[int | str] | list[str] | None = None,
        *,
        size: int | None = None,
        norm: bool = True,
    ) -> list[Float[Tensor, "b c gh gw"]]:
        """Intermediate feature maps, float32, in the order asked for.

        Args:
            images: values in [0, 1].
            layers: names or block numbers; None: `default_layers`.
            size: resize the images to this side first; None: take them as they are.
            norm: apply the network's final norm, and its projection unless `projects` is off, where it has them.

        Raises:
            TokError: there is no such layer, or the network cannot take images of this size.
        """
        names = self.resolve(layers)
        found = self._maps(self.prepare(images, size), names, norm)
        return [found[name].float() for name in names]

    forward = maps

    @torch.no_grad()
    def pooled(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """One float32 vector an image, from images in [0, 1] resized to `extractor_size`.

        What Fréchet distances use. The filter is `resize`. Without gradients.
        """
        return self._pooled(self.prepare(images, self.extractor_size)).float()

    def _maps(self, x: Tensor, names: list[str], norm: bool) -> dict[str, Tensor]:
        raise NotImplementedError

    def _pooled(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def resolve(self, layers: list[int | str] | list[str] | None) -> list[str]:
        """Layer names of a mixed list of names and block numbers.

        Raises:
            TokError: the list is empty or names a layer that the network lacks.
        """
        if layers is None:
            return list(self.default_layers)
        if not layers:
            raise TokError(self.name, "layers is empty", next=nearest("", self.layer_names))
        blocks = [name for name in self.layer_names if name.startswith(self.block_name.format(""))]
        names = []
        for layer in layers:
            if isinstance(layer, int):
                layer = blocks[layer] if layer < 0 and -layer <= len(blocks) else self.block_name.format(layer)
            if layer not in self.layer_names:
                raise TokError(self.name, f"there is no layer '{layer}'", next=nearest(layer, self.layer_names))
            names.append(layer)
        return names

    def shapes(
        self, size: int, layers: list[int | str] | None = None, *, norm: bool = True
    ) -> list[tuple[int, int, int]]:
        """(channels, height, width) of the maps of square images, found without computing anything."""
        # functional_call swaps in tensors without storage, so this costs operator dispatch only
        tensors = chain(self.named_parameters(), self.named_buffers())
        state = {name: t.to("meta") for name, t in tensors}
        images = torch.empty(1, 3, size, size, device="meta")
        with torch.no_grad():
            found = functional_call(self, state, (images, layers), {"norm": norm})
        return [(m.shape[1], m.shape[2], m.shape[3]) for m in found]


def resampled(
    positions: Float[Tensor, "b n d"], learned: tuple[int, int], grid: tuple[int, int]
) -> Float[Tensor, "b m d"]:
    """A class position, then those of a `learned` grid, interpolated (bicubic, antialiased) to `grid`."""
    if learned == grid:
        return positions
    first, patches = positions[:, :1], positions[:, 1:].transpose(1, 2).unflatten(2, learned)
    patches = F.interpolate(patches.float(), grid, mode="bicubic", antialias=True).to(positions.dtype)
    return torch.cat([first, patches.flatten(2).transpose(1, 2)], 1)
