"""The sections that recipes of several stages share, as strict pydantic models, and the ranges of their keys, as types."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    PrivateAttr,
    field_validator,
    model_validator,
)

from tokcli.recipe import MAX_PIXELS


@dataclass(frozen=True)
class Interval:
    """Refuses a pair of numbers that is no interval of the kind that `text` names."""

    text: str
    fits: Callable[[float, float], bool]

    def __call__(self, pair: tuple[float, float]) -> tuple[float, float]:
        """The pair.

        Raises:
            ValueError: it is no such interval.
        """
        if not self.fits(*pair):
            raise ValueError(f"should be [low, high] with {self.text}. Got {list(pair)}")
        return pair


Share = Annotated[float, Field(ge=0, lt=1)]
"""Of values dropped, of a code kept: never all."""

Probability = Annotated[float, Field(ge=0, le=1)]


Pixels = Annotated[int, Field(ge=1, le=2**30)]
"""Most of an image that is decoded."""

Side = Annotated[int, Field(ge=1, le=2**15)]
"""Of an image that a network sees, in pixels."""

Widths = Annotated[list[PositiveInt], Field(min_length=1)]
"""Channels of each stage of a convolutional network."""

Blocks = Annotated[int, Field(ge=1, le=1000)]
"""Of a network, one after the other: a number with too many zeros would be built for hours."""

SomeBlocks = Annotated[int, Field(ge=0, le=1000)]
"""Blocks that may be left out."""

Layers = Annotated[list[int | str], Field(min_length=1)]
"""Of a pretrained network, by name or number."""

Zoom = Annotated[tuple[float, float], AfterValidator(Interval("1 <= low <= high", lambda a, b: 1 <= a <= b))]

Area = Annotated[tuple[float, float], AfterValidator(Interval("0 < low <= high <= 1", lambda a, b: 0 < a <= b <= 1))]
"""Shares of an area."""

Aspect = Annotated[tuple[float, float], AfterValidator(Interval("0 < low <= high", lambda a, b: 0 < a <= b))]
"""Width over height."""

Span = Annotated[tuple[float, float], AfterValidator(Interval("0 <= low < high <= 1", lambda a, b: 0 <= a < b <= 1))]
"""Shares of a training or a sampling between which something happens."""


class Section(BaseModel):
    """A part of a recipe: no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


class Component(BaseModel):
    """A section `{name: ..., key: value}` whose other keys are those of the named component."""

    model_config = ConfigDict(extra="allow", strict=True)
    name: str

    @property
    def keys(self) -> dict[str, Any]:
        """The component's own keys, without its name."""
        return dict(self.model_extra or {})


