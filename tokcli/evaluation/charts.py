"""Charts as SVG text, drawn in the page's own colours: curves, points with their names, and a lineage from left to right."""

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tokcli.metrics import METRICS
from tokcli.recipe.sample_options import charted

WIDTH, HEIGHT = 300, 170
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 28, 34
POINTS = 300  # of a curve at most: more cannot be seen
LETTER, LINE, DOT = 6.0, 11.0, 4.0  # pixels: the width and height that a name's letters are given, a point's radius
NODE_W, NODE_H, GAP_X, GAP_Y = 220, 44, 50, 14


class Point(NamedTuple):
    """A point of a chart.

    Args:
        x, y: where.
        name: written beside it.
        tip: shown when it is pointed at.
        best: drawn as one of the best.
    """

    x: float
    y: float
    name: str = ""
    tip: str = ""
    best: bool = True


class Dot(NamedTuple):
    """A line of a chart of dots.

    Args:
        name: written above it.
        value: where the dot lies.
        interval: the ends of the line through it; None: no line.
        tip: shown when it is pointed at.
        marked: drawn hollow.
    """

    name: str
    value: float
    interval: Sequence[float] | None = None
    tip: str = ""
    marked: bool = False


def number(value: float) -> str:
    """Four digits, without an exponent where there is room."""
    return f"{value:,.0f}" if 10_000 <= abs(value) < 1_000_000 else f"{value:.4g}"


def thin(points: Sequence[Point]) -> list[Point]:
    """Every so manieth point, and the last one."""
    step = max(1, math.ceil(len(points) / POINTS))
    return [*points[:-1:step], points[-1]] if points else []


class Frame:
    """The axes of a chart, and where a value lies between them."""

    def __init__(
        self, points: Sequence[Point], room: float = 0.0, *, zero_x: bool = False, zero_y: bool = False
    ) -> None:
        self.low_x, self.high_x = _span([p.x for p in points] + [0.0] * zero_x)
        self.low_y, self.high_y = _span([p.y for p in points] + [0.0] * zero_y)
        self.room = room  # pixels kept free at every side, for names

    def at(self, point: Point) -> tuple[float, float]:
        """Where a point lies in the picture, in pixels."""
        across = (point.x - self.low_x) / (self.high_x - self.low_x)
        up = (point.y - self.low_y) / (self.high_y - self.low_y)
        wide, high = WIDTH - LEFT - RIGHT - 2 * self.room, HEIGHT - TOP - BOTTOM - 2 * self.room
        return LEFT + self.room + across * wide, HEIGHT - BOTTOM - self.room - up * high

    def draw(self, title: str, label: str, inside: str) -> str:
        """The picture: title above, the ends of both axes, the x axis's name below."""
        floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        texts = [
            (2, 14, "start", "title", title),
            (LEFT - 5, floor - self.room, "end", "", number(self.low_y)),
            (LEFT - 5, TOP + 8 + self.room, "end", "", number(self.high_y)),
            (LEFT + self.room, floor + 15, "middle" if self.room else "start", "", number(self.low_x)),
            (right - self.room, floor + 15, "middle" if self.room else "end", "", number(self.high_x)),
            ((LEFT + right) / 2, floor + 28, "middle", "", label),
        ]
        words = "".join(
            f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" class="{kind}">{html.escape(text)}</text>'
            for x, y, anchor, kind, text in texts
        )
        axes = f'<path class="axis" d="M{LEFT} {TOP}V{floor}H{right}"/>'
        return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">{axes}{words}{inside}</svg>'


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    apart = 0.0 if high > low else max(abs(low) / 20, 0.05)  # one value alone lies in the middle
    return low - apart, high + apart


def curve(points: Sequence[Point], title: str, label: str) -> str:
    """A line through finite points in the order of x; its last value stands in the title."""
    frame, shown = Frame(points), thin(points)
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in map(frame.at, shown))
    return frame.draw(f"{title}: {number(points[-1].y)}", label, f'<path class="line" d="M{path}"/>')


