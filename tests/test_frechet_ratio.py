"""Distances as multiples of those of held-out images, at equal N, and their mean over a protocol's extractors."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from test_evaluation_judging import CPU, SIZE, pictures, samples, tiny  # noqa: F401  fixtures
from test_metrics_fid import textbook
from test_references import Tiny

from tokcli.command.options import Options
from tokcli.data.sources import open_source
from tokcli.errors import TokError
from tokcli.evaluation.generated import HeldOut, judge_samples
from tokcli.evaluation.references import References
from tokcli.measure import extractors
from tokcli.measure.extractors import Extractor, check_extractors, expanded
from tokcli.metrics.fid import Moments
from tokcli.metrics.frechet_ratio import frechet_ratio, geometric_mean


@pytest.fixture
def train(tmp_path):
    """Twenty pictures of noise, of another brightness each."""
    folder = tmp_path / "data" / "train" / "noise"
    folder.mkdir(parents=True)
    draw = np.random.RandomState(0)
    for number in range(20):
        Image.fromarray(draw.randint(0, 12 * number + 20, (SIZE, SIZE, 3), dtype=np.uint8)).save(
            folder / f"{number}.png"
        )
    return tmp_path / "data" / "train"


def judged(tmp_path, samples, reference, held_out, *, judges=None, protocols=(), manifold=100, bootstrap=0):  # noqa: F811
    """Numbers of FDr by reported name."""
    references = References(Options(workspace=tmp_path / "ws"), [str(reference)], manifold, CPU)
    source = open_source(str(held_out), size=SIZE)
    beside = HeldOut(source.id, lambda e: references.images(source, e, SIZE))
    found = judge_samples(
        samples, judges or [tiny()], lambda e: references.of(e, SIZE), lambda e: (e.name,), CPU,
        held_out=beside, protocols=protocols, manifold=manifold, bootstrap=bootstrap,
    )  # fmt: skip
    return {m.name: m for m in found if m.what.metric == "fdr"}


@pytest.mark.parametrize("bootstrap", [0, 2])
def test_samples_that_are_the_held_out_images_are_as_near_as_they(tmp_path, pictures, samples, train, bootstrap):  # noqa: F811
    (one,) = judged(tmp_path, samples, train, pictures, bootstrap=bootstrap).values()
    assert one.name == "fdr_tiny" and one.value == pytest.approx(1.0) and one.count == 16
    assert one.against.images == 20 and "over that of as many images of" in one.by and str(pictures) in one.by


def test_it_is_the_quotient_of_two_distances_of_equally_many_images(tmp_path, pictures, samples, train):  # noqa: F811
    files = sorted(pictures.rglob("*.png"))
    for file in files[6:]:
        file.unlink()  # six held-out images, sixteen samples
    (one,) = judged(tmp_path, samples, train, pictures).values()
    assert one.count == 6
    drawn = torch.stack(
        [torch.from_numpy(np.array(Image.open(f))) for f in sorted((samples.path / "images").iterdir())]
    )
    six = extractors.chosen(16, 6)
    sets = [drawn[six], torch.stack([torch.from_numpy(np.array(Image.open(f))) for f in sorted(files[:6])])]
    sets.append(torch.stack([torch.from_numpy(np.array(Image.open(f))) for f in train.rglob("*.png")]))
    ours, real, reference = (Tiny().pooled(x.permute(0, 3, 1, 2).double() / 255) for x in sets)
    assert one.value == pytest.approx(textbook(ours, reference) / textbook(real, reference), rel=1e-3)


def test_the_held_out_images_themselves_are_no_reference_for_it(tmp_path, pictures, samples):  # noqa: F811
    assert judged(tmp_path, samples, pictures, pictures) == {}


def test_without_features_there_is_none(tmp_path, pictures, samples, train):  # noqa: F811
    assert judged(tmp_path, samples, train, pictures, manifold=0) == {}


class Rooted(Tiny):
    """Sees the roots of those numbers."""

    sha256 = "def"

    def pooled(self, images):
        return super().pooled(images).sqrt()


def test_a_protocol_has_the_geometric_mean_over_its_extractors(tmp_path, pictures, samples, train, monkeypatch):  # noqa: F811
    for file in sorted((samples.path / "images").iterdir())[:8]:  # samples are no longer the held-out images
        Image.new("RGB", (SIZE, SIZE), (9, 99, 199)).save(file)
    monkeypatch.setitem(extractors.PROTOCOLS, "both", ("tiny", "rooted"))
    judges = [tiny(), Extractor("rooted", Rooted(), "rooted"), Extractor("third", Tiny(), "third")]
    found = judged(tmp_path, samples, train, pictures, judges=judges, protocols=["both"])
    a, b, mean = (found[f"fdr_{name}"] for name in ("tiny", "rooted", "both"))
    assert mean.value == pytest.approx(math.sqrt(a.value * b.value)) and abs(a.value - b.value) > 0.01
    assert mean.by.endswith("; over tiny, rooted") and mean.involved == ("tiny", "rooted")
    assert set(judged(tmp_path, samples, train, pictures, judges=judges)) == {"fdr_tiny", "fdr_rooted", "fdr_third"}


def test_a_protocol_stands_for_its_networks_each_once():
    assert expanded(["vits14", "embedded", "inception"]) == ["vits14", "efflite0", "squeezenet", "inception"]
    check_extractors([*extractors.PROTOCOLS], None)
    with pytest.raises(TokError, match="no such extractor"):
        check_extractors(["embeded"], None)


def test_held_out_images_at_no_distance_leave_an_infinite_ratio():
    same, other = Moments(), Moments()
    same.update(torch.eye(3))
    other.update(torch.eye(3) + 1)
    assert frechet_ratio(other, same, same) == math.inf and frechet_ratio(same, other, same) == 0
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0) and geometric_mean([0.0, 8.0]) == 0
