"""What comes back through the codes, and how near it is to the original."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from tokcli import pictures
from tokcli.data.randomness import generator
from tokcli.data.reading import read_batches
from tokcli.data.sources import ImageSource
from tokcli.data.transforms import evaluation_transform, unit
from tokcli.measure import evaluating
from tokcli.measure.extractors import Extractor, Seen, check_extractors, load_extractors, look
from tokcli.metrics.reported import PerImage, Reported, ask
from tokcli.models import Tokenizer
from tokcli.quantizers.perturbing import all_codes, replaced


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
        changed = replaced(indices, all_codes(network.quantizer), share=share, near=near, noise=noise.to(device))
        decoded: Tensor = decoder(network.codes(changed))
    return pictures.to_uint8(decoded).cpu()


class Judges:
    """Extractors that compare reconstructions with their originals, at each measurement of a training.

    Args:
        extractors: each once; there may be none.
    """

    def __init__(self, extractors: Sequence[Extractor] = ()) -> None:
        self.extractors = extractors
        self._originals: dict[tuple[str, str, int], Seen] = {}  # by extractor, data and size: they are looked at once

    @classmethod
    def of(cls, names: Sequence[str], weights: Mapping[str, Path] | None, device: torch.device) -> "Judges":
        """Those that a recipe names.

        Args:
            weights: files given by flags; None: none are read, for plans.
            device: where they run.

        Raises:
            TokError: no such network, or weights found nowhere.
        """
        if weights is None:
            check_extractors(names, None)
            return cls()
        return cls(load_extractors(names, weights.get("inception"), device))

    def begin(self, source: ImageSource, size: int) -> "list[Compared]":
        """What is to see the images of a source, and their reconstructions, at a size in pixels."""
        found = []
        for extractor in self.extractors:
            known = self._originals.get((extractor.name, source.id, size))
            real = known or Seen(extractor, f"{source.name}, {extractor.name}", range(0))
            self._originals[extractor.name, source.id, size] = real
            found.append(Compared(Seen(extractor, f"reconstructions, {extractor.name}", range(0)), real, known is None))
        return found


class Compared(NamedTuple):
    """One extractor's view of reconstructions and of originals, which are looked at where they are `fresh`."""

    ours: Seen
    real: Seen
    fresh: bool


def measure_decoder(
    network: Tokenizer,
    pixel_decoder: nn.Module,
    source: ImageSource,
    device: torch.device,
    *,
    size: int,
    judges: Judges | None = None,
) -> dict[str, float]:
    """Every metric that takes images, means over the images, and how many these are; of judges' features every distance."""
    pixels, seen, compared = PerImage("images"), 0, (judges or Judges()).begin(source, size)
    for _, images in read_batches(source, evaluation_transform(size), desc="held-out images"):
        decoded = reconstruct(network, pixel_decoder, images, device)
        pixels.add(decoded, images)
        seen += len(images)
        for one in compared:
            look([decoded], one.ours, device)
            if one.fresh:
                look([images], one.real, device)
    found = {Reported(key).name: number.value for key, number in pixels.numbers.items()}
    for one in compared if seen > 1 else []:  # one image has no distribution
        given, asked = (one.ours.moments, one.real.moments.gaussian()), one.ours.extractor.asked
        numbers = ask("reconstruction_moments", *given, extractor=asked)
        found |= {Reported(key, one.ours.extractor.name).name: number.value for key, number in numbers}
    return found | {"images": seen}
