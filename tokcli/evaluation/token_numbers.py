"""Every metric of tokens: of code counts and predicted features, of bags of tokens with classes, of a network that predicts them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokcli.data.reading import BATCH, read_batches
from tokcli.data.sources import ImageSource
from tokcli.data.transforms import evaluation_transform, unit
from tokcli.evaluation.records import Against, Measurement
from tokcli.measure import predicting, tokenizing
from tokcli.measure.extractors import chosen
from tokcli.measure.predicting import DRAWS
from tokcli.metrics import Takes
from tokcli.metrics.reported import Judged, Reported, ask
from tokcli.metrics.understanding import bags
from tokcli.models import Tokenizer
from tokcli.pretrained.teacher import Teacher
from tokcli.proposals import Proposal

log = logging.getLogger("tok")
MOST_NAMED = 10  # classes that only one split has
SERVES: tuple[Takes, ...] = ("counts", "features", "bags", "vectors", "nll", "hits", "image_nats")


def judge_tokenizer(
    network: Tokenizer, source: ImageSource, device: torch.device, *, size: int, teacher: Teacher | None
) -> list[Measurement]:
    """Metrics of code counts and of predicted features on held-out images."""
    found = _measurements(tokenizing.judge(network, source, device, size=size, teacher=teacher), source)
    by = _features(teacher) if teacher is not None else None
    return [replace(m, by=by) if m.what.declared.takes == "features" else m for m in found]


def _measurements(judged: Judged, source: ImageSource) -> list[Measurement]:
    against = Against(source.id, source.name, judged.counted["images"])
    return [Measurement(*one, against) for one in judged.found]


def _features(teacher: Teacher) -> str:
    """What a feature loss is of: every setting that makes other features."""
    layers, norm = ", ".join(map(str, teacher.layers)), "" if teacher.norm else " without norm"
    norm += " without projection" if teacher.projection is False else ""
    return f"features of {teacher.name} (layer {layers}{norm}, at {teacher.image_size} px, sha256 {str(teacher.sha256)[:8]})"


class Told(NamedTuple):
    """Tokens of labelled images."""

    indices: Tensor  # (b, n)
    labels: np.ndarray  # (b,)


def _common(train: ImageSource, held_out: ImageSource) -> list[str]:
    """The classes, by name, that both have; what only one of them has is said."""
    common = [name for name in train.classes if name in held_out.classes]
    if train.classes and held_out.classes and (only := sorted({*train.classes} ^ {*held_out.classes})):
        named = ", ".join(only[:MOST_NAMED]) + (f" and {len(only) - MOST_NAMED} more" if len(only) > MOST_NAMED else "")
        log.warning(
            "%s and %s: classes that only one of them has are not measured on: %s", train.name, held_out.name, named
        )
    return common


@torch.no_grad()
def _told(
    network: Tokenizer, source: ImageSource, classes: Sequence[str], most: int, size: int, device: torch.device
) -> Told:
    """Tokens of images of these classes, numbered by their place among them."""
    known = predicting.class_numbers(classes, source.classes).tolist()
    labelled = [i for i in chosen(len(source), most) if known[source.label(i)] >= 0]
    indices, labels = [], []
    for numbers, images in read_batches(source, evaluation_transform(size), labelled, desc="tokens of the probe"):
        indices.append(network.encode(unit(images, device)).cpu())
        labels += [known[source.label(i)] for i in numbers]
    return Told(torch.cat(indices) if indices else torch.empty(0, 0, dtype=torch.int64), np.array(labels))


def judge_understanding(
    network: Tokenizer, train: ImageSource, held_out: ImageSource, device: torch.device, *, size: int, most: int
) -> list[Measurement]:
    """Accuracy of held-out images' classes told from their tokens; none where images have no classes, or one, or are the same.

    Args:
        train: images that a probe learns from.
        most: so many of each set at most, at random.
    """
    common = _common(train, held_out) if most else []
    if not common:
        return []
    if train.id == held_out.id:
        log.warning("no probe: the held-out images are those that it would learn from: %s", train.name)
        return []
    learnt, asked = (_told(network, source, common, most, size, device) for source in (train, held_out))
    if len(set(learnt.labels.tolist())) < 2 or not len(asked.labels):
        log.warning("no probe: %s holds one class, or %s none of them", train.name, held_out.name)
        return []
    grid, k = network.grid(size), network.quantizer.codebook_size
    views: dict[Takes, Callable[[Tensor], Any]] = {
        "bags": lambda indices: bags(indices, grid, k),
        "vectors": lambda indices: _mean_codes(network, indices, device),
    }
    against = Against(train.id, train.name, len(learnt.labels))
    return [
        Measurement(Reported(key), number.value, len(asked.labels), against=against)
        for takes, seen in views.items()
        for key, number in ask(takes, seen(learnt.indices), learnt.labels, seen(asked.indices), asked.labels)
    ]


@torch.no_grad()
def _mean_codes(network: Tokenizer, indices: Tensor, device: torch.device) -> Tensor:
    """The mean of each image's code vectors (b, d)."""
    return torch.cat([network.codes(part.to(device)).mean(1).float().cpu() for part in indices.split(BATCH)])


def judge_proposal(
    network: Proposal,
    tokenizer: Tokenizer,
    source: ImageSource,
    device: torch.device,
    *,
    size: int,
    mask_ratio: float,
    classes: Sequence[str],
    captions: Callable[[Sequence[str]], Tensor] | None,
) -> list[Measurement]:
    """Metrics of likelihoods and hits on held-out tokens; `classes` and `captions` are as for `held_out_tokens`."""
    unknown = [name for name in source.classes if name not in classes] if classes else []
    if unknown:
        log.warning(
            "%s: images of classes that the proposal network does not know are predicted without class: %s",
            source.name,
            ", ".join(unknown),
        )
    tokens = predicting.held_out_tokens(tokenizer, source, device, size=size, classes=classes, captions=captions)
    found = _measurements(predicting.judge(network, tokens, device, mask_ratio=mask_ratio), source)
    return [_of_mode(m, network.mode) for m in found]


def _of_mode(m: Measurement, mode: str) -> Measurement:
    """With the network's mode, where networks of both have such a number, and what the number is where it is a bound."""
    if m.what.declared.modes:
        return m
    bound = mode == "nar" and m.what.declared.takes == "image_nats"
    by = f"an upper bound over all orders of the tokens, {DRAWS} masks an image" if bound else m.by
    return replace(m, by=by, what=replace(m.what, mode=mode))
