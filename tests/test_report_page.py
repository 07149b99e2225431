"""`report.html` says what `metrics.json` says, in a real browser: table, provenance, sweeps, lineage, curves."""

import json
import re
from dataclasses import replace

import pytest
from browser import Browser, browser  # noqa: F401  the fixture
from PIL import Image

from tokcli.evaluation import charts
from tokcli.evaluation import html as pages
from tokcli.evaluation.html import Picture, write_report
from tokcli.evaluation.records import SCHEMA, Against, Measured, Measurement
from tokcli.evaluation.report_page import read_log
from tokcli.evaluation.tables import build_tables
from tokcli.metrics.reported import Reported

VAL = Against("statistics-1", "set/<val>", 285)
SCALES = (1.0, 1.5, 2.0, 3.0)
EXTRACTORS = {"efflite0": {"sha256": "57934424abcdef", "size": 256, "resize": "bilinear"}}


def measured(kind, id, found, inputs, mode=None, recipe=None):
    return Measured(
        f"{kind}-{id}", kind, "vqkd", f"/ws/{kind}-{id}", "tokenizer-1", mode, 64, inputs, recipe or {}, found
    )


def drawn(number, scale):
    what = lambda metric: Reported(metric, "efflite0", "ar")  # noqa: E731
    found = [
        Measurement(what("fd"), (50.0, 40.0, 38.0, 45.0)[number], 500, against=VAL, interval=(30.0, 60.0), involved=("teacher",)),
        Measurement(what("precision"), (0.3, 0.4, 0.5, 0.45)[number], 500, against=VAL),
        Measurement(what("recall"), (0.6, 0.5, 0.4, 0.2)[number], 500, against=VAL),
    ]  # fmt: skip
    recipe = {"stage": "sample", "seed": 0, "sample": {"cfg_scale": scale, "top_k": 0}}
    return measured("samples", str(number), found, {"proposal": "proposal-1", "decoder": "decoder-1"}, "ar", recipe)


@pytest.fixture(scope="module")
def report():
    """A family with four samples of one proposal, as `metrics.json` holds it; and the samples' recipes."""
    rfd = Measurement(Reported("rfd", "efflite0"), 12.3456, 285, against=VAL)
    family = [
        measured("tokenizer", "1", [Measurement(Reported("codebook_usage"), 0.92, 18240, "tokens", VAL)], {"data": "data-1"}),
        measured("decoder", "1", [rfd], {"data": "data-1", "tokenizer": "tokenizer-1"}),
        measured("proposal", "1", [Measurement(Reported("proposal_ppl"), 13.01, 18240, "tokens", VAL)], {"tokens": "tokens-1"}, "ar"),
        *map(drawn, range(4), SCALES),
    ]  # fmt: skip
    family[2] = replace(family[2], name="<b>bold</b>")
    protocol = {
        "held_out": {"id": "data-2", "name": "set/val", "images": 285}, "resize": "centre crop",
        "references": [{"id": "statistics-1", "name": "set/val"}], "extractors": EXTRACTORS, "mask_ratio": 0.5,
    }  # fmt: skip
    found = {"schema": SCHEMA, "protocol": protocol, "artifacts": [m.as_json() for m in family]}
    found |= {"table": build_tables(family).as_json}
    return json.loads(json.dumps(found)), {m.id: m.recipe for m in family}


@pytest.fixture(scope="module")
def page(tmp_path_factory, report):
    folder = tmp_path_factory.mktemp("report")
    Image.new("RGB", (900, 40), "red").save(folder / "sheet.png")
    log = [{"step": s, "epoch": 0.1 * s, "loss": 1 / s, "nan": float("nan"), "note": "text"} for s in range(1, 900)]
    picture = Picture(folder / "sheet.png", "Originals", "<i>in red</i>")
    name = write_report(
        folder, report[0], logs={"tokenizer-1": log}, recipes=report[1], sheets=[picture], title="a & b"
    )
    return folder / name


@pytest.fixture
def shown(browser: Browser, page) -> Browser:  # noqa: F811
    browser.open(page)
    return browser


def test_the_report_opens_from_disk_alone(shown):
    assert shown.errors() == [] and all(re.match(r"(file|data):", url) for url in shown.requests())
    assert shown.run("return document.querySelector('img').naturalWidth") == 900
    assert shown.texts("h1") == ["a & b"] and "<i>in red</i>" in shown.texts("figcaption")[0]


