"""What every proposal network shares: its vocabulary, its condition and the checks before sampling."""

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from tokcli.errors import TokError
from tokcli.proposals.conditions import TextCondition, TextPrefix
from tokcli.proposals.noise import Purpose, uniform
from tokcli.proposals.sampling import Sampling
from tokcli.proposals.transformer import Transformer


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
        dropout: on the embeddings and on each block's two branches, in [0, 1).
        label_drop: share of training samples whose class or caption is dropped, in [0, 1]; guidance needs it over 0.

    Raises:
        TokError: a value outside its range, or a width that the heads do not divide.
    """

    mode: ClassVar[Literal["ar", "nar"]]
    sampling_keys: ClassVar[frozenset[str]]
    """The fields of `Sampling` that this network reads."""
    gated: ClassVar[bool]
    """Whether its MLPs are."""
    embedding: nn.Embedding
    transformer: Transformer
    head: nn.Linear

    def __init__(
        self,
        codebook_size: int,
        grid: tuple[int, int],
        classes: int,
        text: TextCondition | None = None,
        *,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        dropout: float = 0.0,
        label_drop: float = 0.1,
    ) -> None:
        super().__init__()
        sizes = {"width": width, "depth": depth, "heads": heads, "mlp_width": mlp_width}
        for key, value in sizes.items():
            if value < 1:
                raise TokError(f"proposal.{key}", "must be at least 1", got=f"Got {value}")
        if width % heads:
            raise TokError("proposal.heads", f"must divide the width {width}", got=f"Got {heads}")
        if not 0 <= dropout < 1:
            raise TokError("proposal.dropout", "must be at least 0 and under 1", got=f"Got {dropout}")
        if not 0 <= label_drop <= 1:
            raise TokError("proposal.label_drop", "must be between 0 and 1", got=f"Got {label_drop}")
        self.codebook_size, self.grid, self.classes = codebook_size, grid, 0 if text else classes
        self.tokens = grid[0] * grid[1]
        self.width, self.depth, self.heads, self.label_drop = width, depth, heads, label_drop
        self.null_row = codebook_size + self.classes
        self.text = TextPrefix(text, width, heads, mlp_width, dropout, gated=self.gated) if text else None
        self.prefix = text.length if text else 1
        """Embeddings before the tokens."""

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
        self, indices: Int64[Tensor, "b n"], condition: Shaped[Tensor, "b *c"], seeds: Int64[Tensor, " b"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Scalars by name; "loss", to be minimised, is a mean over samples, so that ranks can be averaged.

        Args:
            indices: codes in [0, k), in raster order.
            condition: classes in [0, classes), -1 for none; or captions, see `tokcli.proposals.conditions`.
            seeds: one per sample; in training mode they choose what is masked and whose condition is dropped.
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


def refuse_nonfinite(total: Tensor) -> None:
    """Raise a TokError where the sum of all logits of a sampling loop is not finite."""
    if not math.isfinite(total.item()):
        next_step = "Run tok verify on it, or lower --cfg-scale"
        raise TokError("--proposal", "the network's logits are not finite", next=next_step)
