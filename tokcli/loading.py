"""Trained networks from artifacts."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokcli.artifact.manifest import MANIFEST, RESTORE
from tokcli.artifact.opening import Artifact
from tokcli.artifact.weights import load_strict, load_tensors
from tokcli.build import build_clustering, build_decoder, build_proposal, build_tokenizer, condition_of, frozen_on
from tokcli.data.sources.contents import known_sha256
from tokcli.errors import TokError
from tokcli.models import TeacherEncoder, Tokenizer
from tokcli.pretrained.published_weights import weights_entry
from tokcli.pretrained.text import build_text_tower, byte_pairs, tower_files
from tokcli.proposals import Proposal, TextCondition
from tokcli.quantizers import QUANTIZERS

WEIGHTS = "model.safetensors"


@contextlib.contextmanager
def _recorded(artifact: Artifact) -> Iterator[None]:
    """Whatever is wrong with a recorded recipe or fact is said of the manifest."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TokError(
            str(artifact.path / MANIFEST),
            "its recipe or facts do not describe a network",
            why=repr(error).splitlines()[0],
            next=RESTORE,
        ) from None


def tokenizer_of(artifact: Artifact) -> Tokenizer:
    """The tokenizer that an artifact describes, with fresh weights."""
    with _recorded(artifact):
        teacher = artifact.facts["teacher"]
        if artifact.recipe["method"] == "cluster":
            return build_clustering(artifact.recipe, "random")
        return build_tokenizer(artifact.recipe, teacher["feature_dim"] if teacher else None)


def check_discrete(artifact: Artifact) -> None:
    """Refuse a tokenizer without codes where indices are needed.

    Raises:
        TokError: its quantizer is the yardstick.
    """
    with _recorded(artifact):
        discrete = QUANTIZERS[artifact.recipe["quantizer"]["name"]].discrete
    if not discrete:
        raise TokError(
            f"--tokenizer {artifact.path}",
            "was trained without a quantizer and has no indices",
            next="Train one with codes",
        )


def load_tokenizer(artifact: Artifact, device: torch.device) -> Tokenizer:
    """A trained tokenizer, in eval mode, its weights' hash checked.

    Raises:
        TokError: the weights are damaged or do not fit the recipe.
    """
    tokenizer, teacher = tokenizer_of(artifact), artifact.facts["teacher"]
    tokenizer.load_exported(load_tensors(artifact.file(WEIGHTS)), str(artifact.path / WEIGHTS))
    if isinstance(tokenizer.encoder, TeacherEncoder):
        tokenizer.encoder.teacher.network.sha256 = teacher["sha256"]  # whose weights these were
    return frozen_on(tokenizer, device)


def own_decoder(tokenizer: Tokenizer, artifact: Artifact) -> Any:
    """A tokenizer's pixel decoder, for the grid at which it is used; raises TokError where it has none."""
    if tokenizer.pixel_decoder is None:
        raise TokError(
            str(artifact.path),
            "has no pixel decoder",
            got=f"has_decoder: {artifact.facts['has_decoder']}",
            next=f"Train one: tok train-decoder --tokenizer {artifact.path}",
        )
    tokenizer.pixel_decoder.grid = tuple(artifact.facts["grid"])
    return tokenizer.pixel_decoder


def decoder_of(artifact: Artifact) -> nn.Module:
    """The pixel decoder that an artifact describes, with fresh weights; arguments as for `load_decoder`."""
    if artifact.kind == "tokenizer":
        return own_decoder(tokenizer_of(artifact), artifact)
    facts = artifact.facts
    with _recorded(artifact):
        return build_decoder(artifact.recipe, facts["code_dim"], tuple(facts["grid"]), facts["use_size"])


def load_decoder(artifact: Artifact, device: torch.device) -> nn.Module:
    """A trained pixel decoder, in eval mode: codes (b, n, d) -> images (b, 3, s, s).

    Args:
        artifact: a decoder, or a tokenizer that was trained with one.
    """
    if artifact.kind == "tokenizer":
        return own_decoder(load_tokenizer(artifact, device), artifact)
    decoder = decoder_of(artifact)
    load_strict(decoder, load_tensors(artifact.file(WEIGHTS)), str(artifact.path / WEIGHTS))
    return frozen_on(decoder, device)


def proposal_of(artifact: Artifact) -> Proposal:
    """The proposal network that an artifact describes, with fresh weights."""
    facts = artifact.facts
    with _recorded(artifact):
        grid, classes = tuple(facts["grid"]), artifact.class_count or 0
        return build_proposal(artifact.recipe, facts["codebook_size"], grid, classes)


def load_proposal(artifact: Artifact, device: torch.device) -> Proposal:
    """A trained proposal network, in eval mode."""
    proposal = proposal_of(artifact)
    load_strict(proposal, load_tensors(artifact.file(WEIGHTS)), str(artifact.path / WEIGHTS))
    return frozen_on(proposal, device)


def check_text_weights(artifact: Artifact, given: Path | None) -> None:
    """Refuse another text tower than the one that a proposal network was trained with.

    Args:
        given: its file; None: looked for.

    Raises:
        TokError: it has other weights or other text tokens, or is found nowhere.
    """
    with _recorded(artifact):
        condition, recorded = condition_of(artifact.recipe), str(artifact.facts["text_sha256"])
    if not isinstance(condition, TextCondition) or condition.tower is None:
        return
    files = tower_files(condition.tower, given)
    found, entry = known_sha256(files[0]), artifact.inputs.get("weights-text", {})
    if found != recorded or entry.get("id", "") not in ("", weights_entry(files)["id"]):
        raise TokError(
            f"text tower {condition.tower}",
            f"has other weights than {artifact.path} was trained with",
            got=f"sha256 {found[:12]}, not {recorded[:12]}" if found != recorded else f"{files[1]}",
            next="Give the same file: --text-weights PATH",
        )


def load_caption_encoder(
    artifact: Artifact, weights: Path | None, device: torch.device
) -> Callable[[Sequence[str]], Tensor] | None:
    """Captions to conditions of a trained proposal network, on the CPU; None where it is not text-conditional.

    Args:
        weights: the text tower's file, where it has one; None: looked for.

    Raises:
        TokError: the tower's weights are found nowhere, or are not those that the network was trained with.
    """
    with _recorded(artifact):
        condition = condition_of(artifact.recipe)
        if not isinstance(condition, TextCondition):
            return None
        length = condition.length
    if condition.tower is None:
        return lambda captions: byte_pairs(captions, length)
    check_text_weights(artifact, weights)
    tower = build_text_tower(condition.tower, weights).to(device)
    return lambda captions: tower.encode(captions, length)