def test_the_tables_equal_metrics_json(shown, report):
    table = report[0]["table"]
    read = (
        "const own = n => [...n.querySelectorAll('th, td')].map(c => (c.querySelector('.number') || c).firstChild.textContent);"
        "const table = [...document.querySelectorAll('section')].find(n => n.querySelector('h2').textContent === 'Table');"
        "return [...table.querySelectorAll('table')].map(t => [...t.rows].map(own))"
    )
    paper, more = shown.run(read)
    text = lambda row, column: row["cells"].get(column["key"], {"text": "-"})["text"]  # noqa: E731
    assert paper[0] == ["tokenizer", *(c["title"] for c in table["columns"])]
    rows = [[row["name"], *(text(row, c) for c in table["columns"])] for row in table["rows"]]
    empty = {n for n, c in enumerate(table["columns"], 1) if not any(c["key"] in row["cells"] for row in table["rows"])}
    assert empty  # said once, by a cell beside all rows
    rows = [
        ["not measured" if n in empty else t for n, t in enumerate(row) if number == 0 or n not in empty]
        for number, row in enumerate(rows)
    ]
    assert paper[1:] == rows
    assert more[0] == ["metric", *(row["name"] for row in table["rows"])]
    assert more[1:] == [[c["title"], *(text(row, c) for row in table["rows"])] for c in table["more"]]


def test_a_number_tells_where_it_comes_from_when_it_has_the_focus(shown):
    visible = "return [...document.querySelectorAll('.tip')].filter(n => n.checkVisibility()).map(n => n.innerText)"
    assert shown.run(visible) == []
    shown.run("[...document.querySelectorAll('.number')].find(n => n.firstChild.textContent.includes('50.00')).focus()")
    (tip,) = shown.run(visible)
    assert tip.splitlines() == [
        "fd_efflite0 = 50.0", "of samples-0, /ws/samples-0", "N: 500 images, 64 px", "reference: set/<val> (statistics-1), 285 images",
        "extractor: efflite0 (sha256 57934424, 256 px, bilinear)", "95 % interval: 30 to 60",
        "* its judge took part in the training: teacher",
    ]  # fmt: skip
    box = shown.run(
        "return [...document.querySelectorAll('.tip')].find(n => n.checkVisibility()).getBoundingClientRect().toJSON()"
    )
    assert box["left"] >= 0 and box["bottom"] <= 900


def test_of_two_references_with_equal_values_each_cell_names_its_own(report):
    twice = drawn(0, 1.0)
    twice.measurements[0] = replace(twice.measurements[0], by="12 captions (abc)")
    twice.measurements.append(replace(twice.measurements[0], against=replace(VAL, id="statistics-2", name="set/train")))
    told = {**report[0], "artifacts": [twice.as_json()]}
    (row,) = build_tables([twice]).as_json["rows"]
    tips = [pages.provenance(told, cell) for key, cell in row["cells"].items() if key.startswith("fd_")]
    assert [tip[3] for tip in tips] == [
        "reference: set/<val> (statistics-1), 285 images",
        "reference: set/train (statistics-2), 285 images",
    ]
    assert all("12 captions (abc)" in tip for tip in tips)


def test_nothing_sticks_out_of_a_small_screen(browser, page):  # noqa: F811
    browser.open(page, width=360, height=640)
    assert browser.run("return document.documentElement.scrollWidth") <= 360


def test_samples_of_one_network_are_drawn_as_sweeps(shown, report):
    titles = shown.texts("section .charts svg text.title")
    assert "fd_efflite0 over cfg_scale" in titles and "recall_efflite0 against precision_efflite0" in titles
    names = "return [...document.querySelectorAll('svg')].find(n => n.ariaLabel === 'recall_efflite0 against precision_efflite0')"
    best = shown.run(names + ".querySelectorAll('.best').length")
    assert best == 3  # 3.0 has less of both than 2.0


def test_precision_and_recall_of_two_extractors_are_not_on_one_chart():
    both = [
        {"metric": f"{m}_{e}", "fields": {"metric": m, "extractor": e}} for m in ("precision", "recall") for e in "xy"
    ]
    drawn = [{"id": i, "metrics": {m["metric"]: 0.5 for m in both}, "measurements": both} for i in "ab"]
    titles = re.findall('aria-label="([^"]+)"', "".join(charts._pareto(drawn, ["1", "2"])))
    assert titles == ["recall_x against precision_x", "recall_y against precision_y"]


def test_the_lineage_names_every_artifact_and_draws_each_input_once(shown, report):
    artifacts = report[0]["artifacts"]
    told = shown.texts(".lineage title")
    assert all(any(a["id"] in text for text in told) for a in artifacts)
    inputs = sum(len(a["inputs"]) for a in artifacts)  # one of them, the decoder's data, the tokenizer has too
    assert shown.run("return document.querySelectorAll('.edge').length") == inputs - 1
    assert shown.run("return document.querySelectorAll('b').length") == 1  # the caption's: names are text


def test_curves_show_finite_numbers_of_the_log(shown):
    assert [t for t in shown.texts("details svg text.title")] == ["loss: 0.001112"]


def test_a_long_curve_keeps_its_end_and_few_points():
    points = charts.thin([charts.Point(x, 0.0) for x in range(10_001)])
    assert len(points) <= charts.POINTS + 1 and points[0].x == 0 and points[-1].x == 10_000