def dots(lines: Sequence[Dot], title: str) -> str:
    """One line per dot, its name above and its value at the right, all on one axis."""
    ends = [v for dot in lines for v in (dot.value, *(dot.interval or ()))]
    low, high = _span(ends)
    edge, row = 8, 27
    floor = TOP + row * len(lines) + 4

    def at(value: float) -> float:
        return edge + DOT + (value - low) / (high - low) * (WIDTH - 2 * (edge + DOT))

    parts = [f'<text x="2" y="14" class="title">{html.escape(title)}</text>']
    for place, dot in enumerate(lines):
        y = TOP + row * place + 21
        shown = html.escape(_short(dot.name, 36))
        parts.append(f'<g tabindex="0"><title>{html.escape(dot.tip or dot.name)}</title>')
        parts.append(f'<text x="{edge}" y="{y - 9}">{shown}</text>')
        parts.append(f'<text x="{WIDTH - edge}" y="{y - 9}" text-anchor="end">{number(dot.value)}</text>')
        parts.append(f'<path class="axis" d="M{edge} {y}H{WIDTH - edge}"/>')
        if dot.interval is not None:
            parts.append(f'<path class="line" d="M{at(dot.interval[0]):.1f} {y}H{at(dot.interval[1]):.1f}"/>')
        kind = "rest" if dot.marked else "best"
        parts.append(f'<circle class="{kind}" cx="{at(dot.value):.1f}" cy="{y}" r="{DOT:.0f}"/></g>')
    for x, anchor, value in ((edge, "start", low), (WIDTH - edge, "end", high)):
        parts.append(f'<text x="{x}" y="{floor + 11}" text-anchor="{anchor}">{number(value)}</text>')
    size = f'viewBox="0 0 {WIDTH} {floor + 16}"'
    return f'<svg {size} role="img" aria-label="{html.escape(title)}">{"".join(parts)}</svg>'


def scatter(
    points: Sequence[Point], title: str, label: str, *, joined: bool = False, zero_x: bool = False, zero_y: bool = False
) -> str:
    """Points with their names; the best are filled, and joined by a line where `joined`.

    A name that has no room beside its point is a number there, and stands under the chart.

    Args:
        zero_x, zero_y: that axis begins at 0.
    """
    frame = Frame(points, room=16, zero_x=zero_x, zero_y=zero_y)
    best = sorted(p for p in points if p.best)
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in map(frame.at, best))
    parts = [f'<path class="line" d="M{path}"/>'] if joined and best else []
    places = [frame.at(point) for point in points]
    names = _names(places, points)
    below = []
    for number, (point, (x, y)) in enumerate(zip(points, places, strict=True)):
        if point.name and number not in names:
            below.append(point.name)
            names[number] = f'<text x="{x:.1f}" y="{y - 6:.1f}" text-anchor="middle">{len(below)}</text>'
        parts.append(
            f'<g tabindex="0"><title>{html.escape(point.tip or point.name)}</title>'
            f'<circle class="{"best" if point.best else "rest"}" cx="{x:.1f}" cy="{y:.1f}" r="{DOT:.0f}"/>'
            f"{names.get(number, '')}</g>"
        )
    legend = "".join(f"<li>{html.escape(name)}</li>" for name in below)
    chart = frame.draw(title, label, "".join(parts))
    return f"<div>{chart}<ol>{legend}</ol></div>" if below else chart


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "_Box") -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


def _names(places: Sequence[tuple[float, float]], points: Sequence[Point]) -> dict[int, str]:
    """A name for each point that has room for one: right of it, left, above or below, clear of all points and other names."""
    taken = [_Box(x - DOT, y - DOT, x + DOT, y + DOT) for x, y in places]
    found = {}
    for number in sorted(range(len(points)), key=lambda i: not points[i].best):
        (x, y), name = places[number], points[number].name
        wide = LETTER * len(name)
        for anchor, across, down in (
            ("start", 7, -2),
            ("end", -7, -2),
            ("start", 7, 11),
            ("end", -7, 11),
            ("middle", 0, -8),
            ("middle", 0, 16),
        ):
            left = x + across - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
            box = _Box(left, y + down - LINE + 2, left + wide, y + down + 2)
            inside = left > LEFT and box.right < WIDTH and box.top > TOP - LINE and box.bottom < HEIGHT - BOTTOM
            if inside and not any(box.meets(other) for other in taken):
                taken.append(box)
                found[number] = (
                    f'<text x="{x + across:.1f}" y="{y + down:.1f}" text-anchor="{anchor}">{html.escape(name)}</text>'
                )
                break
    return found


