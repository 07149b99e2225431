"""Every metric of the family, and the table that shows them."""

import csv
import math
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tokcli.errors import TokError
from tokcli.evaluation import captions, generated, reconstructions, token_numbers
from tokcli.evaluation.text_tables import Cell, Column, Row, Table, as_csv, as_markdown, as_text
from tokcli.measure.extractors import CPU_BATCH, features
from tokcli.metrics import METRICS, Takes
from tokcli.metrics.code_usage import codebook_perplexity, codebook_usage, count_codes, entropy_bits, top_code_share
from tokcli.metrics.feature_prediction import centroid_loss, constant_loss, feature_loss
from tokcli.metrics.fid import Moments
from tokcli.metrics.image_quality import sharpness
from tokcli.metrics.inception_score import Spread
from tokcli.metrics.likelihood import masked_ce, proposal_ppl
from tokcli.metrics.neighbours import neighbours, precision, recall
from tokcli.metrics.reported import Number, Reported, number_of, taking
from tokcli.metrics.understanding import bags, vector_probe_accuracy


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(x):
    found = Moments()
    found.update(x)
    return found


def good_and_bad(takes):
    """Arguments for which a metric must be better, and worse."""
    if takes == "counts":
        return (torch.tensor([3, 3, 3, 3]),), (torch.tensor([9, 2, 1, 0]),)
    if takes == "features":
        x = noise(2, 3, 4)
        return (x + 0.1 * noise(2, 3, 4, seed=1), x), (x + noise(2, 3, 4, seed=1), x)
    if takes == "images":
        x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        return (x * 0.9, x), (x * 0.5, x)
    if takes == "maps":
        x, heads = [noise(2, 3, 4, 4)], [torch.ones(1, 3, 1, 1, dtype=torch.float64)]
        return ([x[0] + 0.1 * noise(2, 3, 4, 4, seed=1)], x, heads), ([noise(2, 3, 4, 4, seed=2)], x, heads)
    if takes in ("moments", "spatial_moments", "reconstruction_moments", "perturbed_moments"):
        x = noise(50, 4)
        return (moments(x), moments(x + 0.1)), (moments(x), moments(2 * x + 1))
    if takes == "moments_beside_real":
        x = noise(50, 4)
        return (moments(x), moments(x + 0.2), moments(x + 0.1)), (moments(2 * x), moments(x + 0.2), moments(x + 0.1))
    if takes == "sets":
        return (noise(50, 4), noise(40, 4, seed=1)), (noise(50, 4) + 1, noise(40, 4, seed=1))
    if takes == "embeddings":
        x = noise(5, 4)
        return (x, x + 0.1 * noise(5, 4, seed=1)), (x, x + noise(5, 4, seed=1))
    if takes == "neighbours":
        real = noise(60, 4)
        near, far = noise(60, 4, seed=1), torch.cat([noise(30, 4, seed=1) / 9, noise(30, 4, seed=2) + 9])
        return (neighbours(real, near),), (neighbours(real, far),)
    if takes == "logits":
        sure = 9 * torch.eye(4, dtype=torch.float64).repeat(10, 1)
        return (sure,), (sure / 9,)
    if takes == "bags":
        codes, labels = torch.arange(40).view(40, 1).expand(40, 4) % 4, np.arange(40) % 4
        told = bags(codes, (2, 2), 4)
        return (told, labels, told, labels), (told, labels, told, (labels + 1) % 4)
    if takes == "vectors":
        labels = np.arange(40) % 4
        told = torch.eye(4)[torch.from_numpy(labels)] + noise(40, 4).float() / 99
        return (told, labels, told, labels), (told, labels, told, (labels + 1) % 4)
    if takes == "image_nats":
        return (torch.tensor([10.0, 12.0]),), (torch.tensor([20.0, 12.0]),)
    if takes == "hits":
        return (8, 10), (2, 10)
    return (10.0, 10), (20.0, 10)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_tells_better_from_worse_in_its_direction(name):
    metric = METRICS[name]
    found = [metric.function(*given) for given in good_and_bad(metric.takes)]
    good, bad = (torch.as_tensor(f.mean if isinstance(f, Spread) else f, dtype=torch.float64).mean() for f in found)
    if metric.better == "neither":  # 1 is as the target
        assert abs(good - 1) < abs(bad - 1)
    else:
        assert (good > bad) if metric.better == "higher" else (good < bad)


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.takes in ("images", "features")])
def test_a_metric_of_pairs_gives_each_image_its_own_number(name):
    metric = METRICS[name]
    first, second = good_and_bad(metric.takes)[0]
    alone = torch.cat([metric.function(first[i : i + 1], second[i : i + 1]) for i in range(2)])
    assert torch.allclose(metric.function(first, second), alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("what", "name", "title"),
    [
        (Reported("psnr"), "psnr", "PSNR, dB"),
        (Reported("codebook_usage", nonblank=True), "codebook_usage_nonblank", "usage %"),
        (Reported("masked_ce", ratio=0.5), "masked_ce_0.50", "masked CE at 0.50"),
        (Reported("fd", "vits14", "ar"), "fd_vits14_ar", "FD_AR vits14"),
        (Reported("fd", "timm:resnet18.a1_in1k"), "fd_timm:resnet18.a1_in1k", "FD timm:resnet18.a1_in1k"),
        (Reported("precision", "inception", "nar"), "precision_inception_nar", "precision_NAR inception"),
        (Reported("bits_per_image", mode="nar"), "bits_per_image_nar", "bits/image_NAR"),
        (Reported("clip_score", "clip", "t2i"), "clip_score_t2i", "CLIP score_T2I"),
    ],
)
def test_the_name_and_the_title_follow_from_the_fields(what, name, title):
    assert (what.name, what.title) == (name, title)


