"""Tokens and captions of artifacts, as proposal networks train on them and are measured on them."""

import logging
from pathlib import Path

import torch

from tokcli import distributed
from tokcli.artifact.opening import Artifact
from tokcli.artifact.plans import Planned
from tokcli.data.token_store import TokenStore
from tokcli.errors import TokError
from tokcli.pretrained.feature_cache import BytePairTable, FeatureTable
from tokcli.pretrained.text import build_text_tower
from tokcli.proposals.conditions import ClassCondition, Condition, TextCondition

log = logging.getLogger("tok")
CAPTIONS = "captions.jsonl"
Table = BytePairTable | FeatureTable


def open_store(tokens: Artifact) -> TokenStore:
    """The tokens of an artifact, after every file was compared with its hash, and what they hold with the facts.

    One rank of each machine does so.

    Raises:
        TokError: they are damaged, or not what the manifest says.
    """
    mine = distributed.local_rank() == 0
    if mine:
        read = [path.name for path in tokens.path.glob("indices-*.npy")]  # whatever lies there
        read += [CAPTIONS] * (tokens.path / CAPTIONS).exists()
        for name in [*tokens.manifest["files"], *read]:
            tokens.file(name)
    store = TokenStore(tokens.path)
    if mine:
        store.check(tokens.facts)
    return store


def captioned(tokens: Artifact) -> bool | None:
    """Whether any image has a caption; None where a plan does not know."""
    if isinstance(tokens, Planned):
        known: bool | None = tokens.facts["captions"]
        return known
    if CAPTIONS not in tokens.manifest["files"]:
        return False
    tokens.file(CAPTIONS)
    return any(TokenStore(tokens.path).captions)


def check_captions(condition: Condition, where: str, *, captioned: bool) -> None:
    """Refuse images without captions for a network of captions.

    Raises:
        TokError: they have none.
    """
    if not captioned and isinstance(condition, TextCondition):
        raise TokError(
            where,
            "its images have no captions",
            got="condition.name: text",
            next="Tokenize a data set with captions, or set condition.name=none",
        )


def say_unread(condition: Condition, tokens: Artifact) -> None:
    """Say of images that have captions and no classes, that a network of classes is conditioned on nothing."""
    if isinstance(condition, ClassCondition) and not tokens.facts["classes"] and captioned(tokens):
        how = "--set 'condition={name: text, tower: minilm, length: 32}'"
        log.info(
            "%s: its images have captions and no classes: the network will be conditioned on nothing. To condition it on captions: %s",
            tokens.path,
            how,
        )


class CaptionTables:
    """Captions of token stores as conditions by number; the text tower is built once for all stores.

    Args:
        condition: how captions are read.
        weights: the tower's file, where it has one; None: looked for.
        device: where the tower runs.
    """

    def __init__(self, condition: TextCondition, weights: Path | None, device: torch.device) -> None:
        self.condition = condition
        self.tower = build_text_tower(condition.tower, weights).to(device) if condition.tower else None

    def of(self, store: TokenStore, where: str) -> Table:
        """The table of a store's captions.

        Args:
            where: the flag that named the store, for messages.

        Raises:
            TokError: the store has none.
        """
        texts = [text for row in store.captions for text in row]
        check_captions(self.condition, where, captioned=bool(texts))
        if self.tower is None:
            return BytePairTable(texts, self.condition.length)
        found = FeatureTable(self.tower, texts, self.condition.length)
        found.fill()
        return found