def test_one_value_alone_lies_in_the_middle():
    picture = charts.scatter([charts.Point(0.0, 2.0, "a"), charts.Point(0.0, 2.0, "b")], "t", "x")
    x, y = (float(re.search(rf'c{axis}="([\d.]+)"', picture)[1]) for axis in "xy")
    assert 150 < x < 200 and 70 < y < 95 and "e-" not in picture


def test_names_of_close_points_do_not_lie_on_each_other():
    near = [charts.Point(1.0 + 0.001 * i, 2.0, f"scale {i}", f"tip {i}", best=i == 3) for i in range(20)]
    picture = charts.scatter([charts.Point(0.0, 1.0, "alone"), *near], "t", "x")
    shown = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">((?:scale|alone)[^<]*)<', picture)
    assert {"alone", "scale 3"} <= {name for *_, name in shown} and len(shown) < 10
    boxes = []
    for x, y, anchor, name in shown:
        wide = charts.LETTER * len(name)
        left = float(x) - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
        boxes.append((left, left + wide, float(y) - charts.LINE + 2, float(y) + 2))
        assert left > charts.LEFT and left + wide < charts.WIDTH
    for number, (left, right, top, bottom) in enumerate(boxes):
        others = boxes[:number]
        assert not any(left < o[1] and o[0] < right and top < o[3] and o[2] < bottom for o in others)
    assert all(f"<title>tip {i}</title>" in picture for i in range(20))
    below = re.findall("<li>(.*?)</li>", picture)
    assert sorted([*below, *(name for *_, name in shown)]) == sorted(["alone", *(f"scale {i}" for i in range(20))])
    assert [re.search(rf">{n}</text></g>", picture) is not None for n in range(1, len(below) + 1)] == [True] * len(
        below
    )


def test_an_axis_that_begins_at_zero_shows_it():
    points = [charts.Point(0.4, 40.0, "a"), charts.Point(0.5, 50.0, "b")]
    left = lambda picture: float(re.search(r'cx="([\d.]+)"', picture)[1])  # noqa: E731
    near, far = charts.scatter(points, "t", "x"), charts.scatter(points, "t", "x", zero_x=True)
    assert left(near) < 80 and left(far) > 200 and ">0<" in far and ">0<" not in near


def test_dots_lie_on_one_axis_with_their_intervals():
    picture = charts.dots(
        [charts.Dot("first", 10.0, (5.0, 15.0)), charts.Dot("second", 20.0, None, "20 of b", True)], "rFD"
    )
    dots = [(kind, float(x)) for kind, x in re.findall(r'circle class="(\w+)" cx="([\d.]+)"', picture)]
    line = [float(x) for x in re.search(r'class="line" d="M([\d.]+) \d+H([\d.]+)"', picture).groups()]
    assert [kind for kind, _ in dots] == ["best", "rest"]
    assert line[0] < dots[0][1] < line[1] < dots[1][1] and dots[0][1] == pytest.approx(sum(line) / 2, abs=0.1)
    assert "<title>20 of b</title>" in picture and "<title>first</title>" in picture


def test_pictures_and_charts_come_before_the_long_table(page):
    headings = re.findall("<h2>(.*?)</h2>", page.read_text())
    assert headings[:3] == ["Pictures", "Comparison", "Table"]
    assert 'aria-label="FD_AR efflite0 ↓"' in page.read_text()  # four samples have one


def test_the_front_holds_what_no_other_beats():
    places = [(1.0, 5.0), (2.0, 4.0), (2.0, 6.0), (3.0, 3.0), (0.5, 5.0)]
    assert charts.front(places, (1, 1)) == [False, False, True, True, False]
    assert charts.front(places, (-1, -1)) == [False, True, False, True, True]


def test_lines_that_are_no_record_are_passed_over(make_artifact, tmp_path):
    made = make_artifact(tmp_path / "a", log='{"step": 1, "loss": 2}\n{"step": 2, "lo\n[3]\n')
    assert read_log(made) == [{"step": 1, "loss": 2}]


def test_samples_of_another_number_decoder_or_request_are_not_on_one_curve():
    def sweep(*drawn):
        artifacts, recipes = [], {}
        for number, (scale, count, decoder, by) in enumerate(drawn):
            key = f"samples-{number}"
            recipes[key] = {"sample": {"cfg_scale": scale, "per_class": 1}}
            artifacts.append({
                "id": key, "kind": "samples", "inputs": {"proposal": "p", "decoder": decoder}, "metrics": {"fd_x": 10.0 + number},
                "measurements": [{"metric": "fd_x", "fields": {"metric": "fd", "extractor": "x"}, "count": count, "by": by}],
            })  # fmt: skip
        return charts.sweeps({"artifacts": artifacts}, recipes)

    first = (1.0, 100, "d", None)
    for other in ((2.0, 5000, "d", None), (2.0, 100, "e", None), (2.0, 100, "d", "classes Flags")):
        assert sweep(first, other) == ""
    assert "fd_x over cfg_scale" in sweep(first, (2.0, 100, "d", None))