@pytest.mark.parametrize(
    ("metric", "plain", "title"),
    [("fd", "fid", "FID"), ("rfd", "rfid", "rFID"), ("sfd", "sfid", "sFID"), ("kd", "kid", "KID"), ("inception_score", "inception_score", "IS")],
)  # fmt: skip
def test_only_inception_s_published_weights_lend_their_name_to_a_metric(metric, plain, title):
    published, other = Reported(metric, "inception", "ar"), Reported(metric, "inception-1234abcd", "ar")
    assert (published.name, published.title) == (f"{plain}_ar", f"{title}_AR")
    assert other.name == f"{metric}_inception-1234abcd_ar" and other.title.endswith("_AR inception-1234abcd")


def test_an_unknown_metric_names_the_nearest_one():
    with pytest.raises(TokError, match="Did you mean 'psnr'"):
        Reported("psnrr")


def test_the_evaluation_gives_all_that_metrics_may_take():
    parts = (token_numbers, reconstructions, generated, captions)
    assert sorted(takes for part in parts for takes in part.SERVES) == sorted(get_args(Takes))


def test_names_and_titles_of_metrics_are_unlike():
    known = [m.known_as for m in METRICS.values() if m.known_as]
    names = [*METRICS, *(one.name for one in known if one.name not in METRICS)]
    titles = [m.title for m in METRICS.values()] + [one.title for one in known if one.name not in METRICS]
    assert len(set(names)) == len(names) and len(set(titles)) == len(titles)


def test_generated_and_real_images_are_given_in_that_order():
    a, b = noise(60, 4), noise(60, 4, seed=1) * 3
    swapped = neighbours(b, a), neighbours(a, b)
    assert precision(swapped[0]) == recall(swapped[1]) != recall(swapped[0])
    assert all(
        METRICS[key].function(swapped[0]) != METRICS[key].function(swapped[1]) for key in ("density", "coverage")
    )
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert (sharpness(x * 0.5, x) < 1).all() and (sharpness(x, x * 0.5) > 1).all()


def test_only_images_that_have_a_value_count():
    assert number_of(torch.tensor([1.0, math.nan, 3.0], dtype=torch.float64)) == Number(2.0, images=2)
    assert number_of(torch.full((2,), math.nan, dtype=torch.float64)) is None
    assert number_of(Spread(1.0, 0.5)) == Number(1.0, 0.5) and number_of(3.0) == Number(3.0)


def test_a_metric_is_asked_of_its_own_extractors_and_modes_alone():
    assert list(taking("logits", extractor="inception")) == ["inception_score"] and not taking("logits", extractor="x")
    assert [list(taking("nll", mode=mode)) for mode in ("ar", "nar")] == [["proposal_ppl"], ["masked_ce"]]


def test_codebook_numbers_follow_from_the_frequencies():
    counts = torch.tensor([4, 2, 2, 0])
    assert codebook_usage(counts) == 0.75
    assert entropy_bits(counts) == pytest.approx(1.5)
    assert codebook_perplexity(counts) == pytest.approx(2**1.5)
    assert top_code_share(counts) == 0.5


def test_equally_frequent_codes_have_the_perplexity_of_their_number():
    assert codebook_perplexity(torch.full((8192,), 7)) == pytest.approx(8192)


def test_counts_of_batches_add_up():
    indices = torch.tensor([[0, 2], [2, 4]])
    parts = sum(count_codes(row, 5) for row in indices)
    assert parts.tolist() == count_codes(indices, 5).tolist() == [1, 0, 2, 0, 1]


def test_indices_outside_the_codebook_are_refused():
    with pytest.raises(TokError, match=r"outside the codebook's \[0, 4\)"):
        count_codes(torch.tensor([0, 4]), 4)


def test_a_codebook_without_tokens_has_no_perplexity():
    with pytest.raises(TokError, match="no tokens were counted"):
        codebook_perplexity(torch.zeros(4, dtype=torch.int64))


