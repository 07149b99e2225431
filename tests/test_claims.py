"""The claims suite: its plan, its budgets, its statistics, its page; and the whole of it with two steps a network."""

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import t

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import claims  # noqa: E402
import claims_figures  # noqa: E402
import claims_page  # noqa: E402
import noto_emoji  # noqa: E402
from claims_plan import (  # noqa: E402
    JUDGES,
    MAIN,
    QUANTIZERS,
    SECOND,
    TEACHERS,
    Cell,
    cells,
    fetched,
    judges,
    tokenizer_sets,
    untaught,
)
from claims_results import (  # noqa: E402
    KEPT,
    Noise,
    Point,
    Results,
    Spread,
    contest,
    contests,
    differences,
    hours,
    over_seeds,
    pairs,
    pooled,
    predictor_points,
    rank_correlation,
    read,
    teacher_points,
)

from tokcli import build  # noqa: E402
from tokcli.errors import Interrupted  # noqa: E402
from tokcli.quantizers import QUANTIZERS as FAMILY  # noqa: E402
from tokcli.recipe.yaml import read_yaml  # noqa: E402

RECIPES = ROOT / "recipes" / "claims"


def recipe(name: str) -> dict[str, Any]:
    return read_yaml(RECIPES / f"{name}.yaml")


# --- the plan ---


def test_a_seed_is_a_whole_answer_and_names_are_unique() -> None:
    plan = cells(3)
    names = [cell.name for cell in plan]
    assert len({*names}) == len(names) and {cell.seed for cell in plan} == {3}
    assert [replace(cell, seed=0) for cell in plan] == cells(0)
    assert {cell.quantizer for cell in plan} == {*QUANTIZERS} and {cell.data for cell in plan} == {
        "openmoji",
        "noto",
        "fashion",
    }
    assert {cell.teacher for cell in plan} == {None, *TEACHERS} and {cell.captions for cell in plan} == {True, False}
    assert {"joint"} < {cell.objective for cell in plan} and any(cell.perturb for cell in plan)


def test_the_first_cells_are_the_two_objectives_over_each_quantizer() -> None:
    first = [(cell.objective, cell.quantizer, cell.teacher) for cell in cells(0, ["objective"])]
    over = [pair for name in ("fsq", "lfq") for pair in (("pixels", name, None), ("features", name, MAIN))]
    assert first == [("pixels", "vq", None), ("features", "vq", MAIN), ("features", "vq", SECOND), *over]
    assert cells(0)[: len(first)] == cells(0, ["objective"])


def test_quantizers_have_equally_many_codes() -> None:
    sizes = {
        build.component("quantizer", FAMILY, keys or recipe("tokenizer-joint")["quantizer"]).codebook_size
        for keys in QUANTIZERS.values()
    }
    assert sizes == {256}


def test_a_cell_changes_nothing_but_what_it_is_named_after() -> None:
    changed = {one.partition("=")[0] for cell in cells(0) for one in tokenizer_sets(cell)}
    assert changed == {"objective", "quantizer", "teacher", "perturb", "feature_decoder", "alignment", "encoder"}
    plain = Cell("openmoji", "features", teacher=MAIN)
    assert {*tokenizer_sets(replace(plain, seed=1, data="noto"))} == {*tokenizer_sets(plain)}


def test_decoders_have_equal_networks_losses_and_steps_whether_trained_with_the_tokenizer_or_after_it() -> None:
    joint, after = recipe("tokenizer-joint"), recipe("decoder-conv")
    assert joint["decoder"] == after["decoder"] and joint["loss"] == after["loss"]
    for key in ("steps", "batch_size", "precision"):
        assert joint["train"][key] == after["train"][key]


@pytest.mark.parametrize("mode", ["ar", "nar"])
def test_networks_given_captions_differ_in_their_condition_alone(mode: str) -> None:
    by_class, by_caption = recipe(f"proposal-{mode}"), recipe(f"proposal-{mode}-text")
    assert by_caption.pop("condition")["name"] == "text" and by_caption == by_class
    assert by_class["optim"]["name"] == "muon"


