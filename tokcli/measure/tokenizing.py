"""How a tokenizer uses its codes, and how well it predicts its teacher's features."""

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from tokcli import metrics
from tokcli.data.pixels import filled, unit
from tokcli.data.reading import read_batches
from tokcli.data.sources import ImageSource
from tokcli.data.transforms import evaluation_transform
from tokcli.measure.evaluating import evaluating
from tokcli.metrics.code_usage import count_codes
from tokcli.models import Tokenizer
from tokcli.pretrained.teachers import Teacher


class Counts:
    """Code frequencies over all tokens and over those of non-blank patches."""

    def __init__(self, codebook_size: int) -> None:
        self.all = torch.zeros(codebook_size, dtype=torch.int64)
        self.filled = torch.zeros(codebook_size, dtype=torch.int64)

    def add(self, indices: Int64[Tensor, "b n"], images: UInt8[Tensor, "b 3 s s"], grid: tuple[int, int]) -> None:
        """Count the tokens of a batch of images."""
        self.all += count_codes(indices, len(self.all))
        self.filled += count_codes(indices[filled(images, grid)], len(self.all))

    def report(self) -> dict[str, float]:
        """codebook_usage and codebook_perplexity with the number of tokens counted; `_nonblank`: of patches with content."""
        found: dict[str, float] = {}
        for suffix, counts in (("", self.all), ("_nonblank", self.filled)):
            if counts.sum():
                found[f"codebook_usage{suffix}"] = metrics.codebook_usage(counts)
                found[f"codebook_perplexity{suffix}"] = metrics.codebook_perplexity(counts)
            found[f"tokens{suffix}"] = int(counts.sum())
        found["entropy_bits"] = metrics.entropy_bits(self.all)
        found["top_code_share"] = metrics.top_code_share(self.all)
        return found


def measure_tokenizer(
    network: Tokenizer, source: ImageSource, device: torch.device, *, size: int, teacher: Teacher | None = None
) -> dict[str, float]:
    """Codebook use on images, and the cosine feature loss where the teacher is at hand.

    Args:
        network: in any mode; it is measured in eval mode.
        source: held-out images.
        device: where the network is.
        size: pixels at which the tokenizer is used.
        teacher: the one it was trained with.
    """
    grid = network.grid(size)
    counts = Counts(network.quantizer.codebook_size)
    losses: list[Tensor] = []
    seen = 0
    with evaluating(network):
        for _, images in read_batches(source, evaluation_transform(size)):
            pixels = unit(images, device)
            seen += len(images)
            quantized = network(pixels)
            counts.add(quantized.indices.cpu(), images, grid)
            if teacher is not None and network.feature_decoder is not None:
                predicted = network.feature_decoder(quantized.z_q, grid)
                wanted = teacher(pixels, grid)
                losses.append(metrics.feature_loss(predicted.float().cpu(), wanted.float().cpu()))
    found = counts.report() if network.quantizer.discrete else {}
    if losses:
        found["feature_loss"] = float(torch.cat(losses).mean())
    return found | {"images": seen}
