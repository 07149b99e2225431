"""Metrics: pure functions from features, counts or images to numbers; reading is the work of `measure` and `evaluation`.

A new metric is one file and one line in METRICS. What it takes is computed once and handed to it; `reported` derives the
name that its numbers go by.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from tokcli.metrics.bootstrap import bootstrap_error
from tokcli.metrics.clip_score import clip_score
from tokcli.metrics.code_usage import codebook_perplexity, codebook_usage, entropy_bits, top_code_share
from tokcli.metrics.feature_prediction import feature_loss
from tokcli.metrics.fid import frechet_distance
from tokcli.metrics.frechet_ratio import frechet_ratio, geometric_mean
from tokcli.metrics.image_quality import l1, psnr, sharpness, ssim
from tokcli.metrics.inception_score import inception_score
from tokcli.metrics.kid import kid
from tokcli.metrics.likelihood import bits_per_image, masked_ce, proposal_ppl, token_accuracy
from tokcli.metrics.lpips import lpips
from tokcli.metrics.neighbours import coverage, density, precision, recall
from tokcli.metrics.understanding import knn_accuracy, probe_accuracy, vector_probe_accuracy

Takes = Literal[
    "counts",
    "features",
    "bags",
    "vectors",
    "images",
    "maps",
    "reconstruction_moments",
    "perturbed_moments",
    "moments",
    "spatial_moments",
    "moments_beside_real",
    "sets",
    "neighbours",
    "logits",
    "embeddings",
    "nll",
    "hits",
    "image_nats",
]
Better = Literal["higher", "lower", "neither"]


class KnownAs(NamedTuple):
    """What a metric is called on the one extractor that its name in the literature stands for: FD on Inception is FID.

    Args:
        extractor: its name; `inception` stands for pytorch-fid's weights alone.
        name: the reported name.
        title: the column heading.
    """

    extractor: str
    name: str
    title: str


@dataclass(frozen=True)
class Metric:
    """A metric: what computes it, what it is measured on, and how to read it.

    Args:
        function: computes it, from what it takes to a number, a `Spread`, or one value per image (b,), NaN where an image has none.
        takes: what the function is given.
            Of a tokenizer on held-out images:
            counts: `f(counts (k,))`, tokens per code;
            features: `f(predicted, target)`, both (b, n, d), one value per image;
            bags: `f(train, labels, test, wanted)`, `bags` of tokens and their images' classes;
            vectors: the same of the means of images' code vectors (n, d).
            Of reconstructions:
            images: `f(images, targets)`, both uint8 (b, c, h, w), one value per image;
            maps: `f(images, targets, heads)`, feature maps of VGG16 by layer, one value per image;
            reconstruction_moments: `f(a, b)`, `Moments` and `Gaussian` of reconstructions and of their originals;
            perturbed_moments: the same of reconstructions from tokens of which some were replaced by near codes.
            Of samples:
            moments: `f(a, b)`, `Moments` and `Gaussian` of generated and of real images;
            spatial_moments: the same of spatial features, for extractors that have them;
            moments_beside_real: `f(a, held_out, b)`, the same of generated, of as many held-out and of other real images;
            sets: `f(a, b)`, features (n, d) of generated and of real images;
            neighbours: `f(found)`, the `Neighbours` of real and generated images;
            logits: `f(logits)`, (n, classes) of generated images, for extractors that have them;
            embeddings: `f(images, captions)`, both (b, d), one value per image.
            Of a proposal network on held-out tokens:
            nll: `f(total, tokens)`, a sum in nats and its number of tokens;
            hits: `f(correct, tokens)`, two numbers of tokens;
            image_nats: `f(nats)`, -log p of each image's tokens (b,), of mode nar an upper bound; one value per image.
        better: which direction is an improvement.
        title: the column heading, without the arrow.
        percent: shown as a percentage in tables; the number itself stays in [0, 1].
        digits: decimals shown in tables.
        known_as: its name on one extractor; None: the extractor's name is always part of the reported name.
        extractors: those that it is measured with, as a recipe names them; empty: all that give what it takes.
        modes: of the proposal networks that it is measured of, `ar` or `nar`; empty: all.
        nonblank: of counts: reported of the patches with content too.
        over_extractors: of samples: makes one number of those of a protocol's extractors; None: there is none.
        error: of moments: `f(features (n, d), reference, replicates)`, the standard error that the interval comes from.
    """

    function: Callable[..., Any]
    takes: Takes
    better: Better
    title: str
    percent: bool = False
    digits: int = 2
    known_as: KnownAs | None = None
    extractors: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    nonblank: bool = False
    over_extractors: Callable[[Sequence[float]], float] | None = None
    error: Callable[..., float] | None = None


METRICS: dict[str, Metric] = {
    "codebook_usage": Metric(codebook_usage, "counts", "higher", "usage %", percent=True, digits=1, nonblank=True),
    "codebook_perplexity": Metric(
        codebook_perplexity, "counts", "higher", "codebook perplexity", digits=1, nonblank=True
    ),
    "entropy_bits": Metric(entropy_bits, "counts", "higher", "entropy, bits"),
    "top_code_share": Metric(top_code_share, "counts", "lower", "top code %", percent=True, digits=1),
    "probe_accuracy": Metric(probe_accuracy, "bags", "higher", "probe %", percent=True, digits=1),
    "vector_probe_accuracy": Metric(
        vector_probe_accuracy, "vectors", "higher", "vector probe %", percent=True, digits=1
    ),
    "knn_accuracy": Metric(knn_accuracy, "bags", "higher", "k-NN %", percent=True, digits=1),
    "feature_loss": Metric(feature_loss, "features", "lower", "feature loss", digits=4),
    "psnr": Metric(psnr, "images", "higher", "PSNR, dB"),
    "ssim": Metric(ssim, "images", "higher", "SSIM", digits=3),
    "sharpness": Metric(sharpness, "images", "neither", "sharpness"),
    "l1": Metric(l1, "images", "lower", "L1", digits=4),
    "lpips": Metric(lpips, "maps", "lower", "LPIPS", digits=3),
    # no error: each reconstruction has its original, and resampling one side alone makes the interval several times too wide
    "rfd": Metric(
        frechet_distance, "reconstruction_moments", "lower", "rFD", known_as=KnownAs("inception", "rfid", "rFID")
    ),
    "prfd": Metric(
        frechet_distance, "perturbed_moments", "lower", "prFD", known_as=KnownAs("inception", "prfid", "prFID")
    ),
    "fd": Metric(
        frechet_distance, "moments", "lower", "FD", known_as=KnownAs("inception", "fid", "FID"), error=bootstrap_error
    ),
    "fdr": Metric(frechet_ratio, "moments_beside_real", "lower", "FDr", over_extractors=geometric_mean),
    "sfd": Metric(frechet_distance, "spatial_moments", "lower", "sFD", known_as=KnownAs("inception", "sfid", "sFID")),
    "kd": Metric(kid, "sets", "lower", "KD", digits=4, known_as=KnownAs("inception", "kid", "KID")),
    "inception_score": Metric(
        inception_score,
        "logits",
        "higher",
        "IS",
        known_as=KnownAs("inception", "inception_score", "IS"),
        extractors=("inception",),
    ),
    "clip_score": Metric(
        clip_score,
        "embeddings",
        "higher",
        "CLIP score",
        known_as=KnownAs("clip", "clip_score", "CLIP score"),
        extractors=("clip",),
    ),
    "precision": Metric(precision, "neighbours", "higher", "precision", digits=3),
    "recall": Metric(recall, "neighbours", "higher", "recall", digits=3),
    "density": Metric(density, "neighbours", "higher", "density", digits=3),
    "coverage": Metric(coverage, "neighbours", "higher", "coverage", digits=3),
    "bits_per_image": Metric(bits_per_image, "image_nats", "lower", "bits/image", digits=1),
    "proposal_ppl": Metric(proposal_ppl, "nll", "lower", "PPL", modes=("ar",)),
    "token_accuracy": Metric(
        token_accuracy, "hits", "higher", "token accuracy %", percent=True, digits=1, modes=("ar",)
    ),
    "masked_ce": Metric(masked_ce, "nll", "lower", "masked CE", digits=3, modes=("nar",)),
    "masked_accuracy": Metric(
        token_accuracy, "hits", "higher", "masked accuracy %", percent=True, digits=1, modes=("nar",)
    ),
}