def test_no_extractor_judges_what_it_taught_but_for_the_main_pair() -> None:
    for cell in cells(0):
        assert judges(cell)
        if judges(cell) != list(JUDGES):
            assert all(judge != TEACHERS[cell.teacher or MAIN].network for judge in judges(cell))
    both = [cell.name for cell in cells(0) if judges(cell) == list(JUDGES) and (cell.teacher or MAIN) == MAIN]
    assert both == [
        "openmoji-pixels-vq",
        "openmoji-features-vq-vits14",
        "openmoji-joint-vq-vits14",
        "openmoji-cluster-vq-vits14",
    ]
    assert untaught("random-vits14") == list(JUDGES) and untaught("efflite0-early") == ["vits14"]


# --- statistics ---


def test_an_interval_over_seeds_is_students() -> None:
    found = over_seeds([[1.0, 0.0, 9.0], [2.0], [3.0]])
    assert found == Spread(2.0, pytest.approx(4.302653 * 1 / math.sqrt(3)), 3)
    assert over_seeds([[5.0, 4.0, 6.5]]) == Spread(5.0, 1.25, 1) and over_seeds([[5.0]]) == Spread(5.0, None, 1)


def test_the_noise_of_seeds_is_pooled_over_rows() -> None:
    # squares of 1, 1 and 2, 0, 2 around their means, with 1 and 2 degrees of freedom
    found = pooled([[1.0, 3.0], [5.0], [2.0, 4.0, 6.0]])
    assert found == Noise(pytest.approx(math.sqrt((1 + 1 + 4 + 0 + 4) / 3)), 3)
    assert pooled([[1.0], [5.0]]) is None
    assert over_seeds([[7.0, 6.0, 8.0]], Noise(2.0, 3)) == Spread(7.0, pytest.approx(3.182446 * 2), 1)
    assert over_seeds([[7.0], [9.0]], Noise(2.0, 3)) == Spread(8.0, pytest.approx(3.182446 * 2 / math.sqrt(2)), 2)


def test_a_difference_pairs_seeds_and_is_in_percent() -> None:
    ours, theirs = {0: [90.0], 1: [60.0], 2: [1.0]}, {0: [100.0], 1: [80.0]}
    # -10 % and -25 %: mean -17.5, standard deviation 7.5 sqrt(2)
    assert over_seeds(differences(ours, theirs)) == Spread(pytest.approx(-17.5), pytest.approx(12.706205 * 7.5), 2)
    assert differences({0: [1.0]}, {1: [1.0]}) == []


def test_a_difference_of_one_seed_has_the_interval_of_both_sets_of_images() -> None:
    found = over_seeds(differences({0: [90.0, 87.0, 93.0]}, {0: [100.0, 96.0, 104.0]}))
    assert found.seeds == 1 and found.half == pytest.approx(90 * math.hypot(3 / 90, 4 / 100))


def test_rank_correlation_is_spearmans() -> None:
    x, y = [10, 20, 30, 40, 50, 60], [2.0, 1.0, 4.0, 3.0, 7.0, 5.0]
    ranks = [2, 1, 4, 3, 6, 5]
    rho = 1 - 6 * sum((a - b) ** 2 for a, b in enumerate(ranks, 1)) / (6 * 35)
    found = rank_correlation(x, y)
    assert found is not None and found.rho == pytest.approx(rho) and found.n == 6
    half = 1.959964 * math.sqrt((1 + rho**2 / 2) / 3)
    assert (found.low, found.high) == (
        pytest.approx(math.tanh(math.atanh(rho) - half)),
        pytest.approx(math.tanh(math.atanh(rho) + half)),
    )
    down = rank_correlation(x, [-v for v in y])
    assert down is not None and down.rho == pytest.approx(-rho) and down.high == pytest.approx(-found.low)


