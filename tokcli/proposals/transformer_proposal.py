"""What the proposal networks that are transformers share: the embedding table, the prefix, positions and the head."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from tokcli.errors import TokError
from tokcli.proposals.conditions import TextCondition, TextPrefix
from tokcli.proposals.cross_entropy import keep_eager
from tokcli.proposals.draw import Sampling
from tokcli.proposals.protocol import Precision, Proposal
from tokcli.proposals.transformer import INIT_STD, Rotation, Shape, Transformer, grid_rotation, rotation
from tokcli.recipe.sections import Blocks, Probability, Share

Position = Literal[
    "rope-1d",
    "rope-2d",
    "rope-2d-llamagen",
    "learned",
    "learned+rope-1d",
    "learned+rope-2d",
    "learned+rope-2d-llamagen",
]
Head = Literal["zero", "tied"]


class TransformerProposal(Proposal):
    """A transformer over a prefix of condition and tokens; see `Proposal`.

    Rows of the embedding table: codes 0 to k - 1, classes from k, then the null class (no condition). A condition is
    turned into a prefix of embeddings (one of a class, `length` of a caption) that stands before the tokens.

    Args:
        codebook_size, grid, classes, text, label_drop: see `Proposal`.
        width: channels of a token's embedding.
        depth: number of blocks.
        heads: attention heads per block; must divide the width.
        mlp_width: hidden width of each block's MLP.
        position: how positions are encoded. `rope-1d`: rotary angles of the position in the sequence. `rope-2d`: half of the
            angles for the row and half for the column, with the condition at position 0. `rope-2d-llamagen`: the same, except
            that the queries and keys of the condition are zero, as in LlamaGen's table of angles, so that its attention score
            is always 0. `learned`: one embedding per position. `learned+rope-2d`
            and its like: both.
        qk_norm: normalise queries and keys.
        head: `zero`: a separate matrix, initialised with zeros; `tied`: the embedding table.
        dropout: share of values dropped in the embeddings and in both branches of each block, in [0, 1).
        embedding_dropout: share of values dropped in the embeddings, in [0, 1); null: as `dropout`.
        attention_dropout: share of attention weights dropped, in [0, 1).
        checkpointing: save memory in training at the cost of one more forward pass (activation checkpointing).
        scale_residual: initialise the matrices that write to the residual stream with deviation 0.02 / sqrt(2 depth), as in GPT-2,
            instead of 0.02.

    Raises:
        TokError: the heads do not divide the width, or leave each a width that the positions cannot be put into.
    """

    reads_captions = True
    causal: ClassVar[bool]
    gated: ClassVar[bool]
    biased: ClassVar[bool] = False
    """Of its transformer: see `Shape`."""
    special_rows: ClassVar[int] = 1
    """Rows of the embedding table after codes and classes."""

    def __init__(
        self,
        codebook_size: int,
        grid: tuple[int, int],
        classes: int,
        text: TextCondition | None = None,
        *,
        width: PositiveInt,
        depth: Blocks,
        heads: PositiveInt,
        mlp_width: PositiveInt,
        position: Position = "rope-1d",
        qk_norm: bool = False,
        head: Head = "zero",
        dropout: Share = 0.0,
        embedding_dropout: Share | None = None,
        attention_dropout: Share = 0.0,
        checkpointing: bool = False,
        scale_residual: bool = True,
        label_drop: Probability = 0.1,
    ) -> None:
        super().__init__(codebook_size, grid, classes, text, label_drop=label_drop)
        if width % heads:
            raise TokError(
                "proposal.heads",
                f"must divide the width {width}",
                got=f"{heads}",
                next="Choose heads that do: --set proposal.heads=N",
            )
        embedding_dropout = dropout if embedding_dropout is None else embedding_dropout
        shares = {"dropout": dropout, "embedding_dropout": embedding_dropout, "attention_dropout": attention_dropout}
        learned, _, rotary = position.rpartition("+") if "rope" in position else (position, "", "")
        of = {"rope-1d": 2, "rope-2d": 4, "rope-2d-llamagen": 4}.get(rotary, 1)
        if width // heads % of:
            raise TokError(
                "proposal.heads",
                f"width / heads must be a multiple of {of} for position {position}",
                got=f"{width} / {heads}",
                next="Change one: --set proposal.heads=N or --set proposal.width=N",
            )
        self.width, self.depth, self.heads = width, depth, heads
        self.null_row = codebook_size + self.classes
        shape = Shape(
            width=width,
            depth=depth,
            heads=heads,
            mlp_width=mlp_width,
            causal=self.causal,
            gated=self.gated,
            biased=self.biased,
            qk_norm=qk_norm,
            checkpointing=checkpointing,
            scale_residual=scale_residual,
            **shares,
        )
        self.text = TextPrefix(text, shape) if text else None
        self.prefix = text.length if text else 1
        """Embeddings before the tokens."""
        self.embedding = nn.Embedding(self.null_row + self.special_rows, width)
        self.rotary = rotary
        self.position = nn.Parameter(torch.empty(self.prefix + self.tokens, width)) if learned else None
        nn.init.normal_(self.embedding.weight, std=INIT_STD)
        if self.position is not None:
            nn.init.normal_(self.position, std=INIT_STD)
        self.transformer = Transformer(shape)
        self.head: nn.Linear | None = None
        if head == "zero":
            self.head = nn.Linear(width, self.head_rows, bias=False)
            nn.init.zeros_(self.head.weight)

    @property
    def length(self) -> int:
        """Positions that the transformer runs on in training."""
        return self.prefix + self.tokens - self.causal

    @property
    def head_rows(self) -> int:
        """Rows of the table that the head predicts in training."""
        return self.null_row + 1 if self.causal else self.codebook_size

    def head_weight(self, rows: int) -> Float[Tensor, "rows d"]:
        """The head's first rows."""
        return (self.embedding.weight if self.head is None else self.head.weight)[:rows]

    def flops(self) -> float:
        """Floating-point operations of one image's training step: 6 a weight and position, and attention's own.

        As in PaLM (arXiv 2204.02311, appendix B): causal attention counts in full, recomputation not at all.
        """
        weights = sum(p.numel() for p in self.transformer.parameters() if p.ndim == 2)
        attention = 12 * self.depth * self.width * self.length**2
        return float(6 * (weights * self.length + self.head_rows * self.width * self.tokens) + attention)

    def pass_flops(self, positions: int, keys: int, heads: int) -> float:
        """Floating-point operations of so many positions, each looking at `keys`, and of the head at `heads` of them."""
        weights = sum(p.numel() for p in self.transformer.parameters() if p.ndim == 2)
        attention = 2 * self.depth * self.width * positions * keys
        return float(2 * (weights * positions + attention + self.codebook_size * self.width * heads))

    @property
    def pass_weights(self) -> int:
        """Parameters of the transformer, which every pass of sampling reads."""
        return sum(p.numel() for p in self.transformer.parameters())

    def judging_flops(self) -> float:
        """A pass over an image, the head over codes alone."""
        return self.pass_flops(self.length, self.length, self.tokens)

    def prepare_compile(self) -> None:
        """Leave the chunks of the head's cross-entropy out of it."""
        keep_eager()

    def to_precision(self, precision: Precision) -> None:
        """In bfloat16 also round the transformer's matrices once: autocast would round frozen weights again at every token.

        The head stays float32.
        """
        super().to_precision(precision)
        if precision == "bfloat16":
            for module in self.transformer.modules():
                if isinstance(module, nn.Linear):
                    module.to(torch.bfloat16)

    def _prefix(self, condition: Tensor, seeds: Tensor | None = None) -> Float[Tensor, "b c d"]:
        """Embeddings of conditions; with seeds, when training, some become those of no condition."""
        dropped = None if seeds is None else self.dropped(seeds)
        if self.text:
            return self.text(condition, dropped)
        rows = torch.where(condition < 0, self.null_row, self.codebook_size + condition.long())
        if dropped is not None:
            rows = torch.where(dropped, self.null_row, rows)
        return self.embedding(rows)[:, None]

    def _prefixes(self, condition: Tensor, sampling: Sampling) -> Float[Tensor, "bb c d"]:
        """Prefixes for sampling: the conditions', and after them as many null ones where the sampling is guided."""
        if sampling.guided:
            condition = torch.cat([condition, self.null(len(condition)).to(condition.dtype)])
        return self._prefix(condition)

    def _rotation(self) -> Rotation | None:
        """Rotary angles of the prefix, all of which stands at place 0 of a grid, and of the tokens."""
        device, head_dim = self.embedding.weight.device, self.width // self.heads
        if not self.rotary:
            return None
        if self.rotary == "rope-1d":
            return rotation(torch.arange(self.prefix + self.tokens, device=device), head_dim)
        rows, columns = self.grid
        places = torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(columns, device=device)) + 1
        before = torch.zeros(self.prefix, 2, dtype=torch.int64, device=device)
        by = grid_rotation(torch.cat([before, places]), head_dim)
        if self.rotary == "rope-2d":
            return by
        turned = torch.arange(self.prefix + self.tokens, device=device)[:, None] >= self.prefix
        return Rotation(by.cos * turned, by.sin * turned)

    def _logits(self, features: Tensor, rows: int | None = None) -> Float[Tensor, "... k"]:
        """The head's first rows, those of the codes where not said, in float32 even under autocast: bfloat16 moves a logit of 10 by 0.03."""
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.float(), self.head_weight(rows or self.codebook_size).float())