def front(points: Sequence[tuple[float, float]], better: tuple[int, int]) -> list[bool]:
    """Which points no other one beats in one coordinate without losing in the other; `better` is +1 (higher) or -1 each."""
    scaled = [(x * better[0], y * better[1]) for x, y in points]
    return [not any(o != p and o[0] >= p[0] and o[1] >= p[1] for o in scaled) for p in scaled]


class Node(NamedTuple):
    """An artifact in a lineage: two lines of text, and what is shown when it is pointed at."""

    title: str
    detail: str
    tip: str


def lineage(nodes: Mapping[str, Node], edges: Sequence[tuple[str, str]]) -> str:
    """Boxes by how many steps they are from the beginning, and a line from each input to what was made of it.

    An input that something between was made of too has no line of its own: the longer way tells the same.

    Args:
        nodes: by id.
        edges: (input, made of it), both in `nodes`, without cycles.
    """
    depth = dict.fromkeys(nodes, 0)
    for _ in nodes:  # as many rounds as the longest chain can have
        for source, target in edges:
            depth[target] = max(depth[target], depth[source] + 1)
    columns: dict[int, list[str]] = {}
    for name in nodes:
        columns.setdefault(depth[name], []).append(name)
    at = {
        name: (column * (NODE_W + GAP_X) + 2, row * (NODE_H + GAP_Y) + 2)
        for column, names in columns.items()
        for row, name in enumerate(names)
    }
    wide = max(x for x, _ in at.values()) + NODE_W + 2
    high = max(y for _, y in at.values()) + NODE_H + 2
    parts = []
    above = _ancestors(nodes, edges)
    for source, target in edges:
        if any(source in above[other] for other, made in edges if made == target):
            continue
        x0, y0 = at[source][0] + NODE_W, at[source][1] + NODE_H / 2
        x1, y1 = at[target][0], at[target][1] + NODE_H / 2
        middle = max(x0 + 8, x1 - GAP_X / 2)
        parts.append(f'<path class="edge" d="M{x0} {y0}C{middle} {y0} {middle} {y1} {x1} {y1}"/>')
    for name, (x, y) in at.items():
        node = nodes[name]
        lines = "".join(
            f'<text class="{kind}" x="{x + 9}" y="{y + shift}">{html.escape(_short(text))}</text>'
            for kind, shift, text in (("title", 18, node.title), ("", 35, node.detail))
        )
        parts.append(
            f'<g tabindex="0"><title>{html.escape(node.tip)}</title>'
            f'<rect class="node" x="{x}" y="{y}" width="{NODE_W}" height="{NODE_H}" rx="6"/>{lines}</g>'
        )
    size = f'width="{wide}" height="{high}" viewBox="0 0 {wide} {high}"'
    return f'<svg class="lineage" {size} role="img" aria-label="lineage">{"".join(parts)}</svg>'


def _ancestors(nodes: Mapping[str, Node], edges: Sequence[tuple[str, str]]) -> dict[str, set[str]]:
    """All that each node was made of, over any number of steps."""
    above: dict[str, set[str]] = {name: set() for name in nodes}
    for _ in nodes:
        for source, target in edges:
            above[target] |= {source} | above[source]
    return above


def _short(text: str, letters: int = 27) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"


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
            Point(float(v), a["metrics"][metric], number(a["metrics"][metric]), a["id"])
            for v, a in zip(values, samples, strict=True)
            if v is not None
        )
        yield scatter(points, f"{metric} over {keys[0]}", keys[0], joined=True)


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
        best = front(places, (way_x, way_y))
        points = [
            Point(*at, name, f"{name}: {a['id']}", b)
            for at, name, a, b in zip(places, names, samples, best, strict=True)
        ]
        yield scatter(points, f"{y} against {x}", x, joined=True, zero_x=True, zero_y=y in recalls)


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