def test_rank_correlation_of_few_or_equal_values_is_none() -> None:
    assert rank_correlation([1, 2, 3], [1, 2, 3]) is None and rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]) is None


# --- results and the page ---


def entry(cell: Cell, fd: float, **more: float) -> dict[str, Any]:
    found = {f"fd_{judge}_{mode}": [fd, fd - 4, fd + 4] for judge in judges(cell) for mode in ("ar", "nar")}
    found |= {f"{kind}_{judge}": [fd / 2] for judge in judges(cell) for kind in ("rfd", "prfd")}
    rest = {name: [value] for name, value in ({"codebook_usage": 0.5, "psnr": 20.0} | more).items()}
    return {**asdict(cell), "seconds": {f"train-tokenizer {cell.name}": 36.0}, "numbers": found | rest}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two seeds: features 20 % better than pixels, and the better the more their teacher understands."""
    order = {name: place for place, name in enumerate(TEACHERS)}
    for seed in (0, 1):
        for cell in cells(seed, ["objective", "teachers"]):
            fd = (
                100 + seed
                if cell.objective == "pixels"
                else (
                    80 + 0.8 * seed
                    if cell.quantizer != "vq" or cell.teacher == MAIN
                    else 99.0 - order[cell.teacher or MAIN]
                )
            )
            claims.add(tmp_path / f"seed-{seed}.json", cell.name, entry(cell, fd))
    for name, place in order.items():
        claims.add(tmp_path / "teachers.json", f"openmoji {name}", 0.3 + place / 20)
    return tmp_path


def test_tables_are_those_of_the_results(results: Path) -> None:
    found = read(results)
    whats = [f"openmoji, class, {name.upper()}, {MAIN}" for name in QUANTIZERS]
    second = f"openmoji, class, VQ, {SECOND}"
    assert found.seeds == [0, 1] and [pair.what for pair in pairs(found)] == [whats[0], second, *whats[1:]]
    lines = claims_page.difference_block(found).splitlines()[2:]
    assert lines[1].startswith(f"| {second} | vits14 | 2 | −6.4") and len(lines) == 6
    assert lines[5] == "Of 8 intervals 8 lie below 0, 0 above it, 0 hold it."

    def noise(judge: str) -> tuple[float, int]:
        """Of a share, and its freedom. Cells that differ between their seeds do so by 0.995 % of their mean; the others count as well."""
        judged = [cell for cell in cells(0, ["objective", "teachers"]) if judge in judges(cell)]
        differ = sum(c.objective == "pixels" or c.quantizer != "vq" or c.teacher == MAIN for c in judged)
        return math.sqrt(differ * (100 / 100.5 / 100) ** 2 / 2 / len(judged)), len(judged)

    deviation, freedom = noise("efflite0")
    half = float(t.ppf(0.975, freedom)) * 80 * deviation  # of both in the pair, and of two seeds: sqrt(2) / sqrt(2)
    assert [lines[0], *lines[2:4]] == [
        f"| {what} | efflite0 | 2 | −20.0 ± {half:.2f} | −20.0 ± {half:.2f} |" for what in whats
    ]
    table = claims_page.main_block(found)
    assert "| features, VQ, vits14 | 2 | 50.0 |" in table
    row = next(line for line in table.splitlines() if line.startswith("| features, VQ, vits14 |"))
    for judge, star, place in (("efflite0", "", -4), ("vits14", "\\*", -3)):
        deviation, freedom = noise(judge)
        half = float(t.ppf(0.975, freedom)) * deviation * 80.4 / math.sqrt(2)
        assert row.split(" | ")[place] == f"80.4 ± {half:.2f}{star}"
    assert hours(found) == {seed: pytest.approx(len(cells(0, ["objective", "teachers"])) / 100) for seed in (0, 1)}


def test_successors_are_told_against_both_rivals_on_the_same_data(tmp_path: Path) -> None:
    plan = [
        c for c in cells(0, ["objective", "successors", "data"]) if c.quantizer == "vq" and c.teacher in (None, MAIN)
    ]
    kinds = {"pixels": 100.0, "features": 80.0, "joint": 90.0, "aligned": 60.0, "pretrained": 40.0}
    for cell in plan:
        if cell.data != "noto":
            found = entry(
                cell, kinds[cell.objective] / (2 if cell.perturb else 1), probe_accuracy=kinds[cell.objective] / 200
            )
            claims.add(tmp_path / "seed-0.json", cell.name, found)
    lines = claims_page.successors_block(read(tmp_path)).splitlines()[2:]
    of = [
        "openmoji, joint",
        "openmoji, aligned",
        "openmoji, pretrained",
        "openmoji, features, perturb",
        "openmoji, pixels, perturb",
    ]
    of += [f"fashion, {kind}" for kind in ("joint", "aligned", "pretrained")]
    assert [line.split(" | ")[:2] for line in lines] == [
        [f"| {one}", rival] for rival in ("pixels", "features") for one in of
    ]
    assert lines[2].split(" | ")[2:] == [
        "1",
        "−60.0 ± 4.31",
        "−60.0 ± 4.31",
        "−60.0",
        "−30.0 |",
    ]  # images of both, and none
    assert lines[8].split(" | ")[3:] == ["+12.5 ± 7.53", "+12.5 ± 7.53", "+12.5", "+5.00 |"]


def test_a_successors_interval_is_of_the_noise_of_both(tmp_path: Path) -> None:
    values = {"pixels": (100.0, 110.0), "features": (80.0, 80.0), "joint": (52.5, 52.5)}
    for seed in (0, 1):
        for kind, of_seeds in values.items():
            cell = Cell("openmoji", kind, teacher=None if kind == "pixels" else MAIN, seed=seed)
            found = entry(cell, of_seeds[seed], probe_accuracy=of_seeds[seed] / 200)
            claims.add(tmp_path / f"seed-{seed}.json", cell.name, found)
    found = read(tmp_path)
    pair = contests(found)["pixels"][0]
    # one of three rows moves, by 10 in 105: a deviation of 5/105 sqrt(2) / sqrt(3) of 3 degrees of freedom
    deviation, student = 5 / 105 * math.sqrt(2) / math.sqrt(3), float(t.ppf(0.975, 3))
    changed = contest(found, pair, "FD_AR, %")
    assert changed is not None and changed.mean == pytest.approx((-47.5 - 100 * 57.5 / 110) / 2) and changed.seeds == 2
    assert changed.half == pytest.approx(student * 100 * deviation * math.sqrt(2) * 0.5 / math.sqrt(2))
    points = contest(found, pair, "probe, points")
    assert points is not None and points.mean == pytest.approx(-26.25)
    assert points.half == pytest.approx(student * 100 * deviation * math.hypot(0.525, 0.2625) / math.sqrt(2))


def test_a_repetition_stands_beside_the_experiment_and_does_not_change_it(results: Path) -> None:
    before, warning = claims_page.difference_block(read(results)), "No row has two seeds: intervals are of images alone"
    single = Results({0: read(results).cells[0]})
    assert warning not in before
    assert all(warning in block(single) for block in (claims_page.difference_block, claims_page.main_block))
    for cell in cells(3, ["objective"]):
        claims.add(results / "repeated-3.json", cell.name, entry(cell, 100.0 if cell.objective == "pixels" else 79.0))
    found = read(results)
    assert found.seeds == [0, 1] and list(found.repeated) == [3] and claims_page.difference_block(found) == before
    lines = claims_page.repeated_block(found).splitlines()
    own, again = lines[2].split(" | ")[2:4]
    assert own.startswith("−20.0 ± ") and again.startswith("−21.0 ± ")
    assert float(again.split()[-1]) == pytest.approx(float(own.split()[-1]) * math.sqrt(2), rel=0.01)
    # those of vits14's judgement, -6.4 %, are far from -21 %
    assert lines[-1] == "Repeated on seed 3: 6 of 8 differences agree within the intervals of both."


def test_scatters_leave_out_what_their_judge_taught(results: Path) -> None:
    found = read(results)
    points = teacher_points(found, "vits14", "ar")
    assert {p.name for p in points} == {
        name for name in TEACHERS if TEACHERS[name].random or TEACHERS[name].network != "vits14"
    }
    named = {p.name for p in predictor_points(found, "rfd_{}", "vits14", "ar")}
    assert "openmoji-pixels-vq" in named and not any("vits14" in name and "random" not in name for name in named)
    assert "| FD_AR by vits14 | −1.00 (−1.00 to −1.00, n = 6) |" in claims_page.teachers_block(found)


def test_names_of_near_points_do_not_cover_each_other() -> None:
    figure = claims_figures.new_figure(3, 2)
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
    near = [
        Point(name, x, y)
        for name, x, y in (("squeezenet", 65.8, 247), ("efflite0", 66.8, 251), ("middle", 66.0, 244), ("far", 50, 300))
    ]
    claims_figures._scatter(axes, near, names=True)
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in axes.texts]
    assert [label.get_text() for label in axes.texts] == [point.name for point in near]
    assert not any(one.overlaps(other) for k, one in enumerate(boxes) for other in boxes[:k])


def test_a_page_keeps_what_stands_around_its_blocks_and_figures_are_drawn(results: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n\n<!-- claims: cost -->\nold\n<!-- end of claims: cost -->\n\nafter\n", encoding="utf-8")
    claims_page.write(results, page, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text and "| all |" in text
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == [f"claim-{name}.png" for name in ("across", "objective", "predictors", "successors", "teachers")]
    assert all(path.stat().st_size < 80_000 for path in tmp_path.glob("*.png"))


def test_the_page_of_this_repository_is_that_of_its_results() -> None:
    pages = [page.read_text(encoding="utf-8") for page in (claims_page.README, claims_page.PAGE)]
    assert [claims_page.filled(text, read(KEPT)) for text in pages] == pages
    assert all(f"<!-- claims: {name} -->" in "".join(pages) for name in claims_page.BLOCKS)


def test_the_headline_has_the_tokenizers_of_one_teacher_by_the_judge_that_taught_none(results: Path) -> None:
    head, _, *rows = claims_page.headline_block(read(results)).splitlines()
    assert head == "| tokenizer | seeds | probe % | rFD | FD, AR | FD, NAR |" and len(rows) == 2 * len(QUANTIZERS)
    pixels, features = (row.split(" | ") for row in rows[:2])
    assert pixels[:2] == ["| pixels, VQ", "2"] and pixels[-1].startswith("100 ± ")
    assert features[0] == "| features, VQ" and features[-1].startswith("80.4 ± ")


def test_numbers_of_a_report_have_their_interval_and_mode(tmp_path: Path) -> None:
    measured = [{"metric": "fd_vits14", "value": 100.123456, "interval": [99.0, 101.0]}]
    used = [{"metric": "codebook_usage", "value": 0.5, "interval": None}]
    report = {
        "artifacts": [
            {"id": "t", "mode": None, "inputs": {}, "measurements": used},
            {"id": "p", "mode": "nar", "inputs": {"tokenizer": "t"}, "measurements": []},
            {"id": "s", "mode": "t2i", "inputs": {"proposal": "p"}, "measurements": measured},  # drawn for captions
        ]
    }
    (tmp_path / "metrics.json").write_text(json.dumps(report))
    found = claims.numbers(tmp_path / "metrics.json")
    assert found == {"codebook_usage": [0.5], "fd_vits14_nar": [100.12, 99.0, 101.0]}


def test_cells_that_have_results_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import claims_data
    import fetch_embedded

    plan, made = cells(0, ["objective"]), []
    monkeypatch.setattr(claims_data, "prepare", lambda name, folder, most: True)
    monkeypatch.setattr(fetch_embedded, "fetch", lambda name: None)
    monkeypatch.setattr(claims_data, "understanding", lambda name, data, weights, precision: 0.5)
    monkeypatch.setattr(claims.Suite, "run", lambda self, cell: made.append(cell.name) or entry(cell, 90.0))
    claims.make(plan[:2], claims.Suite(tmp_path))
    claims.make(plan, claims.Suite(tmp_path))
    assert made == [cell.name for cell in plan]
    assert read(tmp_path / "results").teachers == {f"openmoji {name}": 0.5 for name in (MAIN, SECOND)}


def test_an_interrupted_suite_ends_in_one_line_and_with_the_commands_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import claims_data
    import fetch_embedded

    def interrupted(suite: claims.Suite, cell: Cell) -> None:
        raise Interrupted(
            "made/tokenizer", "interrupted after step 3 of 9, state saved", next="Repeat the command to go on"
        )

    monkeypatch.setattr(claims_data, "prepare", lambda name, folder, most: True)
    monkeypatch.setattr(fetch_embedded, "fetch", lambda name: None)
    monkeypatch.setattr(claims.Suite, "run", interrupted)
    monkeypatch.setattr(sys, "argv", ["claims.py"])
    monkeypatch.setenv("TOK_WORKSPACE", str(tmp_path))
    assert claims.main() == 75
    told = capsys.readouterr()
    assert told.out == "" and told.err.splitlines()[-1].endswith("state saved. Repeat the command to go on.")


def test_random_weights_are_a_file_of_weights_like_any_other(tmp_path: Path) -> None:
    import claims_data
    import torch

    from tokcli.pretrained.teacher import build_teacher

    path = claims_data.random_weights(tmp_path, "squeezenet")
    teacher = build_teacher("squeezenet", {}, path)
    assert claims_data.random_weights(tmp_path, "squeezenet") == path and len(str(teacher.sha256)) == 64
    assert (
        build_teacher("efflite0", {}, claims_data.random_weights(tmp_path, "efflite0")).feature_dim == 1280
    )  # folded once read
    dark, light = teacher(torch.stack([torch.zeros(3, 32, 32), torch.rand(3, 32, 32)]), (8, 8))
    assert dark.isfinite().all() and not torch.equal(dark, light)


def test_images_of_a_toy_are_the_first_of_each_class_and_prompts_are_spread(tmp_path: Path) -> None:
    import claims_data

    assert [*claims_data.first_of_each("abcab", str, 1)] == ["a", "b", "c"]
    assert [*claims_data.first_of_each(range(6), lambda i: i % 2, 2)] == [0, 1, 2, 3]
    (tmp_path / "val").mkdir()
    rows = [json.dumps({"key": f"{i}.png", "captions": [f"caption {i}"]}) for i in range(10)]
    (tmp_path / "val" / "captions.jsonl").write_text("\n".join(rows) + "\n")
    assert claims_data.prompts(tmp_path, 5) == [f"caption {i}" for i in (0, 2, 4, 6, 8)]
    assert len(claims_data.prompts(tmp_path, 50)) == 10


def suite(*flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    keep = {k: v for k, v in os.environ.items() if not k.startswith("TOK_") or k == "TOK_CACHE"}
    script = ["bash", str(ROOT / "scripts" / "benchmark.sh"), "--suite", "claims", *flags]
    return subprocess.run(script, env=keep | {"PATH": path} | variables, capture_output=True, text=True, check=False)


def test_a_dry_run_prints_the_plan_of_the_seeds_and_claims_that_are_asked_for() -> None:
    ran = suite("--dry-run", TOK_SEEDS="7 8", TOK_CLAIMS="objective data")
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == 2 * len(cells(0, ["objective", "data"])) + 1 and lines[0].split() == [
        "1",
        "seed",
        "7",
        "openmoji-pixels-vq",
    ]
    for variables, said in (({"TOK_CLAIMS": "teacher"}, "TOK_CLAIMS"), ({"TOK_SEEDS": "one"}, "TOK_SEEDS")):
        ran = suite("--dry-run", **variables)
        assert ran.returncode == 2 and ran.stderr.startswith(f"{said}: not understood. Got ")


# --- Noto ---


@pytest.mark.skipif(not noto_emoji.FONT.is_file(), reason="fonts-noto-color-emoji is not installed")
def test_noto_draws_one_emoji_a_picture_on_white() -> None:
    font = noto_emoji.Font()
    heart, flag, family = (
        font.render(text, 32) for text in ("\u2764", "\U0001f1eb\U0001f1f7", "\U0001f469\u200d\U0001f692")
    )
    assert heart is not None and flag is not None and family is not None
    assert all(image.size == (32, 32) and image.getpixel((0, 0)) == (255, 255, 255) for image in (heart, flag, family))
    red, green, blue = heart.getpixel((16, 16))
    assert red > 180 > green and blue < 120
    left, right = flag.getpixel((6, 16)), flag.getpixel((26, 16))
    assert left[2] > left[0] and right[0] > right[2]  # France: blue, white, red, and not two letters
    assert font.render("\U0010fffd", 32) is None and font.render("a", 32) is None


def test_a_font_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(noto_emoji.TokError, match="no such font"):
        noto_emoji.Font(tmp_path / "none.ttf")


# --- the whole ---


def test_nothing_is_fetched_that_the_plan_does_not_read() -> None:
    assert fetched(cells(3, ["objective"])) == ["squeezenet", "vits14"]
    assert fetched(cells(3, ["data"])) == ["squeezenet", "vits14", "fashion-mnist"]
    assert fetched(cells(3, ["captions"])) == ["squeezenet", "vits14", "minilm"]
    assert fetched(cells(3)) == ["squeezenet", "vits14", "minilm", "fashion-mnist"]
    assert fetched([Cell("noto", "pixels")]) == ["squeezenet"] and fetched([]) == []


def test_what_is_fetched_is_told_on_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import fetch_embedded

    monkeypatch.setattr(fetch_embedded, "fetch", lambda name: print(f"fetched {name}"))
    monkeypatch.setattr("claims_data.prepare", lambda name, folder, most: True)
    monkeypatch.setattr(claims.Suite, "run", lambda self, cell: entry(cell, 90.0))
    plan = cells(0, ["captions"])[:1]
    claims.make(plan, claims.Suite(tmp_path))
    told = capsys.readouterr()
    assert told.out == "" and told.err.splitlines()[:2] == ["fetched squeezenet", "fetched minilm"]
    claims.make(plan, claims.Suite(tmp_path))
    assert capsys.readouterr() == ("", "")  # a finished suite needs no network


@pytest.mark.slow
def test_the_suite_runs_to_its_page_with_two_steps_a_network(tmp_path: Path) -> None:
    claims = ("data", "captions", "cluster")  # each kind of data, condition and tokenizer; all 24 cells take minutes
    ran = suite("--toy", TOK_WORKSPACE=str(tmp_path), TOK_CLAIMS=" ".join(claims))
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = read(tmp_path / "results")
    plan = cells(0, claims)
    made = {cell.name for cell in plan if cell.data != "noto" or noto_emoji.FONT.is_file()}
    assert found.cells[0].keys() == made
    for cell in plan:
        if cell.name in made:
            known = found.cells[0][cell.name]["numbers"]
            wanted = [f"fd_{judge}_{mode}" for judge in judges(cell) for mode in ("ar", "nar")]
            wanted += [f"{kind}_{judge}" for judge in judges(cell) for kind in ("rfd", "prfd")]
            assert [
                name
                for name in [*wanted, "probe_accuracy", "proposal_ppl_ar", "bits_per_image_nar"]
                if name not in known
            ] == []
    assert {"openmoji vits14", "fashion vits14"} <= found.teachers.keys()
    page = tmp_path / "claims.md"
    assert Path(ran.stdout.strip()) == page and "| fashion, class, VQ, vits14 | efflite0 | 1 |" in page.read_text()
