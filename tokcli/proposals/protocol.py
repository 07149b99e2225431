"""What training, sampling and judging ask of a proposal network; how it computes is its own affair.

A member of PROPOSALS is a `Proposal` that sets `mode` and has `loss`, `judged` and `draw_tokens`. The rest has defaults.
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from tokcli.device import autocast
from tokcli.errors import TokError
from tokcli.proposals.conditions import TextCondition
from tokcli.proposals.draw import Drawing, Sampling
from tokcli.proposals.masking import random_mask
from tokcli.proposals.noise import Purpose, uniform
from tokcli.recipe.sections import DrawnContext, Probability

Precision = Literal["float32", "bfloat16"]


class Judged(NamedTuple):
    """How well tokens of a batch were predicted.

    Args:
        nats: mode ar: -log p of each token given those before it; nar: the mean cross-entropy of each sample's masked tokens.
        hits: whether the token was the likeliest code, or the share of the masked tokens that were.
    """

    nats: Float[Tensor, "b *n"]
    hits: Shaped[Tensor, "b *n"]


class Proposal(nn.Module):
    """A prior over the tokens of one image, under a class, a caption or nothing.

    A sample's randomness comes from its seed (see `tokcli.proposals.noise`), dropout's from torch's global generator.
    Keyword-only arguments of a member's constructor are its recipe keys.

    Args:
        codebook_size: k, number of codes.
        grid: (h, w) of the tokens, in raster order.
        classes: number of class labels; 0 for a network without.
        text: how captions are read, for a text-conditional network.
        label_drop: share of training samples whose class or caption is dropped, in [0, 1]; guidance needs a share over 0.

    Raises:
        TokError: the network does not read captions.
    """

    mode: ClassVar[Literal["ar", "nar"]]
    """ar: tokens are predicted and drawn in raster order; nar: any tokens from any others."""
    sampling_keys: ClassVar[frozenset[str]] = frozenset()
    """The fields of `Sampling` that it reads, such as `keys_of("ar") - {"compile"}`; any other that is asked for is refused."""
    reads_captions: ClassVar[bool] = False

    def __init__(
        self,
        codebook_size: int,
        grid: tuple[int, int],
        classes: int,
        text: TextCondition | None = None,
        *,
        label_drop: Probability = 0.0,
    ) -> None:
        super().__init__()
        if text and not self.reads_captions:
            raise TokError(
                "condition.name", "this network does not read captions", got="text", next="Choose class or none"
            )
        self.codebook_size, self.grid, self.tokens = codebook_size, grid, math.prod(grid)
        self.classes, self.captions, self.label_drop = 0 if text else classes, text, label_drop
        self.precision: Precision = "float32"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def conditional(self) -> bool:
        """Whether there is anything to condition on."""
        return bool(self.classes or self.captions)

    @property
    def guidable(self) -> bool:
        """Whether it was trained with and without a condition."""
        return self.conditional and self.label_drop > 0

    def null(self, rows: int) -> Shaped[Tensor, "rows *c"]:
        """A batch of "no condition", as `generate` and `loss` take them."""
        if self.captions:
            return self.captions.null(rows, self.device)
        return torch.full((rows,), -1, device=self.device)

    # training

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

    def dropped(self, seeds: Int64[Tensor, " b"]) -> Bool[Tensor, " b"]:
        """Whose condition is dropped: in training, a share `label_drop` of the samples, chosen by their seeds."""
        if not (self.training and self.label_drop):
            return torch.zeros_like(seeds, dtype=torch.bool)
        first = torch.zeros(1, 1, dtype=torch.int64, device=seeds.device)
        return uniform(seeds, Purpose.LABEL_DROP, first)[:, 0] < self.label_drop

    def load_published(self, given: Path | None) -> None:
        """Take the published weights that the recipe's keys name as a start, if any.

        Args:
            given: the file of `--language-weights`; None: looked for.
        """

    def prepare_compile(self) -> None:
        """Mark what torch.compile must leave as it is; called before `loss` is compiled."""

    # judging

    def judged(
        self,
        indices: Int64[Tensor, "b n"],
        condition: Shaped[Tensor, "b *c"],
        seeds: Int64[Tensor, " b"],
        mask_ratio: Float[Tensor, " b"],
    ) -> Judged:
        """How well the network predicts tokens, without gradients and dropout (the caller sees to both).

        Args:
            indices, condition: as in `loss`.
            seeds: numbers of the images, which choose what a network of mode nar has to predict.
            mask_ratio: shares of the tokens of each image that it has to predict, in (0, 1]; mode ar predicts all.
        """
        raise NotImplementedError

    # sampling

    def draw_tokens(
        self,
        condition: Shaped[Tensor, "b *c"],
        seeds: Int64[Tensor, " b"],
        sampling: Sampling,
        known: Int64[Tensor, "b n"],
    ) -> Int64[Tensor, "b n"]:
        """The work of `generate`, whose arguments were checked; in eval mode and without gradients."""
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
            known: codes to keep, and -1 where one is drawn: the same places in every row. In mode ar the codes to keep come first.

        Raises:
            TokError: a class out of range, settings that the network cannot follow, or logits that are not finite.
            ValueError: known tokens that it cannot follow, or captions of another shape.
        """
        sampling = sampling or Sampling()
        if known is None:
            known = torch.full((len(seeds), self.tokens), -1, device=seeds.device)
        self._check(condition, sampling, known)
        with self._drawing():
            indices = self.draw_tokens(condition, seeds, sampling, known)
        return indices.clone()  # outside of inference mode: an ordinary tensor

    @contextlib.contextmanager
    def _drawing(self) -> Iterator[None]:
        """Without dropout and gradients, in the precision that is asked for."""
        training = self.training
        self.eval()
        try:
            with torch.inference_mode(), autocast(self.device, self.precision):
                yield
        finally:
            self.train(training)

    # tokens of real images, some of them drawn

    def redraw_tokens(
        self,
        indices: Int64[Tensor, "b n"],
        mask: Bool[Tensor, "b n"],
        condition: Shaped[Tensor, "b *c"],
        seeds: Int64[Tensor, " b"],
        sampling: Sampling,
        context: DrawnContext,
    ) -> Int64[Tensor, "b n"]:
        """The work of `redraw`, whose arguments were checked; in eval mode and without gradients.

        Args:
            mask: True where a token is drawn, equally often in each row.
        """
        raise NotImplementedError

    def check_redraw(self, sampling: Sampling) -> None:
        """Refuse what `redraw` cannot do.

        Raises:
            TokError: the network lacks `redraw_tokens`, or cannot be guided.
        """
        if type(self).redraw_tokens is Proposal.redraw_tokens:
            next_step = "Give the class a method redraw_tokens, or choose another network"
            raise TokError(f"proposal {type(self).__name__}", "cannot draw some tokens of a real image", next=next_step)
        if sampling.guided and not self.guidable:
            why = "was never trained without its condition and cannot be guided"
            raise TokError("drawn.cfg_scale", f"the network {why}", got=f"{sampling.cfg_scale}", next="Set it to 1")

    def redraw(
        self,
        indices: Int64[Tensor, "b n"],
        condition: Shaped[Tensor, "b *c"],
        seeds: Int64[Tensor, " b"],
        share: float,
        sampling: Sampling | None = None,
        *,
        context: DrawnContext = "real",
    ) -> Int64[Tensor, "b n"]:
        """Tokens of real images of which a share is drawn by the network, the others staying in their places.

        Args:
            indices, condition: as in `loss`.
            seeds: one per image: which tokens are drawn, and what.
            share: of each image's tokens that are drawn, in [0, 1], rounded to whole tokens.
            sampling: settings; all default where left out.
            context: what a draw is given. `real`: tokens of the image alone, in one pass: all before it (mode ar), or all that
                stay (nar). `drawn`: also what was drawn before it, as in `generate`; mode nar decodes by confidence then.

        Raises:
            TokError: see `check_redraw`; a class out of range; or logits that are not finite.
            ValueError: captions of another shape.
        """
        sampling = sampling or Sampling()
        self.check_redraw(sampling)
        self._check_condition(condition)
        count = round(share * self.tokens)
        if not count:
            return indices
        mask = random_mask(seeds, torch.full_like(seeds, count), self.tokens)
        with self._drawing():
            drawn = self.redraw_tokens(indices, mask, condition, seeds, sampling, context)
        return drawn.clone()

    def to_precision(self, precision: Precision) -> None:
        """Let `generate` compute in float32, or under autocast to bfloat16. Weights may be rounded for good."""
        self.precision = precision

    def check_sampling(self, sampling: Sampling, drawn: int) -> None:
        """Refuse settings that the network cannot follow where so many tokens are drawn.

        Raises:
            TokError: guidance of a network that was never trained without its condition; members may refuse more.
        """
        if sampling.guided and not self.guidable:
            why = "was trained without label_drop" if self.conditional else "has no classes"
            raise TokError(
                "--cfg-scale",
                f"the network {why} and cannot be guided",
                got=f"{sampling.cfg_scale}",
                next="Use --cfg-scale 1",
            )

    def _check(self, condition: Tensor, sampling: Sampling, known: Tensor) -> None:
        drawn = known < 0
        if known.shape != (len(condition), self.tokens) or (drawn != drawn[:1]).any() or not drawn[0].any():
            raise ValueError(f"known tokens must leave the same places open in {len(condition)} rows of {self.tokens}")
        if (known >= self.codebook_size).any():
            raise ValueError(f"known tokens must be codes under {self.codebook_size}")
        if self.mode == "ar" and (drawn[0].int().diff() < 0).any():  # a code after a place to draw
            raise ValueError("known tokens of an autoregressive network must come first")
        self._check_condition(condition)
        self.check_sampling(sampling, int(drawn[0].sum()))

    def _check_condition(self, condition: Tensor) -> None:
        if self.captions:
            if not self.captions.fits(condition):
                raise ValueError(f"captions of shape {tuple(condition.shape)} for {tuple(self.null(0).shape)}")
        else:
            outside = condition[(condition < -1) | (condition >= self.classes)]
            if len(outside):
                some = (
                    f"Choose 0 to {self.classes - 1}" if self.classes else "Leave it out: the network is unconditional"
                )
                raise TokError("--classes", "no such class", got=f"{int(outside[0])}", next=some)

    # what it takes, for plans

    def flops(self) -> float:
        """Floating-point operations of one image's training step: 6 a weight and token."""
        return 3 * self.judging_flops()

    def judging_flops(self) -> float:
        """Floating-point operations of judging one image: 2 a weight and token."""
        return float(2 * _weights(self) * self.tokens)

    def redrawing_flops(self, sampling: Sampling, context: DrawnContext) -> float:
        """Floating-point operations of drawing some tokens of one image: as of judging it, or of drawing them all one after another."""
        if context == "drawn" and self.mode == "ar":
            return self.drawing(sampling, self.tokens).flop
        passes = min(sampling.steps, self.tokens) if context == "drawn" else 1
        return passes * (2 if sampling.guided else 1) * self.judging_flops()

    def drawing(self, sampling: Sampling, drawn: int) -> Drawing:
        """What it takes to draw so many tokens of an image: a pass over all weights for each, two with guidance."""
        passes = drawn * (2 if sampling.guided else 1)
        return Drawing(float(2 * _weights(self) * passes), passes, 0.0, _weights(self))


def _weights(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def refuse_nonfinite(total: Tensor) -> None:
    """Raise a TokError where the sum of all logits of a sampling loop is not finite."""
    if not math.isfinite(total.item()):
        next_step = "Run tok verify on it, or lower --cfg-scale"
        raise TokError("--proposal", "the network's logits are not finite", next=next_step)
