"""What a proposal network is conditioned on: nothing, a class, or a caption as a prefix of embeddings.

A batch of conditions is one tensor: classes (b,), -1 for none; or captions (b, length), numbers of text tokens from 1;
or captions' frozen features (b, length, d). In captions zeros fill what is behind their end, so that all zeros are
the empty caption, which is what guidance takes for "no condition".
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from pydantic import PositiveInt
from torch import Tensor, nn

from tokcli.pretrained.text import VOCABULARY, tower_dim
from tokcli.proposals.transformer import INIT_STD, Shape, Transformer
from tokcli.recipe.sections import SomeBlocks


@dataclass(frozen=True, kw_only=True)
class NoCondition:
    """Tokens alone; labels and captions are not looked at."""


@dataclass(frozen=True, kw_only=True)
class ClassCondition:
    """The class of an image, an entry of the embedding table; without classes in the data as `none`."""


@dataclass(frozen=True, kw_only=True)
class TextCondition:
    """A caption, as a prefix of embeddings of its text tokens (arXiv 2406.06525, section 2.4, without its T5).

    Args:
        tower: a frozen text network (`minilm`, `clip`, `open_clip:NAME/PRETRAINED`) whose features of each text token
            are projected by a small MLP; null: embeddings of OpenCLIP's byte pairs, learned along.
        length: number of text tokens that are read; longer captions are cut.
        depth: bidirectional transformer blocks over the prefix, of the proposal network's own sizes.
    """

    tower: str | None = None
    length: PositiveInt = 32
    depth: SomeBlocks = 0

    @property
    def feature_dim(self) -> int | None:
        """Width of the tower's features; None where text tokens themselves are the condition."""
        return tower_dim(self.tower) if self.tower else None

    def null(self, rows: int, device: torch.device) -> Tensor:
        """The empty caption, `rows` times."""
        if self.feature_dim is None:
            return torch.zeros(rows, self.length, dtype=torch.int64, device=device)
        return torch.zeros(rows, self.length, self.feature_dim, device=device)

    def fits(self, condition: Tensor) -> bool:
        """Whether a tensor is a batch of captions that are read so."""
        empty = self.null(0, condition.device)
        return condition.shape[1:] == empty.shape[1:] and condition.is_floating_point() == empty.is_floating_point()


Condition = NoCondition | ClassCondition | TextCondition
CONDITIONS: dict[str, type[Condition]] = {"none": NoCondition, "class": ClassCondition, "text": TextCondition}


class TextPrefix(nn.Module):
    """Captions to prefixes of `length` embeddings; positions behind a caption's end hold a learned padding."""

    def __init__(self, condition: TextCondition, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.feature_dim = condition.feature_dim
        self.embed: nn.Module
        if self.feature_dim is None:
            self.embed = nn.Embedding(VOCABULARY + 1, width)  # 0 is padding
        else:
            self.embed = nn.Sequential(
                nn.Linear(self.feature_dim, width, bias=False), nn.GELU(), nn.Linear(width, width, bias=False)
            )
        self.padding = nn.Parameter(torch.empty(width))
        self.position = nn.Parameter(torch.empty(condition.length, width))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=INIT_STD)
        self.encoder = None
        if condition.depth:
            self.encoder = Transformer(replace(shape, depth=condition.depth, causal=False))

    def forward(self, captions: Tensor, dropped: Bool[Tensor, " b"] | None = None) -> Float[Tensor, "b t d"]:
        """Prefixes of captions; those `dropped` are taken for empty."""
        given = captions != 0 if self.feature_dim is None else (captions != 0).any(-1)  # (b, t)
        if dropped is not None:
            given = given & ~dropped[:, None]
        x = torch.where(given[..., None], self.embed(captions), self.padding) + self.position
        return x if self.encoder is None else self.encoder(x, None)
