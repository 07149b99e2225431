"""Networks that judge: what each makes of images in batches of one shape, and the name that its numbers go by."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tokcli.device import full_precision
from tokcli.errors import TokError
from tokcli.metrics.fid import Moments
from tokcli.pretrained import Network, build_network, network_class
from tokcli.pretrained.inception import FIDInception

GPU_BATCH = 64
# A map of over 32 MiB is returned to the system by glibc after each use and cleared anew: efflite0 takes twice the time then.
CPU_BATCH = 8


def rebatch(batches: Iterable[UInt8[Tensor, "_ 3 _ _"]], size: int) -> Iterator[UInt8[Tensor, "_ 3 _ _"]]:
    """The same images in batches of `size`, the last one shorter.

    Raises:
        TokError: images of different sizes; an extractor's numbers hold for one named resize only.
    """
    waiting: list[Tensor] = []
    held = 0
    shape: torch.Size | None = None
    for images in batches:
        shape = shape or images.shape[1:]
        if images.shape[1:] != shape:
            raise TokError(
                "images",
                "must have one size",
                got=f"{tuple(images.shape[1:])} after {tuple(shape)}",
                next="Name a transform that resizes them",
            )
        waiting.append(images)
        held += len(images)
        while held >= size:
            joined = torch.cat(waiting)
            yield joined[:size]
            waiting, held = [joined[size:]], held - size
    if held:
        yield torch.cat(waiting)


def features(
    batches: Iterable[UInt8[Tensor, "_ 3 _ _"]],
    extractor: Callable[[Tensor], Tensor],
    *,
    device: torch.device | str = "cpu",
) -> Iterator[Float[Tensor, "_ _"]]:
    """Features of the images in their order, a batch at a time.

    Every batch has the same shape (the last is filled up and its answer cut), in float32 proper and channels_last.

    Args:
        batches: (b, 3, h, w) uint8 images of one size, in batches of any size.
        extractor: frozen; (batch_size, 3, h, w) in [0, 1] -> (batch_size, d).
        device: where the extractor is.
    """
    device = torch.device(device)
    batch_size = CPU_BATCH if device.type == "cpu" else GPU_BATCH
    for images in rebatch(batches, batch_size):
        count = len(images)
        if count < batch_size:
            images = torch.cat([images, images[:1].expand(batch_size - count, -1, -1, -1)])
        unit = images.to(device).to(torch.float32).div_(255).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), full_precision(device):
            found = extractor(unit)[:count]
        yield found


log = logging.getLogger("tok")
BATCH = 64  # images read at a time
PUBLISHED = "6726825d"  # SHA-256 of pytorch-fid's file begins so: only its features make an FID

PROTOCOLS: dict[str, tuple[str, ...]] = {
    "embedded": ("efflite0", "squeezenet", "vits14"),  # need no hub
    "wide": ("inception", "convnext-b", "dinov2-l", "mae", "siglip2-b", "clip-l"),  # trained for unlike ends
}
"""Names of several extractors, which `eval.extractors` may hold: ratios of distances are averaged over them."""


def expanded(names: Sequence[str]) -> list[str]:
    """The networks that a recipe names, each once, those of protocols included."""
    return list(dict.fromkeys(one for name in names for one in PROTOCOLS.get(name, (name,))))


@dataclass(frozen=True)
class Extractor:
    """A frozen network as a judge.

    Args:
        name: what metrics are called by; `inception` for the published weights alone, else `inception-<sha8>`.
        network: on its device.
        asked: how the recipe named it.
    """

    name: str
    network: Network
    asked: str

    def __call__(self, images: Tensor) -> Tensor:
        """All that this network says of images in [0, 1], side by side: (b, sum of `widths`)."""
        if isinstance(self.network, FIDInception):
            return torch.cat(self.network.judged(images), dim=1)
        return self.network.pooled(images)

    def split(self, found: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Pooled features, spatial features and logits of such rows; None where the network has none."""
        if not isinstance(self.network, FIDInception):
            return found, None, None
        pooled, spatial, logits = found.split(list(self.network.judged_widths), dim=1)
        return pooled, spatial, logits

    def describe(self) -> dict[str, object]:
        """What stands in the protocol: weights, and how images reach the network."""
        n = self.network
        filtered = "bicubic, antialiased" if n.resize == "bicubic" else "bilinear, not antialiased"
        return {"sha256": n.sha256, "size": n.extractor_size, "resize": filtered}


