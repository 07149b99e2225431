"""What every proposal network shares: its vocabulary, the class condition and the checks before sampling."""

import math
from typing import ClassVar

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from tokcli.errors import TokError
from tokcli.proposals.noise import Purpose, uniform
from tokcli.proposals.sampling import Sampling
from tokcli.proposals.transformer import Transformer


class Proposal(nn.Module):
    """A prior over the tokens of one image, under a class label or none.

    Rows of the embedding table: codes 0 to k - 1, classes from k, then the null class (no condition). A
    sample's randomness in training comes from its seed, dropout's from torch's global generator.

    Args:
        codebook_size: k, number of codes.
        grid: (h, w) of the tokens, in raster order.
        classes: number of class labels; 0 for an unconditional network.
        width, depth, heads, mlp_width: of the transformer.
        dropout: on the embeddings and on each block's two branches, in [0, 1).
        label_drop: share of training samples that get the null class, in [0, 1]; guidance needs it over 0.

    Raises:
        TokError: a value outside its range, or a width that the heads do not divide.
    """

    sampling_keys: ClassVar[frozenset[str]]
    """The fields of `Sampling` that this network reads."""
    embedding: nn.Embedding
    transformer: Transformer
    head: nn.Linear

    def __init__(
        self,
        codebook_size: int,
        grid: tuple[int, int],
        classes: int,
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
        self.codebook_size, self.grid, self.classes = codebook_size, grid, classes
        self.tokens = grid[0] * grid[1]
        self.width, self.depth, self.heads, self.label_drop = width, depth, heads, label_drop

    def loss(
        self, indices: Int64[Tensor, "b n"], labels: Int[Tensor, " b"], seeds: Int64[Tensor, " b"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Scalars by name; "loss", to be minimised, is a mean over samples, so that ranks can be averaged.

        Args:
            indices: codes in [0, k), in raster order.
            labels: classes in [0, classes), or -1 for none.
            seeds: one per sample; in training mode they choose what is masked and whose label is dropped.
        """
        raise NotImplementedError

    def generate(
        self,
        labels: Int[Tensor, " b"],
        seeds: Int64[Tensor, " b"],
        sampling: Sampling | None = None,
        known: Int64[Tensor, "b n"] | None = None,
    ) -> Int64[Tensor, "b n"]:
        """Draw tokens in raster order, without dropout or gradients; a row's randomness comes from its seed.

        Args:
            labels: classes in [0, classes), or -1 for none.
            seeds: one per image.
            sampling: settings; all default where left out.
            known: codes to keep, and -1 where one is drawn: the same places in every row. For an autoregressive network
                the codes to keep come first.

        Raises:
            TokError: a label out of range, settings or known tokens that the network cannot follow, or logits that are
                not finite.
        """
        sampling = sampling or Sampling()
        if known is None:
            known = torch.full((len(labels), self.tokens), -1, device=labels.device)
        self._check(labels, sampling, known)
        mode = self.training
        self.eval()
        try:
            with torch.inference_mode():
                indices = self._generate(labels, seeds, sampling, known)
        finally:
            self.train(mode)
        return indices.clone()  # outside of inference mode: an ordinary tensor

    def _generate(self, labels: Tensor, seeds: Tensor, sampling: Sampling, known: Tensor) -> Tensor:
        raise NotImplementedError

    def _check(self, labels: Tensor, sampling: Sampling, known: Tensor) -> None:
        drawn = known < 0
        if known.shape != (len(labels), self.tokens) or (drawn != drawn[:1]).any() or not drawn[0].any():
            raise ValueError(f"known tokens must leave the same places open in {len(labels)} rows of {self.tokens}")
        if (known >= self.codebook_size).any():
            raise ValueError(f"known tokens must be codes under {self.codebook_size}")
        outside = labels[(labels < -1) | (labels >= self.classes)]
        if len(outside):
            some = f"0 to {self.classes - 1}" if self.classes else "none: the network is unconditional"
            raise TokError("--classes", "no such class", got=f"Got {int(outside[0])}", next=f"Known: {some}")
        if sampling.guided and not (self.classes and self.label_drop):
            why = "was trained without label_drop" if self.classes else "has no classes"
            raise TokError(
                "--cfg-scale",
                f"the network {why} and cannot be guided",
                got=f"Got {sampling.cfg_scale}",
                next="Use --cfg-scale 1",
            )

    def _condition(self, labels: Tensor, seeds: Tensor | None = None) -> Int64[Tensor, " b"]:
        """Rows of the embedding table for labels; with seeds, when training, some become the null class."""
        null = self.codebook_size + self.classes
        rows = torch.where(labels < 0, null, self.codebook_size + labels.long())
        if seeds is None or not self.training or not self.label_drop:
            return rows
        first = torch.zeros(1, 1, dtype=torch.int64, device=seeds.device)
        return torch.where(uniform(seeds, Purpose.LABEL_DROP, first)[:, 0] < self.label_drop, null, rows)

    def _conditions(self, labels: Tensor, sampling: Sampling) -> Int64[Tensor, " bb"]:
        """Rows for sampling: the labels', and after them as many null rows where the sampling is guided."""
        rows = self._condition(labels)
        if not sampling.guided:
            return rows
        return torch.cat([rows, torch.full_like(rows, self.codebook_size + self.classes)])


def refuse_nonfinite(total: Tensor) -> None:
    """Raise a TokError where the sum of all logits of a sampling loop is not finite."""
    if not math.isfinite(total.item()):
        next_step = "Run tok verify on it, or lower --cfg-scale"
        raise TokError("--proposal", "the network's logits are not finite", next=next_step)
