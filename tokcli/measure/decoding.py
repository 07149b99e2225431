"""What comes back through the codes, and how near it is to the original."""

from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from tokcli import pictures
from tokcli.data.pixels import unit
from tokcli.data.randomness import generator
from tokcli.data.reading import read_batches
from tokcli.data.sources import ImageSource
from tokcli.data.transforms import evaluation_transform
from tokcli.measure.evaluating import evaluating
from tokcli.metrics.dispatch import PerImage
from tokcli.metrics.reported import Reported
from tokcli.models import Tokenizer
from tokcli.quantizers.perturbing import replaced


def reconstruct(
    network: Tokenizer, decoder: nn.Module, images: UInt8[Tensor, "b 3 s s"], device: torch.device
) -> UInt8[Tensor, "b 3 s s"]:
    """Images through codes and back, as uint8 on the CPU; both networks run in eval mode."""
    with evaluating(network, decoder):
        decoded: Tensor = decoder(network.codes(network.encode(unit(images, device))))
    return pictures.to_uint8(decoded).cpu()


def reconstruct_perturbed(
    network: Tokenizer,
    decoder: nn.Module,
    images: UInt8[Tensor, "b 3 s s"],
    numbers: Sequence[int],
    device: torch.device,
    *,
    share: float,
    near: int,
) -> UInt8[Tensor, "b 3 s s"]:
    """`reconstruct` with some tokens replaced by near codes, see `replaced`; which ones follows from an image's number alone."""
    with evaluating(network, decoder):
        indices = network.encode(unit(images, device))
        noise = torch.stack([torch.rand(indices.shape[1], 2, generator=generator(0, "perturb", n)) for n in numbers])
        changed = replaced(indices, network.quantizer, share=share, near=near, noise=noise.to(device))
        decoded: Tensor = decoder(network.codes(changed))
    return pictures.to_uint8(decoded).cpu()


def measure_decoder(
    network: Tokenizer, pixel_decoder: nn.Module, source: ImageSource, device: torch.device, *, size: int
) -> dict[str, float]:
    """Every metric that takes images, means over the images, and how many these are."""
    pixels, seen = PerImage("images"), 0
    for _, images in read_batches(source, evaluation_transform(size), desc="held-out images"):
        pixels.add(reconstruct(network, pixel_decoder, images, device), images)
        seen += len(images)
    return {Reported(key).name: number.value for key, number in pixels.numbers.items()} | {"images": seen}
