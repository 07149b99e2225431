"""Measure networks on images: what training stages report at their end and `tok eval` reports of any artifact."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from tokcli import distributed, metrics, pictures
from tokcli.artifact import Artifact
from tokcli.data import BadImage, ImageSource, evenly
from tokcli.data import samples as store
from tokcli.data.batches import read_all
from tokcli.data.transforms import CenterCrop
from tokcli.errors import TokError
from tokcli.metrics.codebook import count_codes
from tokcli.metrics.image import mean_of
from tokcli.metrics.proposal import masked_ce_name
from tokcli.models import Tokenizer
from tokcli.proposals import Proposal
from tokcli.schema import Expects
from tokcli.teachers import Teacher

log = logging.getLogger("tok")
MASK_RATIO = 0.5  # of masked_ce, where a recipe says nothing else
BATCH = 64  # images at a time; one shape for all, so that numbers do not depend on what fits
FLAT = 2  # grey levels: a patch whose channels all vary by less than this is blank


def check_expected(expected: Expects, **actual: Any) -> None:
    """Compare a recipe's `expects` with the real inputs.

    Raises:
        TokError: naming every fact that differs.
    """
    facts = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in actual.items()}
    wrong = [name for name, value in facts.items() if not expected.accepts(name, value)]
    if wrong:
        said = "; ".join(f"expects.{name}: {_either(getattr(expected, name))}, not {facts[name]}" for name in wrong)
        ways = " ".join(f"--set 'expects.{name}={json.dumps(facts[name])}'" for name in wrong)
        raise TokError(
            "recipe", "its expectations are not met", got=said, next=f"to train on these all the same: {ways}"
        )


def _either(wanted: Any) -> str:
    return " or ".join(map(str, wanted)) if isinstance(wanted, list) else str(wanted)


def evaluation_transform(size: int) -> CenterCrop:
    """How images are made square for measuring: short side to `size` (bicubic, antialiased), centre crop."""
    return CenterCrop(size)


def read(
    source: ImageSource, transform: Any, indices: Sequence[int] | None = None, batch: int = BATCH
) -> Iterator[tuple[list[int], UInt8[Tensor, "b 3 s s"]]]:
    """Batches of (sample numbers, images) in order; unreadable images are left out and named once.

    Raises:
        TokError: not one image could be read.
    """
    numbers: list[int] = []
    images: list[Tensor] = []
    bad = good = 0
    for index, image in read_all(source, transform, indices=indices if indices is not None else range(len(source))):
        if isinstance(image, BadImage):
            bad += 1
            log.warning("%s: left out: %s", image.key, image.why)
            continue
        good += 1
        numbers.append(index)
        images.append(image)
        if len(images) == batch:
            yield numbers, torch.stack(images)
            numbers, images = [], []
    if images:
        yield numbers, torch.stack(images)
    if not good and bad:
        raise TokError(f"--data {source.name}", f"none of {bad} images could be read")


def first_readable(
    source: ImageSource, size: int, groups: Iterable[Sequence[int]]
) -> tuple[list[int], list[UInt8[Tensor, "3 s s"]]]:
    """The first readable image of each group of sample numbers, with its number; a group without one is left out."""
    numbers: list[int] = []
    images: list[Tensor] = []
    for group in groups:
        for i in group:
            ((_, image),) = read_all(source, evaluation_transform(size), indices=[i])
            if not isinstance(image, BadImage):
                numbers.append(i)
                images.append(image)
                break
    return numbers, images


def unit(images: UInt8[Tensor, "b 3 h w"], device: torch.device) -> Float[Tensor, "b 3 h w"]:
    """uint8 images as float in [0, 1] on the device."""
    return images.to(device, non_blocking=True).float() / 255


def filled(patches: UInt8[Tensor, "b 3 s s"], grid: tuple[int, int]) -> Tensor:
    """Which cells of the grid hold more than one flat colour, bool (b, n)."""
    cells = patches.unflatten(2, (grid[0], -1)).unflatten(4, (grid[1], -1)).permute(0, 2, 4, 1, 3, 5).flatten(4).int()
    return ((cells.amax(-1) - cells.amin(-1)).amax(-1) >= FLAT).flatten(1)


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


@torch.no_grad()
def tokenizer(
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
    grid, mode = network.grid(size), network.training
    network.eval()
    counts = Counts(network.quantizer.codebook_size)
    losses: list[Tensor] = []
    seen = 0
    for _, images in read(source, evaluation_transform(size)):
        pixels = unit(images, device)
        seen += len(images)
        quantized = network(pixels)
        counts.add(quantized.indices.cpu(), images, grid)
        if teacher is not None and network.feature_decoder is not None:
            predicted = network.feature_decoder(quantized.z_q, grid)
            wanted = teacher(pixels, grid)
            losses.append(metrics.feature_loss(predicted.float().cpu(), wanted.float().cpu()))
    network.train(mode)
    found = counts.report() if network.quantizer.discrete else {}
    if losses:
        found["feature_loss"] = float(torch.cat(losses).mean())
    return found | {"images": seen}


@torch.no_grad()
def reconstruct(
    network: Tokenizer, decoder: nn.Module, images: UInt8[Tensor, "b 3 s s"], device: torch.device
) -> UInt8[Tensor, "b 3 s s"]:
    """Images through codes and back, as uint8 on the CPU."""
    decoded: Tensor = decoder(network.codes(network.encode(unit(images, device))))
    return pictures.to_uint8(decoded).cpu()


@torch.no_grad()
def decoder(
    network: Tokenizer, pixel_decoder: nn.Module, source: ImageSource, device: torch.device, *, size: int
) -> dict[str, float]:
    """How close reconstructions are to their originals, in pixels: PSNR, SSIM, sharpness, L1, means over images."""
    values: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "sharpness": [], "l1": []}
    for _, images in read(source, evaluation_transform(size)):
        decoded = reconstruct(network, pixel_decoder, images, device)
        for name, per_image in values.items():
            per_image.append(metrics.METRICS[name].function(decoded, images))
    found = {name: mean_of(torch.cat(per_image)) for name, per_image in values.items()}
    measured = {name: value for name, value in found.items() if value is not None}
    return measured | {"images": sum(map(len, values["l1"]))}


class HeldOut(NamedTuple):
    """Tokens of held-out images, and what a proposal network is given with them."""

    numbers: Int64[Tensor, " b"]  # of the images: what a masked network is not shown is a function of them
    indices: Int64[Tensor, "b n"]
    condition: Tensor  # (b, ...), see `Proposal`


def class_numbers(known: Sequence[str], names: Sequence[str]) -> Int64[Tensor, " n"]:
    """The numbers that a network calls other data's classes by: -1 for one that it does not know; the last is for none."""
    return torch.tensor([*(known.index(name) if name in known else -1 for name in names), -1])


