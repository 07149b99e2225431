"""Tokens of training images of which a proposal network drew some, so that decoders meet what generation gives them.

Drawn tokens alone have no true picture. With most tokens of a real image in their places, the picture to decode them to is that
image: RobusTok's post-training (arXiv 2509.12474), which keeps a token with probability 0.7; here the number is exact. It draws
pairs once beforehand; here each step draws anew.
"""

import logging
from pathlib import Path

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from tokcli import loading
from tokcli.artifact.opening import Artifact
from tokcli.build import condition_of
from tokcli.data.batches import Batch
from tokcli.data.randomness import seed_of
from tokcli.data.sources import ImageSource
from tokcli.measure.predicting import class_numbers
from tokcli.pretrained.feature_cache import BytePairTable, FeatureTable
from tokcli.pretrained.text import build_text_tower
from tokcli.proposals import Proposal, Sampling, TextCondition
from tokcli.recipe.sections import Drawn, Train

log = logging.getLogger("tok")


def sampling_of(section: Drawn) -> Sampling:
    """How the recipe's section draws."""
    keys = ("cfg_scale", "temperature", "top_k", "top_p")
    return Sampling(**{key: getattr(section, key) for key in keys})


class Conditions:
    """What a proposal network is told of training images.

    Args:
        proposal: the network's artifact.
        source: the images; those of a class that it does not know, or without class or caption, are drawn without a condition.
        weights: the text tower's file, where it has one; None: looked for.
        device: where the tower runs.
        seed: which of several captions of an image is read depends on it.
    """

    def __init__(
        self, proposal: Artifact, source: ImageSource, weights: Path | None, device: torch.device, seed: int
    ) -> None:
        self.seed, self.known = seed, class_numbers(proposal.facts["classes"], source.classes)
        condition, numbers = condition_of(proposal.recipe), range(len(source))
        self.text = condition if isinstance(condition, TextCondition) else None
        self.captions: BytePairTable | FeatureTable | None = None
        self.without = 0
        """Images that are drawn without a condition by a network that knows some."""
        if self.text is not None:
            texts = [source.captions(i) for i in numbers]
            self.ends = [0, *torch.tensor([len(row) for row in texts]).cumsum(0).tolist()]
            if self.ends[-1]:
                self.captions = self._table(self.text, [text for row in texts for text in row], weights, device)
            self.without = sum(not row for row in texts)
        elif proposal.class_count:
            self.without = int((self.known[torch.tensor([source.label(i) for i in numbers])] < 0).sum())

    @staticmethod
    def _table(
        condition: TextCondition, texts: list[str], weights: Path | None, device: torch.device
    ) -> BytePairTable | FeatureTable:
        if condition.tower is None:
            return BytePairTable(texts, condition.length)
        table = FeatureTable(build_text_tower(condition.tower, weights).to(device), texts, condition.length)
        table.fill()
        return table

    def __call__(self, step: int, batch: Batch) -> Shaped[Tensor, "b *c"]:
        """As `Proposal.loss` takes them, on the CPU."""
        if self.text is None:
            return self.known[batch.labels]
        if self.captions is None:
            return self.text.null(len(batch.indices), torch.device("cpu"))
        return self.captions.rows(torch.tensor([self._caption(step, number) for number in batch.indices.tolist()]))

    def _caption(self, step: int, number: int) -> int:
        first, stop = self.ends[number : number + 2]
        return first + seed_of(self.seed, "drawn-caption", step, number) % (stop - first) if stop > first else -1


class DrawnTokens:
    """Draws some tokens of each batch; what is drawn of an image is a function of (seed, step, its number).

    Args:
        network: trained and frozen.
        section, train: of the recipe.
        seed: of the training.
        conditions: of the images; None: the network is told nothing.
    """

    def __init__(
        self, network: Proposal, section: Drawn, train: Train, seed: int, conditions: Conditions | None = None
    ) -> None:
        self.network, self.section, self.train, self.seed = network, section, train, seed
        self.conditions, self.sampling = conditions, sampling_of(section)
        network.to_precision(train.precision)

    @property
    def without(self) -> int:
        """Images whose tokens are drawn without a condition; see `Conditions`."""
        return self.conditions.without if self.conditions else 0

    def __call__(self, step: int, batch: Batch, indices: Int64[Tensor, "b n"]) -> Int64[Tensor, "b n"]:
        """The indices of a batch, on the network's device, of which it draws the share of this step."""
        seeds = torch.tensor([seed_of(self.seed, "drawn", step, number) for number in batch.indices.tolist()])
        told = self.conditions(step, batch) if self.conditions else self.network.null(len(indices))
        given = indices, told.to(indices.device), seeds.to(indices.device)
        share = self.section.at(step, self.train.steps)
        rows = -(-len(indices) // self.train.accumulate)  # as many at once as the decoder is trained on
        drawn, context = [], self.section.context
        for tokens, condition, own in zip(*(part.split(rows) for part in given), strict=True):
            drawn.append(self.network.redraw(tokens, condition, own, share, self.sampling, context=context))
        return torch.cat(drawn)


def open_drawn(
    proposal: Artifact,
    section: Drawn,
    train: Train,
    source: ImageSource,
    weights: Path | None,
    device: torch.device,
    seed: int,
) -> DrawnTokens:
    """What draws in a training; images without a condition are counted and said.

    Raises:
        TokError: see `loading.load_proposal` and `build_text_tower`.
    """
    conditions = Conditions(proposal, source, weights, device, seed)
    network = loading.load_proposal(proposal, device)
    if conditions.without:
        what = "caption" if network.captions else "class that the network knows"
        rarely = "" if network.guidable else ", which it never learned to do: its label_drop is 0"
        log.warning(
            "--proposal %s: %d of %d images have no %s, so their tokens are drawn without a condition%s",
            proposal.path,
            conditions.without,
            len(source),
            what,
            rarely,
        )
    return DrawnTokens(network, section, train, seed, conditions)
