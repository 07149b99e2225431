"""How a tokenizer uses its codes, and how well it predicts its teacher's features."""

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from tokcli.data.reading import read_batches
from tokcli.data.sources import ImageSource
from tokcli.data.transforms import evaluation_transform, filled, unit
from tokcli.measure import evaluating
from tokcli.metrics import METRICS
from tokcli.metrics.code_usage import count_codes
from tokcli.metrics.reported import Found, Judged, PerImage, Reported, ask
from tokcli.models import Tokenizer
from tokcli.pretrained.teacher import Teacher


class Counts:
    """Code frequencies over all tokens and over those of non-blank patches."""

    def __init__(self, codebook_size: int) -> None:
        self.all = torch.zeros(codebook_size, dtype=torch.int64)
        self.filled = torch.zeros(codebook_size, dtype=torch.int64)

    def add(self, indices: Int64[Tensor, "b n"], images: UInt8[Tensor, "b 3 s s"], grid: tuple[int, int]) -> None:
        """Count the tokens of a batch of images."""
        self.all += count_codes(indices, len(self.all))
        self.filled += count_codes(indices[filled(images, grid)], len(self.all))

    def found(self) -> list[Found]:
        """Every metric that takes counts; those that say so, of the tokens of patches with content too."""
        found = []
        for counts, nonblank in ((self.all, False), (self.filled, True)):
            total = int(counts.sum())
            if nonblank and not total:
                continue
            found += [
                Found(Reported(key, nonblank=nonblank), number.value, total, "tokens")
                for key, number in ask("counts", counts)
                if METRICS[key].nonblank or not nonblank
            ]
        return sorted(found, key=lambda one: (not one.what.declared.nonblank, one.what.nonblank))


def judge(
    network: Tokenizer, source: ImageSource, device: torch.device, *, size: int, teacher: Teacher | None = None
) -> Judged:
    """Every metric of code counts, and of predicted features where the teacher is at hand.

    Args:
        network: in any mode; it is measured in eval mode.
        source: held-out images.
        device: where the network is.
        size: pixels at which the tokenizer is used.
        teacher: the one it was trained with.
    """
    grid = network.grid(size)
    counts, features = Counts(network.quantizer.codebook_size), PerImage("features")
    seen = 0
    with evaluating(network):
        for _, images in read_batches(source, evaluation_transform(size), desc="held-out images"):
            pixels = unit(images, device)
            seen += len(images)
            quantized = network(pixels)
            counts.add(quantized.indices.cpu(), images, grid)
            if teacher is not None and network.feature_decoder is not None:
                predicted = network.feature_decoder(quantized.z_q, grid)
                wanted = teacher(pixels, grid)
                features.add(predicted.float().cpu(), wanted.float().cpu())
    found = [Found(Reported(key), number.value, seen, "images") for key, number in features.numbers.items()]
    if not network.quantizer.discrete:
        return Judged(found, {"images": seen})
    tokens = {"tokens": int(counts.all.sum()), "tokens_nonblank": int(counts.filled.sum())}
    return Judged([*counts.found(), *found], {**tokens, "images": seen})


def measure_tokenizer(
    network: Tokenizer, source: ImageSource, device: torch.device, *, size: int, teacher: Teacher | None = None
) -> dict[str, float]:
    """What `judge` finds, by reported name."""
    return judge(network, source, device, size=size, teacher=teacher).flat
