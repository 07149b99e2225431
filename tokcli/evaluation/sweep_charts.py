"""Charts of one proposal network sampled in several ways."""

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tokcli.evaluation import charts
from tokcli.evaluation.charts import Point
from tokcli.metrics import METRICS
from tokcli.recipe.sample_options import charted


def sweeps(report: Mapping[str, Any], recipes: Mapping[str, Mapping[str, Any]]) -> str:
    """Charts of every proposal network of which several samples are here and differ in how they were drawn."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for a in report["artifacts"]:
        if a["kind"] == "samples":  # only of one decoder, number and request are their distances comparable
            alike = next(((m["count"], m["by"]) for m in a["measurements"]), (0, None))
            groups.setdefault((a["inputs"].get("proposal", ""), a["inputs"].get("decoder", ""), *alike), []).append(a)
    parts = []
    for (proposal, *_), samples in groups.items():
        drawn = [recipes.get(a["id"], {}).get("sample", {}) for a in samples]
        keys = [key for key in charted() if len({str(one.get(key)) for one in drawn}) > 1]
        if len(samples) > 1 and keys:
            names = [", ".join(str(one.get(key)) for key in keys) for one in drawn]
            shown = [*_against_key(samples, drawn, keys), *_pareto(samples, names)]
            parts.append(
                f'<h3>{html.escape(str(proposal))}: by {html.escape(", ".join(keys))}</h3><div class="charts">{"".join(shown)}</div>'
            )
    return "".join(parts)


def _against_key(
    samples: Sequence[Mapping[str, Any]], drawn: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> Iterable[str]:
    """Each distance over the key that was varied, where it is one key of numbers."""
    values = [one.get(keys[0]) for one in drawn]
    if len(keys) > 1 or not all(isinstance(v, int | float) for v in values):
        return
    for metric in _shared(samples, _is_distance):
        points = sorted(
            Point(float(v), a["metrics"][metric], charts.number(a["metrics"][metric]), a["id"])
            for v, a in zip(values, samples, strict=True)
            if v is not None
        )
        yield charts.scatter(points, f"{metric} over {keys[0]}", keys[0], joined=True)


def _pareto(samples: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Iterable[str]:
    """Distances against precision and against recall, and these two against each other, where measured."""
    distances = _shared(samples, _is_distance)
    precisions = _shared(samples, lambda fields: fields["metric"] == "precision")
    recalls = _shared(samples, lambda fields: fields["metric"] == "recall")
    pairs = [(x, d, 1, -1) for x in (*precisions, *recalls) for d in distances]
    pairs += [
        (p, r, 1, 1) for p in precisions for r in recalls if precisions[p]["extractor"] == recalls[r]["extractor"]
    ]
    for x, y, way_x, way_y in pairs:
        places = [(a["metrics"][x], a["metrics"][y]) for a in samples]
        best = charts.front(places, (way_x, way_y))
        points = [
            Point(*at, name, f"{name}: {a['id']}", b)
            for at, name, a, b in zip(places, names, samples, best, strict=True)
        ]
        yield charts.scatter(points, f"{y} against {x}", x, joined=True, zero_x=True, zero_y=y in recalls)


def _is_distance(fields: Mapping[str, Any]) -> bool:
    """Whether a number compares the features of samples with those of real images, and is better the lower."""
    metric = METRICS[fields["metric"]]
    return metric.takes in ("moments", "sets") and metric.better == "lower"


def _shared(
    samples: Sequence[Mapping[str, Any]], wanted: Callable[[Mapping[str, Any]], bool]
) -> dict[str, Mapping[str, Any]]:
    """Wanted numbers that all samples have: their fields by reported name."""
    found = {m["metric"]: m["fields"] for m in samples[0]["measurements"] if wanted(m["fields"])}
    return {name: fields for name, fields in found.items() if all(name in a["metrics"] for a in samples)}
