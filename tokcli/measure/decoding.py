"""What comes back through the codes, and how near it is to the original."""

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from tokcli import metrics, pictures
from tokcli.data.pixels import unit
from tokcli.data.reading import read_batches
from tokcli.data.sources import ImageSource
from tokcli.data.transforms import evaluation_transform
from tokcli.measure.evaluating import evaluating
from tokcli.metrics.image_quality import mean_of
from tokcli.models import Tokenizer


def reconstruct(
    network: Tokenizer, decoder: nn.Module, images: UInt8[Tensor, "b 3 s s"], device: torch.device
) -> UInt8[Tensor, "b 3 s s"]:
    """Images through codes and back, as uint8 on the CPU; both networks run in eval mode."""
    with evaluating(network, decoder):
        decoded: Tensor = decoder(network.codes(network.encode(unit(images, device))))
    return pictures.to_uint8(decoded).cpu()


def measure_decoder(
    network: Tokenizer, pixel_decoder: nn.Module, source: ImageSource, device: torch.device, *, size: int
) -> dict[str, float]:
    """How close reconstructions are to their originals, in pixels: PSNR, SSIM, sharpness, L1, means over images."""
    values: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "sharpness": [], "l1": []}
    for _, images in read_batches(source, evaluation_transform(size)):
        decoded = reconstruct(network, pixel_decoder, images, device)
        for name, per_image in values.items():
            per_image.append(metrics.METRICS[name].function(decoded, images))
    found = {name: mean_of(torch.cat(per_image)) for name, per_image in values.items()}
    measured = {name: value for name, value in found.items() if value is not None}
    return measured | {"images": sum(map(len, values["l1"]))}
