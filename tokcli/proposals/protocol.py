"""What every proposal network shares: its vocabulary, its condition and the checks before sampling."""

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from pydantic import PositiveInt
from torch import Tensor, nn

from tokcli.errors import TokError
from tokcli.proposals.conditions import TextCondition, TextPrefix
from tokcli.proposals.draw import Drawing, Sampling
from tokcli.proposals.noise import Purpose, uniform
from tokcli.proposals.transformer import INIT_STD, Rotation, Shape, Transformer, grid_rotation, rotation
from tokcli.recipe.ranges import Probability, Share

Position = Literal["rope-1d", "rope-2d", "rope-2d-llamagen", "learned"]
Head = Literal["zero", "tied"]


class Proposal(nn.Module):
    """A prior over the tokens of one image, under a class, a caption or nothing.

    Rows of the embedding table: codes 0 to k - 1, classes from k, then the null class (no condition). A condition is
    turned into a prefix of embeddings (one of a class, `length` of a caption) that stands before the tokens. A
    sample's randomness in training comes from its seed, dropout's from torch's global generator.

    Args:
        codebook_size: k, number of codes.
        grid: (h, w) of the tokens, in raster order.
        classes: number of class labels; 0 for a network without.
        text: what is known of captions, for a text-conditional network.
        width, depth, heads, mlp_width: of the transformer.
        position: `rope-1d`, rotary angles of the place in the sequence; `rope-2d`, half of them of the row and half of the
            column, the condition standing at place 0; `rope-2d-llamagen`, the same but for the condition, whose queries and
            keys are zero as by LlamaGen's table of angles, so that its score is 0 wherever it is seen from; or `learned`, one
            embedding a place.
        qk_norm: normalise queries and keys.
        head: `zero`, a matrix of its own that starts from zero, or `tied`, the embedding table.
        dropout: on the embeddings and on each block's two branches, in [0, 1).
        embedding_dropout: on the embeddings, where it is another one.
        attention_dropout: on attention weights, in [0, 1).
        checkpointing: hold less memory in training for one more forward pass.
        scale_residual: start the matrices that write to the residual stream from 0.02 / sqrt(2 depth), as GPT-2, not 0.02.
        label_drop: share of training samples whose class or caption is dropped, in [0, 1]; guidance needs it over 0.

    Raises:
        TokError: the heads do not divide the width, or leave each a width that the positions cannot be put into.
    """

    mode: ClassVar[Literal["ar", "nar"]]
    sampling_keys: ClassVar[frozenset[str]]
    """The fields of `Sampling` that this network reads."""
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
        depth: PositiveInt,
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
        super().__init__()
        if width % heads:
            raise TokError("proposal.heads", f"must divide the width {width}", got=f"Got {heads}")
        embedding_dropout = dropout if embedding_dropout is None else embedding_dropout
        shares = {"dropout": dropout, "embedding_dropout": embedding_dropout, "attention_dropout": attention_dropout}
        of = {"rope-1d": 2, "rope-2d": 4, "rope-2d-llamagen": 4}.get(position, 1)
        if width // heads % of:
            raise TokError("proposal.heads", f"width / heads must be a multiple of {of} for position {position}",
                           got=f"Got {width} / {heads}")  # fmt: skip
        self.codebook_size, self.grid, self.classes = codebook_size, grid, 0 if text else classes
        self.tokens = grid[0] * grid[1]
        self.width, self.depth, self.heads, self.label_drop = width, depth, heads, label_drop
        self.null_row = codebook_size + self.classes
        shape = Shape(
            width=width, depth=depth, heads=heads, mlp_width=mlp_width, causal=self.causal, gated=self.gated,
            biased=self.biased, qk_norm=qk_norm, checkpointing=checkpointing,
            scale_residual=scale_residual, **shares,
        )  # fmt: skip
        self.text = TextPrefix(text, shape) if text else None
        self.prefix = text.length if text else 1
        """Embeddings before the tokens."""
        self.embedding = nn.Embedding(self.null_row + self.special_rows, width)
        self.kind = position
        self.position = nn.Parameter(torch.empty(self.prefix + self.tokens, width)) if position == "learned" else None
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

    def drawing(self, sampling: Sampling, drawn: int) -> Drawing:
        """What it takes to draw so many tokens of an image."""
        raise NotImplementedError

    @property
    def conditional(self) -> bool:
        """Whether there is anything to condition on."""
        return bool(self.classes or self.text)

    def null(self, rows: int) -> Shaped[Tensor, "rows *c"]:
        """A batch of "no condition", as `generate` and `loss` take them."""
        if self.text:
            return self.text.null(rows)
        return torch.full((rows,), -1, device=self.embedding.weight.device)

    def loss(
        self,
        indices: Int64[Tensor, "b n"],
        condition: Shaped[Tensor, "b *c"],
        seeds: Int64[Tensor, " b"],
        progress: Float[Tensor, " b"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Scalars by name; "loss", to be minimised, is a mean over samples, so that ranks can be averaged.

        Args:
            indices: codes in [0, k), in raster order.
            condition: classes in [0, classes), -1 for none; or captions, see `tokcli.proposals.conditions`.
            seeds: one per sample; in training mode they choose what is masked and whose condition is dropped.
            progress: share of the training that is done, in [0, 1]; None: 1.
        """
        raise NotImplementedError

    def generate(
        self,
        condition: Shaped[Tensor, "b *c"],
        seeds: Int64[Tensor, " b"],
        sampling: Sampling | None = None,
        known: Int64[Tensor, "b n"] | None = None,
    ) -> Int64[Tensor, "b n"]:
        """Draw tokens in raster order, without dropout or gradients; a row's randomness comes from its seed.

        Args:
            condition: as in `loss`; `null` gives rows without.
            seeds: one per image.
            sampling: settings; all default where left out.
            known: codes to keep, and -1 where one is drawn: the same places in every row. For an autoregressive network
                the codes to keep come first.

        Raises:
            TokError: a class out of range, settings or known tokens that the network cannot follow, or logits that are
                not finite.
        """
        sampling = sampling or Sampling()
        if known is None:
            known = torch.full((len(seeds), self.tokens), -1, device=seeds.device)
        self._check(condition, sampling, known)
        mode = self.training
        self.eval()
        try:
            with torch.inference_mode():
                indices = self._generate(condition, seeds, sampling, known)
        finally:
            self.train(mode)
        return indices.clone()  # outside of inference mode: an ordinary tensor

    def _generate(self, condition: Tensor, seeds: Tensor, sampling: Sampling, known: Tensor) -> Tensor:
        raise NotImplementedError

    def _check(self, condition: Tensor, sampling: Sampling, known: Tensor) -> None:
        drawn = known < 0
        if known.shape != (len(condition), self.tokens) or (drawn != drawn[:1]).any() or not drawn[0].any():
            raise ValueError(f"known tokens must leave the same places open in {len(condition)} rows of {self.tokens}")
        if (known >= self.codebook_size).any():
            raise ValueError(f"known tokens must be codes under {self.codebook_size}")
        if self.text:
            if not self.text.fits(condition):
                raise ValueError(f"captions of shape {tuple(condition.shape)} for {tuple(self.null(0).shape)}")
        else:
            outside = condition[(condition < -1) | (condition >= self.classes)]
            if len(outside):
                some = f"0 to {self.classes - 1}" if self.classes else "none: the network is unconditional"
                raise TokError("--classes", "no such class", got=f"Got {int(outside[0])}", next=f"Known: {some}")
        self.check_sampling(sampling, int(drawn[0].sum()))

    def check_sampling(self, sampling: Sampling, drawn: int) -> None:
        """Refuse settings that the network cannot follow where so many tokens are drawn.

        Raises:
            TokError: guidance of a network that was never trained without its condition; see also its subclasses.
        """
        if sampling.guided and not (self.conditional and self.label_drop):
            why = "was trained without label_drop" if self.conditional else "has no classes"
            raise TokError(
                "--cfg-scale",
                f"the network {why} and cannot be guided",
                got=f"Got {sampling.cfg_scale}",
                next="Use --cfg-scale 1",
            )

    def _prefix(self, condition: Tensor, seeds: Tensor | None = None) -> Float[Tensor, "b c d"]:
        """Embeddings of conditions; with seeds, when training, some become those of no condition."""
        dropped = self._dropped(seeds) if seeds is not None and self.training and self.label_drop else None
        if self.text:
            return self.text(condition, dropped)
        rows = torch.where(condition < 0, self.null_row, self.codebook_size + condition.long())
        if dropped is not None:
            rows = torch.where(dropped, self.null_row, rows)
        return self.embedding(rows)[:, None]

    def _dropped(self, seeds: Tensor) -> Bool[Tensor, " b"]:
        first = torch.zeros(1, 1, dtype=torch.int64, device=seeds.device)
        return uniform(seeds, Purpose.LABEL_DROP, first)[:, 0] < self.label_drop

    def _prefixes(self, condition: Tensor, sampling: Sampling) -> Float[Tensor, "bb c d"]:
        """Prefixes for sampling: the conditions', and after them as many null ones where the sampling is guided."""
        if sampling.guided:
            condition = torch.cat([condition, self.null(len(condition)).to(condition.dtype)])
        return self._prefix(condition)

    def _rotation(self) -> Rotation | None:
        """Rotary angles of the prefix, all of which stands at place 0 of a grid, and of the tokens."""
        device, head_dim = self.embedding.weight.device, self.width // self.heads
        if self.kind == "learned":
            return None
        if self.kind == "rope-1d":
            return rotation(torch.arange(self.prefix + self.tokens, device=device), head_dim)
        rows, columns = self.grid
        places = torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(columns, device=device)) + 1
        before = torch.zeros(self.prefix, 2, dtype=torch.int64, device=device)
        by = grid_rotation(torch.cat([before, places]), head_dim)
        if self.kind == "rope-2d":
            return by
        turned = torch.arange(self.prefix + self.tokens, device=device)[:, None] >= self.prefix
        return Rotation(by.cos * turned, by.sin * turned)

    def _logits(self, features: Tensor, rows: int | None = None) -> Float[Tensor, "... k"]:
        """The head's first rows, those of the codes where not said, in float32 even under autocast: bfloat16 moves a logit of 10 by 0.03."""
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.float(), self.head_weight(rows or self.codebook_size).float())


def refuse_nonfinite(total: Tensor) -> None:
    """Raise a TokError where the sum of all logits of a sampling loop is not finite."""
    if not math.isfinite(total.item()):
        next_step = "Run tok verify on it, or lower --cfg-scale"
        raise TokError("--proposal", "the network's logits are not finite", next=next_step)
