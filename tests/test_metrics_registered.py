"""A metric that is registered is asked, by what it takes alone, and its number is in every file of the report."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_faults import family, made, refusal  # noqa: F401  the fixture

from tokcli.metrics import METRICS, KnownAs, Metric

MADE = {  # what it takes: the key it gets, its reported name in an artifact, its column, its title
    "counts": ("used_codes", "used_codes", "used_codes", "codes used"),
    "images": ("worst_pixel", "worst_pixel", "worst_pixel", "worst pixel"),
    "reconstruction_moments": ("shift", "shift_efflite0", "shift_efflite0", "shift efflite0"),
    "moments": ("gap", "mean_gap", "mean_gap_ar", "mean gap_AR"),
    "sets": ("ratio", "ratio_efflite0", "ratio_efflite0_ar", "real per generated_AR efflite0"),
    "nll": ("bits", "bits", "bits_ar", "bits a token_AR"),
}
NEVER = ("other judge", "other mode")  # registered for an extractor and a mode that are not here


@pytest.fixture(scope="module")
def report(family: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:  # noqa: F811
    """A report of a whole family with six metrics that no file of the package names."""
    of = {
        "counts": Metric(lambda counts: int((counts > 0).sum()), "counts", "higher", "codes used", digits=0),
        "images": Metric(lambda a, b: (a.double() - b).abs().amax((1, 2, 3)) / 255, "images", "lower", "worst pixel"),
        "reconstruction_moments": Metric(
            lambda a, b: float(abs(a.mean.numpy() - b.mean).sum()), "reconstruction_moments", "lower", "shift"
        ),
        "moments": Metric(
            lambda a, b: float(abs(a.mean.numpy() - b.mean).max()), "moments", "lower", "gap",
            known_as=KnownAs("efflite0", "mean_gap", "mean gap"), error=lambda features, real, replicates: 1.0,
        ),
        "sets": Metric(lambda a, b: torch.full((len(a),), len(b) / len(a)), "sets", "lower", "real per generated"),
        "nll": Metric(lambda total, tokens: total / tokens / 0.6931471805599453, "nll", "lower", "bits a token"),
        "other judge": Metric(lambda a, b: 0.0, "moments", "lower", "other judge", extractors=("vits14",)),
        "other mode": Metric(lambda total, tokens: 0.0, "nll", "lower", "other mode", modes=("nar",)),
    }  # fmt: skip
    root, f = tmp_path_factory.mktemp("registered"), family
    chosen = ["--proposal", f["proposal"], "--decoder", f["decoder"], "-n", 6]
    samples = made("sample", "--recipe", "toy/sample-ar", *chosen, "--workspace", root)
    with pytest.MonkeyPatch.context() as patch:
        for takes, metric in of.items():
            patch.setitem(METRICS, MADE[takes][0] if takes in MADE else takes, metric)
        given = [f[kind] for kind in ("tokenizer", "decoder", "proposal")]
        yield made("eval", "--recipe", "toy/eval", *given, samples, "--data", f["photos"], "--workspace", root)


@pytest.mark.parametrize("takes", MADE)
def test_a_registered_metric_is_in_every_file_of_the_report(report: Path, takes: str) -> None:
    key, name, column, title = MADE[takes]
    found = json.loads((report / "metrics.json").read_text())
    (one,) = (m for a in found["artifacts"] for m in a["measurements"] if m["metric"] == name)
    assert one["fields"]["metric"] == key and one["count"] > 0 and one["value"] > 0
    assert [c["fields"] for c in found["table"]["more"] if c["key"] == column] == [one["fields"]]
    (row,) = csv.DictReader((report / "table.csv").open())
    assert float(row[column]) == one["value"]
    assert f"| {title} {'↑' if key == 'used_codes' else '↓'} |" in (report / "report.md").read_text()
    assert f'<th scope="row">{name}</th>' in (report / "report.html").read_text()


def test_its_interval_comes_from_its_own_standard_error(report: Path) -> None:
    artifacts = json.loads((report / "metrics.json").read_text())["artifacts"]
    (one,) = (m for a in artifacts for m in a["measurements"] if m["metric"] == "mean_gap")
    assert one["interval"] == [max(0.0, one["value"] - 1.96), one["value"] + 1.96]


def test_patches_with_content_are_counted_apart_for_metrics_that_say_so(report: Path) -> None:
    (tokenizer,) = (
        a for a in json.loads((report / "metrics.json").read_text())["artifacts"] if a["kind"] == "tokenizer"
    )
    apart = {name for name in tokenizer["metrics"] if name.endswith("_nonblank")}
    assert apart == {f"{key}_nonblank" for key, metric in METRICS.items() if metric.nonblank}


def test_generated_images_come_first(report: Path) -> None:
    (samples,) = (a for a in json.loads((report / "metrics.json").read_text())["artifacts"] if a["kind"] == "samples")
    assert samples["metrics"]["ratio_efflite0"] == 12 / 6


def test_bits_are_the_logarithm_of_the_perplexity(report: Path) -> None:
    found = json.loads((report / "metrics.json").read_text())["artifacts"]
    (proposal,) = (a["metrics"] for a in found if a["kind"] == "proposal")
    assert 2 ** proposal["bits"] == pytest.approx(proposal["proposal_ppl"])


@pytest.mark.parametrize("key", NEVER)
def test_a_metric_of_another_extractor_or_mode_is_not_asked(report: Path, key: str) -> None:
    assert key not in (report / "metrics.json").read_text()


def test_a_metric_that_nothing_is_given_stops_the_evaluation_at_once(
    family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.setitem(METRICS, "x", SimpleNamespace(takes="image"))  # type: ignore[arg-type]
    told = ["--recipe", "toy/eval", family["tokenizer"], "--data", family["photos"], "--workspace", tmp_path]
    assert "metric 'x': takes what no evaluation gives" in refusal("eval", *told)
    assert list(tmp_path.glob("*")) == []
