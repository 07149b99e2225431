"""Metrics: pure functions from features, counts or images to numbers; reading is the work of the stages.

A new metric is one file and one line in METRICS; what it takes tells a stage when it can be reported.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from tokcli.errors import TokError
from tokcli.metrics.codebook import codebook_perplexity, codebook_usage, entropy_bits, top_code_share
from tokcli.metrics.feature import feature_loss
from tokcli.metrics.fid import frechet_distance
from tokcli.metrics.image import l1, psnr, sharpness, ssim
from tokcli.metrics.proposal import masked_ce, proposal_ppl
from tokcli.registry import nearest

Takes = Literal["counts", "features", "images", "moments", "nll"]
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
            moments: `f(a, b)`, two `Moments` or `Gaussian`;
            nll: `f(total, tokens)`, a sum in nats and its number of tokens.
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
    "feature_loss": Metric(feature_loss, "features", "lower", "feature loss", digits=4),
    "psnr": Metric(psnr, "images", "higher", "PSNR, dB"),
    "ssim": Metric(ssim, "images", "higher", "SSIM", digits=3),
    "sharpness": Metric(sharpness, "images", "neither", "sharpness"),
    "l1": Metric(l1, "images", "lower", "L1", digits=4),
    "rfid": Metric(frechet_distance, "moments", "lower", "rFID"),
    "fid": Metric(frechet_distance, "moments", "lower", "FID"),
    "rfd": Metric(frechet_distance, "moments", "lower", "rFD"),
    "fd": Metric(frechet_distance, "moments", "lower", "FD"),
    "proposal_ppl": Metric(proposal_ppl, "nll", "lower", "PPL"),
    "masked_ce": Metric(masked_ce, "nll", "lower", "masked CE", digits=3),
}

_NAMED = re.compile(r"(?P<base>r?fid|r?fd|masked_ce)_(?P<rest>[\w.:/-]+)")
_PROPOSALS = ("ar", "nar", "t2i")


def frechet_name(extractor: str) -> str:
    """`fid` for Inception with the published weights, `fd_<extractor>` for everything else."""
    return "fid" if extractor == "inception" else f"fd_{extractor}"


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
    if found["base"] == "masked_ce":
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