def test_feature_loss_ignores_length_and_sees_direction():
    x = noise(2, 3, 5)
    assert torch.allclose(feature_loss(3 * x, x), torch.zeros(2, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(feature_loss(-x, x), torch.full((2,), 2.0, dtype=torch.float64))


def test_nan_features_are_refused():
    x = noise(1, 2, 3)
    with pytest.raises(TokError, match="predicted features: are not finite"):
        feature_loss(x * math.nan, x)


def test_the_mean_of_unit_vectors_is_the_best_constant():
    x = noise(4, 5, 3) + 1
    best = torch.nn.functional.normalize(x, dim=-1).mean(dim=(0, 1))
    assert constant_loss(x, best).mean() <= min(constant_loss(x, noise(3, seed=s)).mean() for s in range(20))


def test_a_centroid_on_every_feature_leaves_no_loss():
    x = noise(2, 3, 4)
    assert centroid_loss(x, x.reshape(6, 4)).abs().max() < 1e-12
    assert (centroid_loss(x, x.reshape(6, 4)[:1])[1:] > 0.1).all()


def test_a_uniform_guess_has_the_perplexity_of_the_codebook():
    assert proposal_ppl(50 * math.log(512), 50) == pytest.approx(512)
    assert masked_ce(50 * math.log(512), 50) == pytest.approx(math.log(512))


@pytest.mark.parametrize(("total", "tokens"), [(1.0, 0), (math.nan, 3), (math.inf, 3)])
def test_a_likelihood_that_is_none_is_refused(total, tokens):
    with pytest.raises(TokError, match="proposal"):
        proposal_ppl(total, tokens)


def images(count, side=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def flat(unit):
    return unit.flatten(1)[:, :5]


def test_features_do_not_depend_on_how_images_arrive():
    x, net = images(CPU_BATCH + 7), torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())
    whole = torch.cat(list(features([x], net)))
    parts = torch.cat(list(features(x.split(3), net)))
    assert len(whole) == len(x) and torch.equal(whole, parts)


def test_an_extractor_sees_one_shape_and_values_in_the_unit_range():
    seen = []

    def spy(unit):
        seen.append((unit.shape, unit.dtype, bool(unit.min() >= 0), float(unit.max()) <= 1))
        return flat(unit)

    list(features(images(2 * CPU_BATCH + 2).split(4), spy))
    assert seen == [(torch.Size([CPU_BATCH, 3, 4, 4]), torch.float32, True, True)] * 3


def test_images_of_two_sizes_are_one_clear_error():
    with pytest.raises(TokError, match=r"must have one size. Got \(3, 8, 8\) after \(3, 4, 4\)"):
        list(features([images(2), images(2, side=8)], flat))


def test_no_images_have_no_features():
    assert list(features([], flat)) == []


USAGE, RFD, PPL = (
    Column(Reported("codebook_usage")),
    Column(Reported("rfd", "vits14")),
    Column(Reported("proposal_ppl"), "b"),
)
TABLE = Table(
    [USAGE, RFD, PPL],
    [
        Row("VQ-KD efflite0", {USAGE.key: Cell(0.984), RFD.key: Cell(12.345, marked=True)}),
        Row("FSQ | 240", {USAGE.key: Cell(1.0), RFD.key: Cell(240.0), PPL.key: Cell(240.0)}),
    ],
    ["* explained"],
)


def test_the_text_table_lines_up_and_marks_what_was_not_measured():
    assert as_text(TABLE).splitlines() == [
        "tokenizer       usage % ↑  rFD vits14 ↓   PPL (b) ↓",
        "--------------  ---------  -------------  ---------",
        "VQ-KD efflite0       98.4         12.35*          -",
        "FSQ | 240           100.0        240.00      240.00",
        "* explained",
    ]


def test_the_markdown_table_has_equal_cells_in_each_row():
    lines = as_markdown(Table([RFD], TABLE.rows)).splitlines()
    assert lines == [
        "| tokenizer | rFD vits14 ↓ |", "| --- | ---: |", "| VQ-KD efflite0 | 12.35\\* |", "| FSQ \\| 240 | 240.00 |"
    ]  # fmt: skip


def test_the_csv_keeps_every_digit_and_leaves_out_what_was_not_measured():
    rows = list(csv.reader(as_csv(TABLE).splitlines()))
    assert rows[0] == ["tokenizer", "codebook_usage", "rfd_vits14", "proposal_ppl (b)"]
    assert rows[1:] == [["VQ-KD efflite0", "0.984", "12.345", ""], ["FSQ | 240", "1.0", "240.0", "240.0"]]


def test_the_vector_probe_is_logistic_regression_of_standardised_vectors():
    labels = np.arange(60) % 3
    centres = noise(3, 4, seed=5)
    train, test = (centres[labels] + noise(60, 4, seed=s) for s in (6, 7))
    train, test = ((x * torch.tensor([1.0, 100.0, 1e-3, 1.0]) + 7).float() for x in (train, test))
    with_scikit = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=300)).fit(train.numpy(), labels)
    assert vector_probe_accuracy(train, labels, test, labels) == with_scikit.score(test.numpy(), labels)
    constant = torch.cat([train, torch.ones(60, 1)], 1)
    assert vector_probe_accuracy(constant, labels, torch.cat([test, torch.ones(60, 1)], 1), labels) > 0.5