class Optim(Section):
    """Decoupled weight decay, linear warm-up, then cosine or constant.

    Args:
        name: `adamw`, for all weights; or `muon`, for the matrices of hidden layers, with AdamW for the rest: embeddings, heads,
            norms, biases, positions and kernels of convolutions.
        lr: learning rate after the warm-up; AdamW's.
        muon_lr: Muon's learning rate after the warm-up, which follows the schedule in proportion to `lr`; its updates have the size of
            AdamW's at that rate (arXiv 2502.16982). null with `adamw`.
        betas: decay of the running means of the gradient and of its square.
        eps: number added to the root of the second moment.
        weight_decay: share of a weight, times the learning rate, that each step subtracts.
        decay: which parameters decay: `matrices` (and kernels), or `all` (norms, biases, positions and codes too).
        warmup_steps: steps over which the learning rate rises linearly from 0.
        schedule: learning rate after the warm-up: half a `cosine` down to `min_lr` at the last step, or `constant`.
        min_lr: learning rate at the end of the cosine.
        clip: largest norm of the gradient over all parameters; null: no clipping.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(gt=0)
    muon_lr: float | None = Field(None, gt=0)
    betas: tuple[Share, Share] = (0.9, 0.99)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    decay: Literal["matrices", "all"] = "matrices"
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    min_lr: float = Field(0.0, ge=0)
    clip: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _check(self) -> "Optim":
        if (self.name == "muon") != (self.muon_lr is not None):
            wanted = "name: muon needs muon_lr" if self.muon_lr is None else "muon_lr goes with name: muon"
            raise ValueError(f"{wanted}. Got name: {self.name}, muon_lr: {json.dumps(self.muon_lr)}")
        return self


class Train(Section):
    """How long to train, in which batches and in which precision.

    Args:
        steps: number of updates of the weights.
        batch_size: images per update, over all devices.
        accumulate: micro-batches per update; must divide the batch size.
        precision: precision of matrix products and convolutions. Weights, quantizers and losses stay in float32.
        compile: run the networks with torch.compile.
        parallel: how the ranks of a job share a network: a copy on each (`ddp`), or a part of its weights, gradients and optimizer
            state on each (`fsdp`), for networks larger than the memory of one device. A single process reads it as `ddp`.
        ema: decay of averaged weights, which are then measured and saved; null: weights are not averaged.
        log_every: number of steps between two lines of the log.
        save_every: number of steps between two saved states, from which an interrupted training resumes.
        keep: number of saved states that are kept, the newest ones.
    """

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    accumulate: int = Field(1, ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    ema: float | None = Field(None, gt=0, lt=1)
    log_every: int = Field(10, ge=1)
    save_every: int = Field(500, ge=1)
    keep: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _check(self) -> "Train":
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate must divide batch_size. Got {self.accumulate} and {self.batch_size}")
        return self


class MeasuredTrain(Train):
    """Training that is measured on held-out images at its end and, if set, every `eval_every` steps.

    Args:
        eval_every: number of steps between two measurements; null: only at the end.
        eval_images: largest number of held-out images to measure on, evenly spread; `tok eval` takes all.
    """

    eval_every: int | None = Field(None, ge=1)
    eval_images: int = Field(2048, ge=1)


class ReconstructedTrain(MeasuredTrain):
    """Training of a network that makes pixels.

    Args:
        eval_extractors: networks, or a protocol, on whose features the Fréchet distance of held-out reconstructions to their originals
            (`rfd`) is taken at each measurement; none where empty.
    """

    eval_extractors: list[str] = []


class GAN(Section):
    """Adversarial training: a discriminator, its optimizer, and when it starts.

    The discriminator learns from step `start - warmup` on; its term enters the decoder's loss at `start` and reaches its
    full weight after `ramp` steps.

    Args:
        discriminator: the network that distinguishes images from reconstructions.
        optim: the discriminator's optimizer.
        weight: weight of the adversarial term in the decoder's loss; with `adaptive` a factor on the ratio of gradients.
        adaptive: weight the term so that its gradient at the decoder's last layer is as large as that of the other terms (VQGAN).
        start: step at which the term enters the decoder's loss.
        warmup: number of steps before `start` at which the discriminator begins to learn; at most `start`.
        ramp: number of steps over which the term reaches its full weight; 0: at once.
        lecam: weight of LeCAM's regulariser, which keeps a discriminator from memorising few images; 0: off.
    """

    discriminator: Component
    optim: Optim
    weight: float = Field(gt=0)
    adaptive: bool = True
    start: int = Field(0, ge=0)
    warmup: int = Field(0, ge=0)
    ramp: int = Field(0, ge=0)
    lecam: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "GAN":
        if self.warmup > self.start:
            raise ValueError(f"warmup cannot be longer than start. Got {self.warmup} and {self.start}")
        return self


class Perturbed(Section):
    """Wrong tokens: some are replaced by near codes, as a proposal network errs (RobusTok, arXiv 2503.08354).

    Args:
        share: share of an image's tokens that are replaced; of a training, at its first step.
        near: number of nearest other codes, of which each is replaced by one.
    """

    share: float = Field(0.5, gt=0, le=1)
    near: int = Field(8, ge=1)


class Perturb(Perturbed):
    """Wrong tokens in training, so that decoders bear what a proposal network draws.

    Args:
        end_share: `share` at the last step, linearly in between; null: as at the first.
        images: share of images whose tokens are replaced.
    """

    end_share: float | None = Field(None, ge=0, le=1)
    images: float = Field(1.0, gt=0, le=1)

    def keys(self) -> dict[str, Any]:
        """What a `Perturber` takes, but for the number of steps."""
        return self.model_dump() | {"end_share": self.share if self.end_share is None else self.end_share}


DrawnContext = Literal["real", "drawn"]


class Drawn(Section):
    """Tokens that a proposal network drew, in training a decoder: RobusTok's post-training (arXiv 2509.12474).

    Args:
        share: share of an image's tokens that the network draws, at the first step; the others stay the image's own.
        end_share: `share` at the last step, linearly in between; null: as at the first.
        context: what each draw is given. `real`: the image's own tokens alone, in one pass of the network. `drawn`: also what was drawn
            before it, as in sampling (RobusTok); an autoregressive network then takes a pass for each token.
        cfg_scale, temperature, top_k, top_p: as of `tok sample`.
    """

    share: float = Field(0.3, gt=0, le=1)
    end_share: float | None = Field(None, ge=0, le=1)
    context: DrawnContext = "real"
    cfg_scale: float = Field(1.0, ge=0)
    temperature: float = Field(1.0, ge=0)
    top_k: int = Field(0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)

    def at(self, step: int, steps: int) -> float:
        """The share at a step, from 0, of so many."""
        end = self.share if self.end_share is None else self.end_share
        return self.share + (end - self.share) * step / max(1, steps - 1)


class Expects(Section):
    """Facts of inputs, so that `--dry-run` works without them; checked against the real ones.

    A list names every value that the recipe accepts; a plan without inputs takes its first.

    Args:
        codebook_size: number of codes, or a list of the numbers accepted; null: any.
        code_dim: width of a code, or a list of the widths accepted; null: any.
        grid: rows and columns of tokens; null: any.
        classes: number of classes of the data; null: any.
    """

    codebook_size: int | list[int] | None = None
    code_dim: int | list[int] | None = None
    grid: tuple[PositiveInt, PositiveInt] | None = None
    classes: Annotated[int, Field(ge=0)] | None = None

    @field_validator("codebook_size", "code_dim")
    @classmethod
    def _check(cls, value: int | list[int] | None) -> int | list[int] | None:
        if value is not None and min(value if isinstance(value, list) else [value], default=0) < 1:
            raise ValueError(f"should be at least 1, or a list of such numbers. Got {value}")
        return value

    def accepts(self, name: str, value: Any) -> bool:
        """Whether an input with that value of a fact fits; it does where the recipe says nothing of it."""
        wanted = getattr(self, name)
        return wanted is None or value in (wanted if isinstance(wanted, list) else [wanted])

    def planned(self) -> dict[str, Any]:
        """One value for each fact, for a plan without inputs; None where the recipe says nothing."""
        return {name: value[0] if isinstance(value, list) else value for name, value in self}


class Recipe(Section):
    """What every recipe has.

    Args:
        stage: the stage that the recipe is for.
        seed: seed of all random numbers: fresh weights, order of the data, crops, masks, samples.
    """

    stage: str
    seed: int = Field(0, ge=0, lt=2**63)  # as torch takes it
    _settled: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def settled(self) -> dict[str, Any]:
        """Dotted keys that were null, with the values that are recorded in their place; earlier versions recorded null."""
        return self._settled


class Data(Section):
    """How images become training samples.

    Args:
        size: side of a training image in pixels.
        transform: how an image is made square: `center-crop`, `random-crop`, `random-resized-crop`, or whole by `pad`.
        max_bad: share of unreadable images that is tolerated; more stop the command.
        max_pixels: largest number of pixels of an image that is decoded; larger ones count as unreadable. WebP and AVIF may have half, progressive JPEG four fifths of it.
        workers: processes that read the images of training steps; 0: the main process reads them.
    """

    size: int = Field(ge=1)
    transform: Component
    max_bad: float = Field(0.01, ge=0, le=1)
    max_pixels: Pixels = MAX_PIXELS
    workers: int = Field(0, ge=0)
