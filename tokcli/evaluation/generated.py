"""Generated images against references: every metric that an extractor's one pass allows."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from tokcli import metrics
from tokcli.artifact.reading import Artifact
from tokcli.evaluation.extractors import BATCH, Extractor, Seen, chosen, look
from tokcli.evaluation.records import Against, Measurement
from tokcli.evaluation.references import Reference
from tokcli.measure.previews import read_samples
from tokcli.metrics import named
from tokcli.metrics.bootstrap import WIDTH, bootstrap_error
from tokcli.metrics.fid import Gaussian, Moments
from tokcli.metrics.inception_score import SPLITS
from tokcli.metrics.neighbours import K_COVERAGE, neighbours

log = logging.getLogger("tok")
Roles = Callable[[Extractor], tuple[str, ...]]


def judge_samples(
    a: Artifact, extractors: Iterable[Extractor], references: Callable[[Extractor], list[Reference]], roles: Roles,
    device: torch.device, *, manifold: int, bootstrap: int,
) -> list[Measurement]:  # fmt: skip
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
        pieces = (read_samples(a, range(i, min(i + BATCH, number))) for i in range(0, number, BATCH))
        keep = range(number) if bootstrap else chosen(number, manifold)
        seen = look(pieces, Seen(extractor, f"{a.path.name}, {extractor.name}", keep, scored=True), device)
        kept = seen.features
        part = kept[list(chosen(number, manifold))] if bootstrap else kept
        shared: dict[str, Any] = {"extractor": extractor.name, "involved": roles(extractor)}
        found += _score(seen, number, shared)
        for reference in references(extractor):
            found.append(frechet("fd", seen.moments, kept, reference.gaussian, reference.against, bootstrap, shared))
            if seen.spatial is not None and reference.spatial is not None:
                value = metrics.frechet_distance(seen.spatial, reference.spatial)
                name = named("sfd", extractor.name)
                found.append(Measurement(name, value, number, against=reference.against, **shared))
            if manifold and reference.features is not None:
                found += _comparisons(part, reference.features, reference.against, shared)
    return found


def frechet(
    base: str, ours: Moments, kept: Tensor, real: Moments | Gaussian, against: Against, bootstrap: int, shared: dict[str, Any],
) -> Measurement:  # fmt: skip
    """A Fréchet distance with its interval.

    Args:
        base: `fd` or `rfd`.
        kept: features of all of our images, where there is a bootstrap.
        shared: the extractor's name and its roles.
    """
    value = metrics.frechet_distance(ours, real)
    interval = None
    if bootstrap:
        half = WIDTH * bootstrap_error(kept, real, bootstrap)
        interval = (max(0.0, value - half), value + half)
    name = named(base, shared["extractor"])
    return Measurement(name, value, ours.count, against=against, interval=interval, **shared)


def _score(seen: Seen, number: int, shared: dict[str, Any]) -> list[Measurement]:
    logits = seen.logits
    if logits is None or number < SPLITS:
        return []
    score = metrics.METRICS["inception_score"].function(logits)
    name = named("inception_score", shared["extractor"])
    return [Measurement(name, score.mean, number, deviation=score.deviation, **shared)]


def _comparisons(ours: Tensor, real: Tensor, against: Against, shared: dict[str, Any]) -> list[Measurement]:
    """Metrics of feature sets; `against` says how many real images of how many were compared."""
    compared = Against(against.id, against.name, len(real))
    distance = metrics.METRICS["kid"].function(ours, real)
    name = named("kd", shared["extractor"])
    found = [Measurement(name, distance.mean, len(ours), against=compared, deviation=distance.deviation, **shared)]
    if min(len(ours), len(real)) > K_COVERAGE:
        held = neighbours(real, ours)
        for base in ("precision", "recall", "density", "coverage"):
            value = metrics.METRICS[base].function(held)
            found.append(Measurement(named(base, shared["extractor"]), value, len(ours), against=compared, **shared))
    return found
