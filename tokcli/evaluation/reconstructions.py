"""Every metric of reconstructions against their originals: pixels, feature maps, moments; and which images come out worst."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import UInt8
from PIL.Image import Image
from torch import Tensor, nn

from tokcli import pictures
from tokcli.data.reading import read_batches
from tokcli.data.sources import ImageSource
from tokcli.data.transforms import evaluation_transform, unit
from tokcli.evaluation.generated import Roles
from tokcli.evaluation.records import Against, Measurement
from tokcli.evaluation.references import Reference
from tokcli.losses.perceptual import lpips_heads
from tokcli.measure.decoding import reconstruct, reconstruct_perturbed
from tokcli.measure.extractors import Extractor, Seen, look
from tokcli.metrics import Takes
from tokcli.metrics.reported import PerImage, Reported, ask
from tokcli.models import Tokenizer
from tokcli.pretrained import build_network
from tokcli.recipe.sections import Perturbed

log = logging.getLogger("tok")
SERVES: tuple[Takes, ...] = ("images", "maps", "reconstruction_moments", "perturbed_moments")
LPIPS = "vgg16"  # the network that LPIPS compares by
PAIRS = 4  # whose maps are held at once: of 256 px the first layer's alone take 17 MB an image, twice that in float64


class Maps:
    """Metrics of feature maps of uint8 images: VGG16's five and LPIPS's published heads, as in the package lpips (`net="vgg"`).

    Raises:
        TokError: their weights are not at hand.
    """

    def __init__(self, weights: Path | None, device: torch.device) -> None:
        self.network = build_network(LPIPS, weights, role="lpips", weights_flag="--vgg-weights").to(device)
        self.layers = list(self.network.perceptual_layers)
        self.heads = [head.to(device) for head in lpips_heads(self.layers, self.network.layer_names)]
        self.device = device

    @torch.no_grad()
    def add(self, found: PerImage, images: UInt8[Tensor, "b 3 h w"], targets: UInt8[Tensor, "b 3 h w"]) -> None:
        """Measure pairs of images, a few at a time."""
        for pair in zip(images.split(PAIRS), targets.split(PAIRS), strict=True):
            ours, theirs = (self.network.maps(unit(x, self.device), self.layers) for x in pair)
            found.add(ours, theirs, self.heads)


class Reconstructions(NamedTuple):
    """What was measured, and the worst images: their keys with numbers, and the two rows of a sheet."""

    measurements: list[Measurement]
    worst: list[dict[str, Any]]
    originals: Tensor  # uint8 (w, 3, s, s)
    decoded: Tensor


@torch.no_grad()
def judge_decoder(
    tokenizer: Tokenizer,
    decoder: nn.Module,
    source: ImageSource,
    device: torch.device,
    *,
    size: int,
    extractors: Iterable[Extractor],
    originals: Callable[[Extractor], Reference],
    roles: Roles,
    maps: Maps | None,
    maps_roles: tuple[str, ...],
    worst: int,
    perturb: Perturbed | None = None,
) -> Reconstructions:
    """All metrics of reconstructions of held-out images.

    Args:
        tokenizer, decoder: in eval mode.
        size: pixels at which both are used.
        originals: an extractor's statistics of the same images.
        roles: those that an extractor had in the lineage's training.
        maps: None where LPIPS is not asked for.
        maps_roles: those that its network had there.
        worst: how many of the worst images are named, by LPIPS where it is measured, else by PSNR.
        perturb: of reconstructions from wrong tokens; None: there are none.
    """
    extractors = list(extractors)
    seen = [Seen(e, f"reconstructions, {e.name}", range(0)) for e in extractors]
    wrong = [Seen(e, f"wrong tokens, {e.name}", range(0)) for e in (extractors if perturb else ())]
    numbers: list[int] = []
    pixels, mapped = PerImage("images"), PerImage("maps")
    for batch, images in read_batches(source, evaluation_transform(size), desc="reconstructions"):
        decoded = reconstruct(tokenizer, decoder, images, device)
        numbers += batch
        pixels.add(decoded, images)
        if maps is not None:
            maps.add(mapped, decoded, images)
        for ours in seen:
            look([decoded], ours, device)
        if perturb:
            changed = reconstruct_perturbed(tokenizer, decoder, images, batch, device, **perturb.model_dump())
            for ours in wrong:
                look([changed], ours, device)
    against = Against(source.id, source.name, len(numbers))
    result = [
        Measurement(Reported(key), number.value, number.images or 0, against=against, involved=involved)
        for found, involved in ((pixels, ()), (mapped, maps_roles))
        for key, number in found.numbers.items()
    ]
    if len(numbers) < 2:
        log.warning("--data %s: one image has no distribution: no Fréchet distance", source.name)
        seen, wrong = [], []
    by = f"{perturb.share:.0%} of tokens replaced by one of {perturb.near} near codes" if perturb else None
    asked: list[tuple[Takes, list[Seen], str | None]] = [
        ("reconstruction_moments", seen, None),
        ("perturbed_moments", wrong, by),
    ]
    for takes, looked, how in asked:
        for ours in looked:
            real, judge = originals(ours.extractor), ours.extractor
            result += [
                Measurement(
                    Reported(key, judge.name),
                    number.value,
                    ours.moments.count,
                    against=real.against,
                    involved=roles(judge),
                    by=how,
                )
                for key, number in ask(takes, ours.moments, real.gaussian, extractor=judge.asked)
            ]
    table = pixels.values | mapped.values
    order = -table["lpips"] if maps else table["psnr"]
    rows = order.argsort(stable=True)[:worst].tolist()
    known = lambda r: {name: float(found[r]) for name, found in table.items() if not found[r].isnan()}  # noqa: E731
    named = [{"key": source.key(numbers[r]), **known(r)} for r in rows]
    return Reconstructions(
        result, named, *_pictures([numbers[r] for r in rows], tokenizer, decoder, source, size, device)
    )


def _pictures(
    numbers: list[int], tokenizer: Tokenizer, decoder: nn.Module, source: ImageSource, size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    if not numbers:
        return torch.zeros(0, 3, size, size, dtype=torch.uint8), torch.zeros(0, 3, size, size, dtype=torch.uint8)
    read = [images for _, images in read_batches(source, evaluation_transform(size), numbers)]
    originals = torch.cat(read)
    return originals, reconstruct(tokenizer, decoder, originals, device)


def worst_sheet(found: Reconstructions) -> Image:
    """Originals above their reconstructions, the worst first, under the keys of their files."""
    keys = [f"{Path(w['key']).name} {w['psnr']:.1f} dB" for w in found.worst]
    rows = {"original": found.originals, "reconstruction": found.decoded}
    return pictures.comparison_sheet(rows, column_labels=keys, title="the worst reconstructions")