def check_extractors(names: Sequence[str], inception_weights: Path | None) -> None:
    """Refuse what `load_extractors` would before it looks for weights.

    Raises:
        TokError: no such network, or a file that none of them reads.
    """
    networks = expanded(names)
    if inception_weights is not None and "inception" not in networks:
        raise TokError(
            "--inception-weights",
            "no extractor of this recipe is inception",
            got=f"eval.extractors: {', '.join(names)}",
            next="Add it: --set 'eval.extractors=[inception]'",
        )
    for name in networks:
        network_class(name, role="extractor")


def load_extractors(names: Sequence[str], inception_weights: Path | None, device: torch.device) -> list[Extractor]:
    """The networks that a recipe names, each once.

    Args:
        names: `inception`, `efflite0`, `vits14`, `squeezenet`, `timm:NAME`, ..., or a protocol.
        inception_weights: the file of `--inception-weights`.
        device: where they run.

    Raises:
        TokError: no such network, or weights found nowhere.
    """
    check_extractors(names, inception_weights)
    found = []
    for name in expanded(names):
        is_inception = name == "inception"
        flag = "--inception-weights" if is_inception else None
        network = build_network(name, inception_weights if is_inception else None, role="extractor", weights_flag=flag)
        sha = str(network.sha256)
        called = name if not is_inception or sha.startswith(PUBLISHED) else f"inception-{sha[:8]}"
        if called != name:
            log.warning("--inception-weights: not pytorch-fid's file, so that its distance is called fd_%s", called)
        found.append(Extractor(called, network.to(device), name))
    return found


class Seen:
    """What an extractor saw of a set of images: moments of all, features of some, logits where asked for.

    Args:
        extractor: whose rows are added.
        name: what to call the set in messages.
        keep: numbers of the images whose pooled features are kept.
        scored: whether logits are kept.
    """

    def __init__(self, extractor: Extractor, name: str, keep: Sequence[int], *, scored: bool = False) -> None:
        self.extractor, self.scored, self.count = extractor, scored, 0
        self.keep = keep if isinstance(keep, range) else frozenset(keep)
        self.moments, self._spatial = Moments(name), Moments(name)
        self._features: list[Tensor] = []
        self._logits: list[Tensor] = []

    def add(self, found: Tensor) -> None:
        """Take what the extractor said of the next images.

        Raises:
            TokError: features that are not finite.
        """
        pooled, places, logits = self.extractor.split(found)
        self.moments.update(pooled)
        if places is not None:
            self._spatial.update(places)
        if logits is not None and self.scored:
            self._logits.append(logits.cpu())
        rows = [i for i in range(len(found)) if self.count + i in self.keep]
        self._features.append(pooled[rows].cpu())
        self.count += len(found)

    @property
    def spatial(self) -> Moments | None:
        """Moments of the spatial features, where the network has them."""
        return self._spatial if self._spatial.count else None

    @property
    def features(self) -> Float[Tensor, "m d"]:
        """Pooled features of the images kept, float32."""
        return torch.cat(self._features) if self._features else torch.zeros(0, self.moments.dim)

    @property
    def logits(self) -> Float[Tensor, "n classes"] | None:
        """Logits of all images, where the network has them and they were asked for."""
        return torch.cat(self._logits) if self._logits else None


def look(batches: Iterable[Tensor], seen: Seen, device: torch.device) -> Seen:
    """Run its extractor over uint8 images (b, 3, s, s), in batches of any size; returns `seen`.

    Raises:
        TokError: images of two sizes, or features that are not finite.
    """
    for found in features(batches, seen.extractor, device=device):
        seen.add(found)
    return seen


def chosen(count: int, most: int) -> Sequence[int]:
    """At most `most` numbers of [0, count) in order, the same ones each time, at random: samples have their classes in turn,
    and every so many-th of them would be of few classes."""
    if count <= most:
        return range(count)
    draw = torch.Generator().manual_seed(count)
    return torch.randperm(count, generator=draw)[:most].sort().values.tolist()
