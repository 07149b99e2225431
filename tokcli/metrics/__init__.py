"""Metrics: pure functions from features, counts or images to numbers; reading is the work of the stages.

A new metric is one file and one line in METRICS; what it takes tells a stage when it can be reported.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from tokcli.errors import TokError
from tokcli.metrics.clip_score import clip_score
from tokcli.metrics.code_usage import codebook_perplexity, codebook_usage, entropy_bits, top_code_share
from tokcli.metrics.density_coverage import coverage, density
from tokcli.metrics.feature_prediction import feature_loss
from tokcli.metrics.fid import frechet_distance
from tokcli.metrics.image_quality import l1, psnr, sharpness, ssim
from tokcli.metrics.inception_score import inception_score
from tokcli.metrics.kid import kid
from tokcli.metrics.likelihood import masked_ce, proposal_ppl, token_accuracy
from tokcli.metrics.lpips import lpips
from tokcli.metrics.precision_recall import precision, recall
from tokcli.metrics.understanding import knn_accuracy, probe_accuracy
from tokcli.registry import nearest

Takes = Literal[
    "counts",
    "features",
    "images",
    "maps",
    "moments",
    "sets",
    "neighbours",
    "logits",
    "embeddings",
    "bags",
    "nll",
    "hits",
]
Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Metric:
    """A metric and how to read it.

    Args:
        function: computes it.
        takes: what the function is given.
            counts: `f(counts (k,))`, tokens per code;
            features: `f(predicted, target)`, both (b, n, d), one value per image;
            images: `f(images, targets)`, both (b, c, h, w), one value per image;
            maps: `f(images, targets, heads)`, feature maps by layer, one value per image;
            moments: `f(a, b)`, two `Moments` or `Gaussian`;
            sets: `f(a, b)`, features (n, d) of generated and of real images, a `Spread`;
            neighbours: `f(found)`, the `Neighbours` of real and generated images;
            logits: `f(logits)`, (n, classes) of generated images, a `Spread`;
            embeddings: `f(images, captions)`, both (b, d), one value per image;
            bags: `f(train, labels, test, wanted)`, `bags` of tokens and their images' classes;
            nll: `f(total, tokens)`, a sum in nats and its number of tokens;
            hits: `f(correct, tokens)`, two numbers of tokens.
        better: which direction is an improvement.
        title: the column heading, without the arrow.
        percent: shown as a percentage in tables; the number itself stays in [0, 1].
        digits: decimals shown in tables.
    """

    function: Callable[..., Any]
    takes: Takes
    better: Better
    title: str
    percent: bool = False
    digits: int = 2


METRICS: dict[str, Metric] = {
    "codebook_usage": Metric(codebook_usage, "counts", "higher", "usage %", percent=True, digits=1),
    "codebook_perplexity": Metric(codebook_perplexity, "counts", "higher", "codebook perplexity", digits=1),
    "entropy_bits": Metric(entropy_bits, "counts", "higher", "entropy, bits"),
    "top_code_share": Metric(top_code_share, "counts", "lower", "top code %", percent=True, digits=1),
    "probe_accuracy": Metric(probe_accuracy, "bags", "higher", "probe %", percent=True, digits=1),
    "knn_accuracy": Metric(knn_accuracy, "bags", "higher", "k-NN %", percent=True, digits=1),
    "feature_loss": Metric(feature_loss, "features", "lower", "feature loss", digits=4),
    "psnr": Metric(psnr, "images", "higher", "PSNR, dB"),
    "ssim": Metric(ssim, "images", "higher", "SSIM", digits=3),
    "sharpness": Metric(sharpness, "images", "neither", "sharpness"),
    "l1": Metric(l1, "images", "lower", "L1", digits=4),
    "lpips": Metric(lpips, "maps", "lower", "LPIPS", digits=3),
    "rfid": Metric(frechet_distance, "moments", "lower", "rFID"),
    "fid": Metric(frechet_distance, "moments", "lower", "FID"),
    "rfd": Metric(frechet_distance, "moments", "lower", "rFD"),
    "fd": Metric(frechet_distance, "moments", "lower", "FD"),
    "sfid": Metric(frechet_distance, "moments", "lower", "sFID"),
    "sfd": Metric(frechet_distance, "moments", "lower", "sFD"),
    "kid": Metric(kid, "sets", "lower", "KID", digits=4),
    "kd": Metric(kid, "sets", "lower", "KD", digits=4),
    "inception_score": Metric(inception_score, "logits", "higher", "IS"),
    "clip_score": Metric(clip_score, "embeddings", "higher", "CLIP score"),
    "precision": Metric(precision, "neighbours", "higher", "precision", digits=3),
    "recall": Metric(recall, "neighbours", "higher", "recall", digits=3),
    "density": Metric(density, "neighbours", "higher", "density", digits=3),
    "coverage": Metric(coverage, "neighbours", "higher", "coverage", digits=3),
    "proposal_ppl": Metric(proposal_ppl, "nll", "lower", "PPL"),
    "token_accuracy": Metric(token_accuracy, "hits", "higher", "token accuracy %", percent=True, digits=1),
    "masked_ce": Metric(masked_ce, "nll", "lower", "masked CE", digits=3),
    "masked_accuracy": Metric(token_accuracy, "hits", "higher", "masked accuracy %", percent=True, digits=1),
}

_AT_A_RATIO = ("masked_ce", "masked_accuracy")
_OF_AN_EXTRACTOR = (
    "rfid", "fid", "rfd", "fd", "sfid", "sfd", "kid", "kd", "inception_score", "clip_score", "precision", "recall", "density",
    "coverage",
)  # fmt: skip
_NAMED = re.compile(rf"(?P<base>{'|'.join((*_AT_A_RATIO, *_OF_AN_EXTRACTOR))})_(?P<rest>[\w.:/-]+)")
_PROPOSALS = ("ar", "nar", "t2i")
# What is called by the name of Inception goes by another on any other network, or on other weights.
_INCEPTION_S = {"fd": "fid", "rfd": "rfid", "sfd": "sfid", "kd": "kid", "inception_score": "inception_score"}


def named(base: str, extractor: str) -> str:
    """The reported name of a metric on an extractor: `fd` is `fid` on Inception with the published weights.

    Args:
        base: `fd`, `rfd`, `sfd`, `kd`, `inception_score`, `precision`, ...: a key of METRICS that an extractor goes with.
        extractor: `inception` stands for the published weights alone; another file's is called `inception-<sha8>`.
    """
    return _INCEPTION_S[base] if extractor == "inception" and base in _INCEPTION_S else f"{base}_{extractor}"


def frechet_name(extractor: str) -> str:
    """`fid` for Inception with the published weights, `fd_<extractor>` for everything else."""
    return named("fd", extractor)


def describe(name: str) -> Metric:
    """The metric of a reported name (`fd_vits14`, `fid_ar`, `rfd_efflite0`, `masked_ce_0.50`), with its title.

    Raises:
        TokError: no metric of that name; the message says the nearest one.
    """
    if name in METRICS:
        return METRICS[name]
    found = _NAMED.fullmatch(name)
    if found is None:
        raise TokError(f"metric '{name}'", "no such metric", next=nearest(name, METRICS))
    metric, rest = METRICS[found["base"]], found["rest"]
    if found["base"] in _AT_A_RATIO:
        return replace(metric, title=f"{metric.title} at {rest}")
    extractor, _, proposal = rest.rpartition("_")
    if proposal not in _PROPOSALS:
        extractor, proposal = rest, ""
    title = f"{metric.title}_{proposal.upper()}" if proposal else metric.title
    return replace(metric, title=f"{title} {extractor}".rstrip())


def is_known(name: str) -> bool:
    """Whether a reported name is a metric that tables can show."""
    try:
        describe(name)
    except TokError:
        return False
    return True
