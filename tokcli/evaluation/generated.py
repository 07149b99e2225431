"""Generated images against references: how they were drawn, and every metric that an extractor's one pass allows."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokcli.artifact.manifest import canonical_hash
from tokcli.artifact.opening import Artifact
from tokcli.evaluation.records import Against, Measurement
from tokcli.evaluation.references import Reference
from tokcli.measure.extractors import BATCH, PROTOCOLS, Extractor, Seen, chosen, look
from tokcli.measure.previews import read_samples
from tokcli.metrics import METRICS, Takes
from tokcli.metrics.bootstrap import WIDTH
from tokcli.metrics.fid import Moments
from tokcli.metrics.inception_score import SPLITS
from tokcli.metrics.neighbours import K_COVERAGE, neighbours
from tokcli.metrics.reported import Reported, ask
from tokcli.progress import passing

log = logging.getLogger("tok")
SERVES: tuple[Takes, ...] = ("moments", "spatial_moments", "moments_beside_real", "sets", "neighbours", "logits")
Roles = Callable[[Extractor], tuple[str, ...]]


class HeldOut(NamedTuple):
    """Real images that the networks were not trained on.

    Args:
        id: of the data set.
        seen_by: an extractor's view of them.
    """

    id: str
    seen_by: Callable[[Extractor], Reference]


def judge_samples(
    a: Artifact,
    extractors: Sequence[Extractor],
    references: Callable[[Extractor], list[Reference]],
    roles: Roles,
    device: torch.device,
    *,
    held_out: HeldOut | None = None,
    protocols: Sequence[str] = (),
    manifold: int,
    bootstrap: int,
) -> list[Measurement]:
    """All metrics of a samples artifact, by extractor and reference.

    Args:
        references: the references that an extractor has.
        roles: those that an extractor had in the lineage's training.
        held_out: real images beside which generated ones stand where a reference is of others; None: no such metrics.
        protocols: names of several extractors that the recipe asks for.
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
            views += _beside_real(seen, reference, held_out) if held_out else []
        for view in views:
            found += _asked(view, extractor, seen.features, bootstrap, roles(extractor))
    called = {extractor.asked: extractor.name for extractor in extractors}
    for name in protocols:
        found += _over(found, name, [called[one] for one in PROTOCOLS[name]])
    return found


class View(NamedTuple):
    """What some metrics take, of one set of samples.

    Args:
        takes: see `Metric`.
        given: the metrics' arguments.
        images: generated ones in it.
        against: the real images, how many of how many.
        by: what else the numbers are of, in words.
    """

    takes: Takes
    given: tuple[Any, ...]
    images: int
    against: Against | None = None
    by: str | None = None


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


def _beside_real(seen: Seen, reference: Reference, held_out: HeldOut) -> Iterator[View]:
    """What compares generated images, and as many held-out ones, with other real images; nothing where these are the held-out ones."""
    if len(seen.features) < 2 or reference.against.id == held_out.id:
        return
    real = held_out.seen_by(seen.extractor)
    n = 0 if real.features is None else min(len(seen.features), len(real.features))
    if real.features is not None and n > 1:
        sets = [_some(seen.features, n, seen.moments.name), _some(real.features, n, real.gaussian.name)]
        beside = f"over that of as many images of {real.against.name} ({real.against.id})"
        yield View("moments_beside_real", (*sets, reference.gaussian), n, reference.against, beside)


def _some(features: Tensor, number: int, name: str) -> Moments:
    """Moments of so many images, at random."""
    moments = Moments(name)
    moments.update(features[list(chosen(len(features), number))])
    return moments


def _over(found: Sequence[Measurement], protocol: str, names: Sequence[str]) -> Iterator[Measurement]:
    """One number of those of a protocol's extractors, of every metric that says how, for each reference that all have."""
    groups: dict[tuple[str, Any], dict[str, Measurement]] = {}
    for m in found:
        if m.what.declared.over_extractors is not None and m.what.extractor in names:
            groups.setdefault((m.what.metric, m.against), {})[str(m.what.extractor)] = m
    for (key, _), of in groups.items():
        if len(of) == len(names):
            make, first = METRICS[key].over_extractors, of[names[0]]
            assert make is not None
            roles = tuple(dict.fromkeys(role for m in of.values() for role in m.involved))
            by = "; ".join(filter(None, (first.by, f"over {', '.join(names)}")))
            value = make([m.value for m in of.values()])
            yield replace(first, what=Reported(key, protocol), value=value, by=by, involved=roles)


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
            by=view.by,
            interval=interval,
            deviation=number.deviation,
            involved=involved,
        )


LEGIBLE = 60  # characters of captions or classes that are said, and not counted


def mode_of(a: Artifact) -> str | None:
    """`ar` or `nar`, `t2i` of samples that were drawn for captions; None where an artifact has none."""
    return "t2i" if a.recipe.get("sample", {}).get("prompts") else a.facts.get("mode")


def asked_for(sample: Mapping[str, Any]) -> str | None:
    """What samples were asked to show, in words, unless it is all classes in rotation: only equal requests are comparable."""
    for key, called in (("prompts", "captions"), ("classes", "classes")):
        asked = sample.get(key)
        if isinstance(asked, str):
            return f"{called} as in the {asked}"
        if asked:
            said = ", ".join(map(str, asked))
            many = f"{len(asked):,} {called} ({canonical_hash(asked)[:8]})"
            return f"{called} {said}" if len(said) <= LEGIBLE else many
    return None
