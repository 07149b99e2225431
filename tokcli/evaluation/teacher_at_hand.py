"""The teacher of a tokenizer that is judged, where its weights are those of the training."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from tokcli.artifact.opening import Artifact
from tokcli.errors import TokError
from tokcli.models import TeacherEncoder, Tokenizer
from tokcli.pretrained.teachers import Teacher, build_teacher, teacher_file

log = logging.getLogger("tok")


def teacher_of(a: Artifact, network: Tokenizer, files: Mapping[str, Path], device: torch.device) -> Teacher | None:
    """The teacher whose features the tokenizer predicts."""
    if isinstance(network.encoder, TeacherEncoder):
        return network.encoder.teacher
    if network.feature_decoder is None:
        return None
    known = a.recipe["teacher"]
    keys = {k: v for k, v in known.items() if k != "name"}
    weights = teacher_file(files, known["name"])
    try:
        teacher = build_teacher(known["name"], keys, weights)
    except TokError as error:
        if weights is not None:
            raise  # a file that was named is one to be read
        log.warning("no feature loss: %s", error)
        return None
    trained_with = a.facts["teacher"]["sha256"]
    if teacher.sha256 != trained_with:  # the features of other weights are not those that the codes predict
        log.warning(
            "no feature loss of %s: its teacher had the weights with sha256 %s, and those at hand have %s",
            a.id,
            str(trained_with)[:8],
            str(teacher.sha256)[:8],
        )
        return None
    return teacher.to(device)
