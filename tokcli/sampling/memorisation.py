"""Samples beside their nearest training images: they show whether a network has memorised its training set.

A short distance alone means little, because some pictures are simple. Therefore the same is measured for held-out images, which the
network has not seen: samples that are much nearer to the training images than those are copies.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL.Image import Image
from torch import Tensor

from tokcli import pictures
from tokcli.artifact.opening import Artifact, locate
from tokcli.command.data import recorded_data
from tokcli.data.reading import BATCH, read_batches
from tokcli.data.sources import ImageSource, evenly, limited, open_source, padded, sibling
from tokcli.data.transforms import evaluation_transform, unit
from tokcli.errors import TokError
from tokcli.measure.previews import read_samples
from tokcli.pretrained import build_network

log = logging.getLogger("tok")
PIXELS = "pixels"
COMPARED = 1000  # samples, and held-out images, whose nearest training image is looked for
COLUMNS = 12


@dataclass(frozen=True)
class Nearest:
    """Of each query the nearest training image: its distance, number and pixels."""

    distances: Float[Tensor, " m"]
    numbers: Int64[Tensor, " m"]
    images: UInt8[Tensor, "m 3 s s"]

    def __len__(self) -> int:
        return len(self.distances)

    def __getitem__(self, chosen: slice | Tensor) -> "Nearest":
        return Nearest(self.distances[chosen], self.numbers[chosen], self.images[chosen])


def features_of(name: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """uint8 images to features (b, d), float32 on the CPU: unit vectors of a network, or pixels blurred by averaging to 16x16.

    Raises:
        TokError: no such network, or its weights are not at hand.
    """
    if name == PIXELS:
        return lambda images: torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 16).flatten(1)
    extract: Callable[[Tensor], Tensor] = (
        build_network(name, None, role="extractor", weights_flag=None).to(device).pooled
    )

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        return torch.nn.functional.normalize(extract(unit(images, device)).float(), dim=-1).cpu()

    return features


def nearest(
    queries: Float[Tensor, "m d"], source: ImageSource, features: Callable[[Tensor], Tensor], size: int
) -> Nearest:
    """The training image nearest to each query, in one pass and without keeping their features.

    Args:
        queries: features of samples.
        source: training images, made square as for measuring.
        features: as of `features_of`.
        size: pixels.
    """
    best = torch.full((len(queries),), torch.inf)
    numbers = torch.zeros(len(queries), dtype=torch.int64)
    images = torch.zeros(len(queries), 3, size, size, dtype=torch.uint8)
    for batch, pixels in read_batches(source, evaluation_transform(size), desc="nearest training images"):
        # not by a product of matrices, which loses the short distances that matter here
        distance, at = torch.cdist(queries, features(pixels), compute_mode="donot_use_mm_for_euclid_dist").min(1)
        closer = distance < best
        best = torch.where(closer, distance, best)
        numbers[closer] = torch.tensor(batch)[at[closer]]
        images[closer] = pixels[at[closer]]
    return Nearest(best, numbers, images)


def report(samples: Nearest, held_out: Nearest | None, name: str) -> dict[str, float]:
    """Median distances to the nearest training image, and the share of samples nearer than half of the held-out images.

    The share is 0.5 for a network that draws as the data does, and near 1 for one that copies.
    """
    found = {
        f"nearest_{name}": float(np.median(samples.distances.cpu().numpy()))
    }  # torch's is the lower of the middle two
    if held_out is not None:
        median = float(np.median(held_out.distances.cpu().numpy()))
        found[f"nearest_{name}_held_out"] = median
        found[f"nearer_than_held_out_{name}"] = float((samples.distances < median).float().mean())
    return found


def neighbour_sheet(images: UInt8[Tensor, "m 3 s s"], found: Nearest) -> Image:
    """Pairs of rows: samples, and under them their nearest training images; the nearest pairs come first."""
    order = found.distances.argsort(stable=True)
    rows, captions = [], []
    for part in order.split(COLUMNS):
        rows += [images[part], found.images[part]]
        captions += ["sample", "nearest training image"]
    return pictures.contact_sheet(rows, row_labels=captions, title="the nearest pairs first")


class Beside(NamedTuple):
    """What `--neighbours` compares with: training images, and the features by which they are near."""

    training: ImageSource
    features: Callable[[torch.Tensor], torch.Tensor]


def _training_images(proposal: Artifact) -> ImageSource:
    """The images that the network's tokens are of; all of their data set where the tokens are not at hand to say which."""
    recorded = proposal.inputs["data"]
    source = open_source(recorded_data(proposal), size=proposal.facts["use_size"])
    if source.id != recorded["id"]:
        log.warning("--neighbours: %s holds other images or labels than when its tokens were made", recorded["path"])
    tokens = proposal.inputs["tokens"]
    try:
        made = locate(tokens["id"], tokens["path"], proposal.path.parent)
    except TokError as error:
        log.warning(
            "--neighbours: among all images of %s, for its tokens cannot say which were used: %s", source.name, error
        )
        return source
    return limited(source, made.recipe["tokens"].get("images", 0))  # which the first of them do not have


def _squares(source: ImageSource, a: Artifact) -> ImageSource:
    """The images as the tokenizer of an artifact reads them."""
    return padded(source, a.facts["use_size"], a.facts.get("padding"))


def beside_of(names: Sequence[str | None], proposal: Artifact, device: torch.device) -> dict[str, Beside]:
    """What samples are compared with by each name, opened once for all points of a sweep; {} where nothing is to be compared."""
    asked = dict.fromkeys(name for name in names if name)
    if not asked:
        return {}
    training = _squares(_training_images(proposal), proposal)
    return {name: Beside(training, features_of(name, device)) for name in asked}


def compare(samples: Artifact, name: str, beside: Beside) -> dict[str, float]:
    """Draw `neighbours.png`; distances to the nearest training image, of samples and of held-out images."""
    size, number = samples.facts["use_size"], min(samples.facts["number"], COMPARED)
    images, held_out_name = read_samples(samples, range(number)), sibling(beside.training.name, "val")
    queries = [images]
    if held_out_name is not None:
        held_out = _squares(open_source(held_out_name, size=size), samples)
        some = evenly(len(held_out), COMPARED)
        queries += [
            batch for _, batch in read_batches(held_out, evaluation_transform(size), some, desc="held-out images")
        ]
    found = nearest(
        torch.cat([beside.features(part) for batch in queries for part in batch.split(BATCH)]),
        beside.training,
        beside.features,
        size,
    )
    ours, theirs = found[:number], found[number:]
    shown = ours.distances.argsort(stable=True)[: 4 * COLUMNS]
    pictures.save_png(neighbour_sheet(images[shown], ours[shown]), samples.path / "neighbours.png")
    return report(ours, theirs if len(theirs) else None, name)
