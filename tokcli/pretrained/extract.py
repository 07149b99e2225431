"""Run an extractor over images in batches of one shape, so that how they arrive cannot change a number."""

from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tokcli.device.precision import full_precision
from tokcli.errors import TokError

Extractor = Callable[[Tensor], Tensor]

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
    extractor: Extractor,
    *,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Float[Tensor, "_ _"]]:
    """Features of the images in their order, a batch at a time.

    Every batch has the same shape (the last is filled up and its answer cut), in float32 proper and channels_last.

    Args:
        batches: (b, 3, h, w) uint8 images of one size, in batches of any size.
        extractor: frozen; (batch_size, 3, h, w) in [0, 1] -> (batch_size, d).
        batch_size: how many images the extractor sees at once, always as many; None: what suits the device.
        device: where the extractor is.
    """
    device = torch.device(device)
    batch_size = batch_size or (CPU_BATCH if device.type == "cpu" else GPU_BATCH)
    for images in rebatch(batches, batch_size):
        count = len(images)
        if count < batch_size:
            images = torch.cat([images, images[:1].expand(batch_size - count, -1, -1, -1)])
        unit = images.to(device).to(torch.float32).div_(255).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), full_precision(device):
            found = extractor(unit)[:count]
        yield found
