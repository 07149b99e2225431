"""Generated images against references: every metric that an extractor's one pass allows."""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokcli.artifact.opening import Artifact
from tokcli.evaluation.extractors import BATCH, Extractor, Seen, chosen, look
from tokcli.evaluation.records import Against, Measurement
from tokcli.evaluation.references import Reference
from tokcli.measure.previews import read_samples
from tokcli.metrics import METRICS, Takes
from tokcli.metrics.bootstrap import WIDTH
from tokcli.metrics.dispatch import ask
from tokcli.metrics.inception_score import SPLITS
from tokcli.metrics.neighbours import K_COVERAGE, neighbours
from tokcli.metrics.reported import Reported
from tokcli.progress import passing

log = logging.getLogger("tok")
SERVES: tuple[Takes, ...] = ("moments", "spatial_moments", "sets", "neighbours", "logits")
Roles = Callable[[Extractor], tuple[str, ...]]


def judge_samples(
    a: Artifact,
    extractors: Iterable[Extractor],
    references: Callable[[Extractor], list[Reference]],
    roles: Roles,
    device: torch.device,
    *,
    manifold: int,
    bootstrap: int,
) -> list[Measurement]:
    """All metrics of a samples artifact, by extractor and reference.

    Args:
        references: the references that an extractor has.
        roles: those that an extractor had in the lineage's training.
        manifold: images at most that neighbours and kernels compare; 0: none of those metrics.
        bootstrap: resampled sets behind the intervals of Fréchet distances; 0: no intervals.

    Raises:
        TokError: damaged images, or features that are not finite.
    """
    number = a.facts["number"]
    found: list[Measurement] = []
    if number < 2:  # of a whole workspace, whose other artifacts are worth measuring
        log.warning("%s: a single image is not compared with others", a.path)
        return found
    for extractor in extractors:
        read = (read_samples(a, range(i, min(i + BATCH, number))) for i in range(0, number, BATCH))
        pieces = passing(read, number, unit="image", desc=f"samples, {extractor.name}", units=len)
        keep = range(number) if bootstrap else chosen(number, manifold)
        seen = look(pieces, Seen(extractor, f"{a.path.name}, {extractor.name}", keep, scored=True), device)
        part = seen.features[list(chosen(number, manifold))] if bootstrap else seen.features
        views: list[View] = []
        if seen.logits is not None and number >= SPLITS:
            views.append(View("logits", (seen.logits,), number))
        for reference in references(extractor):
            views += _views(seen, part if manifold else None, reference)
        for view in views:
            found += _asked(view, extractor, seen.features, bootstrap, roles(extractor))
    return found


class View(NamedTuple):
    """What some metrics take, of one set of samples.

    Args:
        takes: see `Metric`.
        given: the metrics' arguments.
        images: generated ones in it.
        against: the real images, how many of how many.
    """

    takes: Takes
    given: tuple[Any, ...]
    images: int
    against: Against | None = None


def _views(seen: Seen, part: Tensor | None, reference: Reference) -> Iterator[View]:
    """What a reference is compared by.

    Args:
        part: features of the images that neighbours and kernels compare; None: none of those metrics.
    """
    yield View("moments", (seen.moments, reference.gaussian), seen.count, reference.against)
    if seen.spatial is not None and reference.spatial is not None:
        yield View("spatial_moments", (seen.spatial, reference.spatial), seen.count, reference.against)
    real = reference.features
    if part is None or real is None:
        return
    compared = Against(reference.against.id, reference.against.name, len(real))
    yield View("sets", (part, real), len(part), compared)
    if min(len(part), len(real)) > K_COVERAGE:
        yield View("neighbours", (neighbours(real, part),), len(part), compared)


def _asked(
    view: View, extractor: Extractor, kept: Tensor, bootstrap: int, involved: tuple[str, ...]
) -> Iterator[Measurement]:
    """A measurement of every metric that takes a view; of moments with the interval that its standard error makes.

    Args:
        kept: features of all generated images, where there is a bootstrap.
    """
    for key, number in ask(view.takes, *view.given, extractor=extractor.asked):
        error, interval = METRICS[key].error, None
        if error is not None and bootstrap:
            half = WIDTH * error(kept, view.given[1], bootstrap)
            interval = (max(0.0, number.value - half), number.value + half)
        yield Measurement(
            Reported(key, extractor.name),
            number.value,
            view.images,
            against=view.against,
            interval=interval,
            deviation=number.deviation,
            involved=involved,
        )
