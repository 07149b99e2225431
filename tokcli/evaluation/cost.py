"""What an evaluation computes, for its dry run: networks on the meta device, in float32 proper as judges run."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch

from tokcli import loading
from tokcli.artifact.opening import Artifact
from tokcli.command import compute
from tokcli.command.compute import MICRO, Compute
from tokcli.device import on_meta
from tokcli.evaluation.captions import CLIP
from tokcli.evaluation.reconstructions import LPIPS
from tokcli.measure.extractors import Extractor, expanded
from tokcli.measure.predicting import DRAWS
from tokcli.pretrained import build_network
from tokcli.pretrained.teacher import build_teacher


class Settings(Protocol):
    """What of the recipe decides over the cost."""

    extractors: list[str]
    lpips: bool
    clip_score: bool
    probe_images: int


def evaluation_cost(
    settings: Settings,
    given: Sequence[tuple[Artifact, Artifact | None]],
    held_out: int | None,
    references: Sequence[int | None],
) -> Compute:
    """All networks' forward passes over held-out images, samples and references.

    Args:
        settings: the recipe's section.
        given: each artifact with its tokenizer, where it is measured by one.
        held_out: number of held-out images; None where nobody knows.
        references: number of images of each other reference; None where it is unknown, or no images are read.
    """
    sizes = {a.facts["use_size"] for a, _ in given}
    judges = {size: sum(_judge(name, size) for name in expanded(settings.extractors)) for size in sizes}
    each = probes = others = 0.0
    uncounted = ["reading", "statistics of features"]
    for a, tokenizer in given:
        size = a.facts["use_size"]
        if a.kind == "samples":
            clip = _network(CLIP, size, "pooled") if settings.clip_score else 0.0
            others += a.facts["number"] * (judges[size] + clip)
            uncounted += ["features of captions"] * bool(clip)
            continue
        assert tokenizer is not None, "only samples are measured without"
        encoding = _encoding(tokenizer)
        each += encoding
        if a.kind == "tokenizer":
            each += _teacher(a)
            probes += 2 * settings.probe_images * encoding
        if a.kind == "decoder" or (a.kind == "tokenizer" and a.facts["has_decoder"]):
            each += _pixels(a) + judges[size] + (2 * _network(LPIPS, size, "maps") if settings.lpips else 0.0)
            each += encoding if a.kind == "tokenizer" else 0.0
        if a.kind == "proposal":
            with on_meta():
                network = loading.proposal_of(a)
            each += network.judging_flops() * (1 + DRAWS if network.mode == "nar" else 1)
    shared = sum(judges.values())  # originals, once for all artifacts of a size
    unread = sum(number is None for number in references)
    uncounted += [f"{unread} reference(s) of which nobody knows how many images they have"] * bool(unread)
    others += sum((number or 0) * shared for number in references)
    total = None if held_out is None else held_out * (each + shared) + others + probes
    return Compute("image", each + shared, held_out, total, "float32", uncounted=tuple(uncounted), gpus=1)


def _network(name: str, size: int, does: str) -> float:
    with on_meta():
        network = build_network(name, "random")
    layers = [list(network.perceptual_layers)] if does == "maps" else []
    return compute.count(lambda: getattr(network, does)(torch.empty(MICRO, 3, size, size), *layers)) / MICRO


def _judge(name: str, size: int) -> float:
    with on_meta():
        judge = Extractor(name, build_network(name, "random"), name)
    return compute.count(lambda: judge(torch.empty(MICRO, 3, size, size))) / MICRO


def _encoding(tokenizer: Artifact) -> float:
    with on_meta():
        network = loading.tokenizer_of(tokenizer)
    return compute.encoding(network, tokenizer.recipe["quantizer"], tokenizer.facts["use_size"])


def _pixels(a: Artifact) -> float:
    with on_meta():
        decoder = loading.decoder_of(a)
    return compute.decoding(decoder, a.facts["code_dim"], math.prod(a.facts["grid"]))


def _teacher(a: Artifact) -> float:
    """Features of an image, where they are compared with the predicted ones; a teacher that encodes is run once alone."""
    known, size = a.recipe.get("teacher"), a.facts["use_size"]
    if not isinstance(known, dict) or a.recipe["method"] == "cluster":
        return 0.0
    with on_meta():
        teacher = build_teacher(known["name"], {k: v for k, v in known.items() if k != "name"}, "random")
    return compute.count(lambda: teacher(torch.empty(MICRO, 3, size, size))) / MICRO
