"""Small pictures of what a network does, beside its numbers."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from tokcli import distributed, pictures
from tokcli.artifact.opening import Artifact
from tokcli.data import sample_store as store
from tokcli.data.reading import read_batches
from tokcli.data.sources import ImageSource, evenly
from tokcli.data.transforms import evaluation_transform, unit
from tokcli.measure import evaluating
from tokcli.measure.decoding import reconstruct
from tokcli.models import Tokenizer
from tokcli.pretrained.teacher import Teacher

LISTING = "images.sha256"  # of samples in form `png`
COLUMNS = 12  # images of a preview


def read_samples(samples: Artifact, numbers: Sequence[int]) -> UInt8[Tensor, "n 3 s s"]:
    """Images of a samples artifact, each compared with its hash; those of one that is being written are taken as they are.

    Raises:
        TokError: a file is missing, damaged or another one.
    """
    facts = samples.facts
    form, per_file = facts.get("format", "png"), facts.get("per_file", 1)
    digests = None
    if "files" in samples.manifest:
        for tar in {store.image_file(i, form, per_file) for i in numbers} if form == "shards" else ():
            samples.file(tar)
        digests = samples.listed(LISTING) if form == "png" else None
    return store.read(samples.path, numbers, form=form, per_file=per_file, digests=digests)


def colours_of(
    features: Float[Tensor, "b n d"], like: Float[Tensor, "b n d"], grid: tuple[int, int], size: int
) -> UInt8[Tensor, "b 3 size size"]:
    """Features as colours: the three principal axes of `like`, over its range, to red, green and blue."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the randomised PCA starts from noise
        _, _, axes = torch.pca_lowrank(like.flatten(0, 1), q=3)
    span = (like @ axes).flatten(0, 1)
    low, high = span.quantile(0.02, dim=0), span.quantile(0.98, dim=0)
    projected = features @ axes
    shown = ((projected - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    maps = shown.transpose(1, 2).unflatten(2, grid)
    return pictures.to_uint8(F.interpolate(maps, (size, size), mode="nearest"))


def tokenizer_preview(
    network: Tokenizer, source: ImageSource, device: torch.device, size: int, teacher: Teacher, path: Path
) -> None:
    """A sheet of originals, the teacher's features, what codes predict of them, and the codes themselves, in false colours."""
    chosen = evenly(len(source), COLUMNS)
    _, images = next(read_batches(source, evaluation_transform(size), chosen))
    grid = network.grid(size)
    with evaluating(network):
        quantized = network(unit(images, device))
        assert network.feature_decoder is not None
        wanted = F.normalize(teacher(unit(images, device), grid), dim=-1)
        predicted = F.normalize(network.feature_decoder(quantized.z_q, grid).float(), dim=-1)
    codes = quantized.z_q.float()
    rows = {
        "original": images,
        f"{teacher.name} features": colours_of(wanted, wanted, grid, size).cpu(),
        "predicted from codes": colours_of(predicted, wanted, grid, size).cpu(),
        "codes": colours_of(codes, codes, grid, size).cpu(),
    }
    if distributed.is_main():
        pictures.save_png(
            pictures.comparison_sheet(rows, title="held-out images; features by their three main axes"), path
        )


def decoder_preview(
    network: Tokenizer, pixel_decoder: nn.Module, source: ImageSource, device: torch.device, size: int, path: Path
) -> None:
    """A sheet of originals and their reconstructions."""
    chosen = evenly(len(source), COLUMNS)
    _, images = next(read_batches(source, evaluation_transform(size), chosen))
    rows = {"original": images, "reconstruction": reconstruct(network, pixel_decoder, images, device)}
    pictures.save_png(pictures.comparison_sheet(rows), path)
