"""The sections that recipes of several stages share, as strict pydantic models."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, PrivateAttr, field_validator, model_validator

from tokcli.recipe.ranges import Share


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
    """AdamW with decoupled weight decay, linear warm-up, then cosine or constant."""

    lr: float = Field(gt=0)
    betas: tuple[Share, Share] = (0.9, 0.99)
    eps: float = Field(1e-8, gt=0)  # added to the root of the second moment
    weight_decay: float = Field(1e-4, ge=0)
    decay: Literal["matrices", "all"] = "matrices"  # what decays; all: norms, biases, positions, codes too
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    min_lr: float = Field(0.0, ge=0)
    clip: float | None = Field(None, gt=0)  # largest global gradient norm


class Train(Section):
    """How long, in what pieces and in which arithmetic."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)  # images per update over all devices
    accumulate: int = Field(1, ge=1)  # micro-batches per update
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    ema: float | None = Field(None, gt=0, lt=1)  # decay of averaged weights, which are what is saved for use
    log_every: int = Field(10, ge=1)
    save_every: int = Field(500, ge=1)

    @model_validator(mode="after")
    def _check(self) -> "Train":
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate must divide batch_size. Got {self.accumulate} and {self.batch_size}")
        return self


class MeasuredTrain(Train):
    """Training that measures itself on held-out images: at its end, and every `eval_every` steps where that is set."""

    eval_every: int | None = Field(None, ge=1)
    eval_images: int = Field(2048, ge=1)  # at most so many held-out images, evenly spread; `tok eval` takes all


class GAN(Section):
    """A discriminator that reconstructions learn to pass; its own optimizer, and when it starts.

    The discriminator learns from step `start - warmup` on; its term enters the decoder's loss at `start` and reaches its
    full weight after `ramp` steps.
    """

    discriminator: Component
    optim: Optim
    weight: float = Field(gt=0)  # with `adaptive` a factor on the ratio of gradients
    adaptive: bool = True
    start: int = Field(0, ge=0)
    warmup: int = Field(0, ge=0)
    ramp: int = Field(0, ge=0)
    lecam: float = Field(0.0, ge=0)  # weight of the regulariser against learning images by heart

    @model_validator(mode="after")
    def _check(self) -> "GAN":
        if self.warmup > self.start:
            raise ValueError(f"warmup cannot be longer than start. Got {self.warmup} and {self.start}")
        return self


class Expects(Section):
    """Facts of inputs, so that `--dry-run` works without them; checked against the real ones.

    A list names every value that the recipe accepts; a plan without inputs takes its first.
    """

    codebook_size: int | list[int] | None = None  # at least 1
    code_dim: int | list[int] | None = None  # at least 1
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
    """What every recipe has."""

    stage: str
    seed: int = Field(0, ge=0, lt=2**63)  # what torch takes
    _settled: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def settled(self) -> dict[str, Any]:
        """Dotted keys that were null, with the values that are recorded in their place; earlier versions recorded null."""
        return self._settled


class Data(Section):
    """How images become training samples."""

    size: int = Field(ge=1)  # pixels of a side
    transform: Component
    max_bad: float = Field(0.01, ge=0, le=1)  # share of unreadable images that is tolerated
    workers: int = Field(0, ge=0)  # loader processes; 0 reads in the main process