@torch.no_grad()
def held_out_tokens(
    tokenizer: Tokenizer, source: ImageSource, device: torch.device, *, size: int, classes: Sequence[str] = (),
    captions: Callable[[Sequence[str]], Tensor] | None = None,
) -> Iterator[HeldOut]:  # fmt: skip
    """Held-out images as a proposal network reads them.

    Args:
        classes: names of the classes that the network knows; images of any other are predicted without class.
        captions: texts to conditions, for a text-conditional network, which is given the first caption of each image.
    """
    known = class_numbers(classes, source.classes)
    for numbers, images in read(source, evaluation_transform(size)):
        if captions:
            texts = [next(iter(source.captions(i)), "") for i in numbers]
            condition = captions(texts)
            condition[torch.tensor([not text for text in texts])] = (
                0  # as in training, not a tower's "" with its end token
            )
        else:
            condition = known[torch.tensor([source.label(i) for i in numbers])]
        yield HeldOut(torch.tensor(numbers), tokenizer.encode(unit(images, device)), condition)


@torch.no_grad()
def proposal(
    network: Proposal, batches: Iterable[HeldOut], device: torch.device, *, mask_ratio: float
) -> dict[str, float]:
    """How well a proposal network predicts held-out tokens: `proposal_ppl` (AR) or `masked_ce_<ratio>` (NAR), and accuracy.

    It is put into eval mode meanwhile.

    Args:
        mask_ratio: share of the tokens that a masked network has to predict.
    """
    total, right, count, images = 0.0, 0.0, 0, 0
    masked = not hasattr(network, "nll")
    training = network.training
    network.eval()
    for batch in batches:
        numbers, indices, condition = (part.to(device) for part in batch)
        if masked:
            nats, hits = network.judged(indices, condition, numbers, mask_ratio)  # type: ignore[operator]
        else:
            nats, hits = network.judged(indices, condition)  # type: ignore[operator]
        total, right = total + float(nats.double().sum()), right + float(hits.double().sum())
        count, images = count + nats.numel(), images + len(indices)
    network.train(training)
    accuracy = metrics.token_accuracy(right, count)
    if masked:
        at = f"{mask_ratio:.2f}"
        return {
            masked_ce_name(mask_ratio): metrics.masked_ce(total, count),
            f"masked_accuracy_{at}": accuracy,
            "images": images,
        }
    found = {"proposal_ppl": metrics.proposal_ppl(total, count), "token_accuracy": accuracy}
    return found | {"tokens": count, "images": images}


def read_samples(samples: Artifact, numbers: Sequence[int]) -> UInt8[Tensor, "n 3 s s"]:
    """Images of a samples artifact.

    Raises:
        TokError: a file is missing or damaged.
    """
    facts = samples.facts
    return store.read(samples.path, numbers, form=facts.get("format", "png"), per_file=facts.get("per_file", 1))


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


@torch.no_grad()
def tokenizer_preview(
    network: Tokenizer,
    source: ImageSource,
    device: torch.device,
    size: int,
    teacher: Teacher,
    path: Path,
    columns: int = 12,
) -> None:
    """A sheet of originals, the teacher's features, what codes predict of them, and the codes themselves, in false colours."""
    chosen = evenly(len(source), columns)
    _, images = next(read(source, evaluation_transform(size), chosen))
    grid, mode = network.grid(size), network.training
    network.eval()
    quantized = network(unit(images, device))
    assert network.feature_decoder is not None
    wanted = F.normalize(teacher(unit(images, device), grid), dim=-1)
    predicted = F.normalize(network.feature_decoder(quantized.z_q, grid).float(), dim=-1)
    network.train(mode)
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


@torch.no_grad()
def decoder_preview(
    network: Tokenizer, pixel_decoder: nn.Module, source: ImageSource, device: torch.device, size: int, path: Path,
    columns: int = 12,
) -> None:  # fmt: skip
    """A sheet of originals and their reconstructions; both networks are in eval mode."""
    chosen = evenly(len(source), columns)
    _, images = next(read(source, evaluation_transform(size), chosen))
    rows = {"original": images, "reconstruction": reconstruct(network, pixel_decoder, images, device)}
    pictures.save_png(pictures.comparison_sheet(rows), path)
