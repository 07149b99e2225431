"""Which pretrained networks an artifact has seen: its teacher, and judges that took part in its training and are no clean judges."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from tokcli.artifact.opening import Artifact, locate
from tokcli.errors import TokError
from tokcli.models import TeacherEncoder, Tokenizer
from tokcli.pretrained import READY
from tokcli.pretrained.teacher import Teacher, build_teacher, teacher_file

log = logging.getLogger("tok")


ROLES = {"teacher": "teacher", "discriminator": "discriminator", "text": None, "language": None}  # others: of a loss
FILES = ("data", "image", "mask", "checkpoint")  # roles of inputs that are no artifacts


def ancestry(a: Artifact, known: Iterable[Artifact] = ()) -> list[Artifact]:
    """The artifact and all that it descends from, itself first; an ancestor that is nowhere is named on stderr.

    Args:
        known: artifacts at hand, which need not be looked for.
    """
    at_hand = {k.id: k for k in known} | {a.id: a}
    found: dict[str, Artifact | None] = {a.id: a}
    waiting = [a]
    while waiting:
        child = waiting.pop()
        for role, entry in child.inputs.items():
            if entry["id"] in found or role in FILES or entry["id"].startswith("weights-"):
                continue
            try:
                parent = at_hand.get(entry["id"]) or locate(entry["id"], entry["path"], child.path.parent)
            except TokError as error:
                log.warning("%s: its %s is not at hand, so judges that trained it go unmarked: %s", a.id, role, error)
                found[entry["id"]] = None
                continue
            found[parent.id] = parent
            waiting.append(parent)
    return [one for one in found.values() if one is not None]


def _networks(recipe: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """(network, role) of every pretrained network that a training recipe names."""
    teacher = recipe.get("teacher")
    if isinstance(teacher, Mapping):
        yield str(teacher.get("name")), "teacher"
    for term in (recipe.get("loss") or {}).values():
        if isinstance(term, Mapping) and term.get("network"):
            yield str(term["network"]), "perceptual loss"
    gan = recipe.get("gan")
    judge = gan.get("discriminator") if isinstance(gan, Mapping) else None
    if isinstance(judge, Mapping) and judge.get("network"):
        yield str(judge["network"]), "discriminator"


def involved(lineage: Iterable[Artifact], extractor: str, sha256: str | None) -> tuple[str, ...]:
    """The roles in which an extractor's network took part in the training of these artifacts, each once.

    Args:
        lineage: from `ancestry`.
        extractor: its name; short names stand for what they abbreviate.
        sha256: of its weights, so that the same file counts under any name.
    """
    wanted, roles = READY.get(extractor, extractor), []
    for one in lineage:
        for network, role in _networks(one.recipe):
            if READY.get(network, network) == wanted:
                roles.append(role)
        for role, entry in one.inputs.items():
            called = ROLES.get(role.removeprefix("weights-"), "perceptual loss")
            if called and sha256 and role.startswith("weights-") and entry["id"] == f"weights-{sha256[:12]}":
                roles.append(called)
        teacher = one.facts.get("teacher")
        if isinstance(teacher, Mapping) and sha256 and teacher.get("sha256") == sha256:
            roles.append("teacher")
    return tuple(dict.fromkeys(roles))


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
