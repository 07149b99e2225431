"""Every metric of tokens: of code counts and predicted features, of bags of tokens with classes, of a network that predicts them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokcli.data.pixels import unit
from tokcli.data.reading import read_batches
from tokcli.data.sources import ImageSource
from tokcli.data.transforms import evaluation_transform
from tokcli.evaluation.extractors import chosen
from tokcli.evaluation.records import Against, Measurement
from tokcli.measure import predicting, tokenizing
from tokcli.measure.found import Judged
from tokcli.metrics import Takes
from tokcli.metrics.dispatch import ask
from tokcli.metrics.reported import Reported
from tokcli.metrics.understanding import bags
from tokcli.models import Tokenizer
from tokcli.pretrained.teachers import Teacher
from tokcli.proposals import Proposal

log = logging.getLogger("tok")
MOST_NAMED = 10  # classes that only one split has
SERVES: tuple[Takes, ...] = ("counts", "features", "bags", "nll", "hits")


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
    for numbers, images in read_batches(source, evaluation_transform(size), labelled):
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
    of_learnt, of_asked = (bags(told.indices, grid, k) for told in (learnt, asked))
    against = Against(train.id, train.name, len(learnt.labels))
    return [
        Measurement(Reported(key), number.value, len(asked.labels), against=against)
        for key, number in ask("bags", of_learnt, learnt.labels, of_asked, asked.labels)
    ]


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
    return _measurements(predicting.judge(network, tokens, device, mask_ratio=mask_ratio), source)
