"""Floating-point operations of what a dry run plans, the memory of activations, and hours on hardware by arithmetic.

Networks run on the meta device, which computes shapes and no values, under torch's own counter: products of matrices,
convolutions and attention count, 2 for a multiplication with its addition; what goes element by element does not.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tokcli.build import component
from tokcli.device import META
from tokcli.models import Tokenizer
from tokcli.quantizers import QUANTIZERS, Quantizer, search
from tokcli.quantizers.quantizer import Quantized
from tokcli.recipe.sections import GAN, Optim, Train
from tokcli.training.optimizers import NEWTON_SCHULZ, muon_matrices

MICRO = 2  # images that are counted at once
# The hardware of the arithmetic: eight H100 SXM as NVIDIA's data sheet has them, without sparsity.
GPUS = 8
PEAK = {"bfloat16": 989e12, "TF32": 495e12, "float32": 67e12}  # FLOP/s of one
ON_GPUS = {
    "bfloat16": "bfloat16",
    "float32": "TF32",
}  # the arithmetic of a recipe's precision: training, tokenizing, drawing
BANDWIDTH = 3.35e12  # bytes/s of one's memory
UTILISATION = 0.35  # share of either that is reached: an assumption, not a measurement
BESIDES = ("reading", "AdamW", "evaluation")  # of a training, not counted
PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def _added_product(_: Sequence[int], left: Sequence[int], right: Sequence[int], **__: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


IN_PLACE = {torch.ops.aten.addmm_: _added_product}  # of shapes; torch's counter leaves it out


def engineering(value: float) -> str:
    """A number with two or three digits and a prefix: 3.1e12 -> "3.1 T"."""
    steps = 0
    while value >= 1000 and steps < len(PREFIXES) - 1:
        value, steps = value / 1000, steps + 1
    return f"{value:.3g} {PREFIXES[steps]}"


def duration(seconds: float) -> str:
    """Seconds as hours, minutes or days, whichever reads well."""
    if seconds >= 48 * 3600:
        return f"{seconds / 86400:.1f} days"
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


@dataclass(frozen=True)
class Compute:
    """What a command computes.

    Args:
        unit: what is done again and again: "step" or "image".
        flop: of one unit.
        count: how many units there are; None where nobody knows.
        total: FLOP of all; None where `count` is.
        precision: of most products.
        traffic: bytes of weights and cache that are read for all units, where that takes longer than computing.
        uncounted: what else the command computes.
        gpus: among which it is shared.
    """

    unit: str
    flop: float
    count: int | None
    total: float | None
    precision: str
    traffic: float = 0.0
    uncounted: Sequence[str] = field(default_factory=tuple)
    gpus: int = GPUS

    @property
    def seconds(self) -> float | None:
        """On the hardware of this file."""
        if self.total is None:
            return None
        reached = self.gpus * UTILISATION
        return max(self.total / (reached * PEAK[self.precision]), self.traffic / (reached * BANDWIDTH))

    def as_json(self) -> dict[str, Any]:
        """Plain values, with the assumptions behind the time."""
        seconds = self.seconds
        return {
            "unit": self.unit,
            "flop_per_unit": self.flop,
            "units": self.count,
            "flop": self.total,
            "bytes": self.traffic,
            "seconds": seconds,
            "assumed": {
                "gpus": self.gpus,
                "precision": self.precision,
                "flop_per_second": PEAK[self.precision],
                "bytes_per_second": BANDWIDTH,
                "utilisation": UTILISATION,
            },
            "uncounted": list(self.uncounted),
        }

    def text(self) -> list[str]:
        """Lines of a plan's text."""
        each = f"{engineering(self.flop)}FLOP {'a' if self.unit == 'step' else 'an'} {self.unit}"
        if self.total is None or self.seconds is None:
            lines = [f"# compute {each}; how many there are is not known here"]
        else:
            bound = self.traffic / BANDWIDTH > self.total / PEAK[self.precision]
            rate = f"{BANDWIDTH / 1e12:.3g} TB/s of memory" if bound else f"{PEAK[self.precision] / 1e12:.0f} TFLOP/s"
            lines = [
                f"# compute {each}, {engineering(self.total)}FLOP in all; by arithmetic, on {self.gpus} GPU{'s'[: self.gpus - 1]} of {rate} "
                f"({self.precision}) at an assumed {UTILISATION:.0%}: {duration(self.seconds)}"
            ]
        return lines + ([f"# besides {', '.join(self.uncounted)}"] if self.uncounted else [])


@dataclass(frozen=True)
class Step:
    """One training step of one sample: FLOP of its inputs and of its update, bytes kept for the backward pass."""

    inputs: float
    update: float
    activations: float


@contextlib.contextmanager
def _plainly() -> Iterator[FlopCounterMode]:
    """Count on the meta device: it has no autocast to switch, and what faiss does no counter sees."""
    autocast, codes = torch.autocast, search.FAISS_CODES
    torch.autocast = lambda *_, **__: contextlib.nullcontext()  # type: ignore[assignment, misc]
    search.FAISS_CODES = sys.maxsize
    try:
        with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
            yield counter
    finally:
        torch.autocast, search.FAISS_CODES = autocast, codes  # type: ignore[misc]


@contextlib.contextmanager
def quantizer_aside(quantizer: Quantizer, section: Mapping[str, Any]) -> Iterator[None]:
    """Within it, a quantizer on the meta device hands its work to one on the CPU: where a code falls depends on values.

    Args:
        quantizer: whose forward pass is replaced; what it gives has the right shapes.
        section: of the recipe.
    """
    with torch.device("cpu"):
        real = component("quantizer", QUANTIZERS, section)
    real.initialised.fill_(True)

    def forward(z_e: Tensor, counted: Tensor | None = None) -> Quantized:
        learns = torch.is_grad_enabled() and quantizer.training
        real.train(quantizer.training)
        with torch.device("cpu"), torch.set_grad_enabled(learns):
            found = real(torch.randn(z_e.shape, device="cpu", requires_grad=learns))
            if learns:
                torch.stack([found.z_q.sum(), *found.losses.values()]).sum().backward()
        nothing = torch.stack([x.sum() * 0 for x in (z_e, *quantizer.parameters())]).sum()
        indices = torch.zeros(z_e.shape[:2], dtype=torch.int64, device=z_e.device)
        return Quantized(z_e.float(), indices, dict.fromkeys(found.losses, nothing))

    quantizer.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del quantizer.forward


def count(work: Callable[[], Any]) -> float:
    """FLOP of a piece of work on the meta device."""
    with META, _plainly() as counter:
        work()
    return float(counter.get_total_flops())


def bulk(unit: str, flop: float, number: int | None, precision: str, traffic: float = 0.0) -> Compute:
    """What a bulk command computes for so many images, None where nobody knows how many."""
    total = None if number is None else flop * number
    return Compute(unit, flop, number, total, precision, traffic, ("reading and writing files",))


def encoding(tokenizer: Tokenizer, section: Mapping[str, Any], size: int) -> float:
    """FLOP of an image's tokens; the tokenizer is on the meta device, the section is its quantizer's."""
    tokenizer.eval()
    with quantizer_aside(tokenizer.quantizer, section):
        return count(lambda: tokenizer.encode(torch.empty(MICRO, 3, size, size))) / MICRO


def decoding(decoder: nn.Module, code_dim: int, tokens: int) -> float:
    """FLOP of an image's pixels from its codes; the decoder is on the meta device."""
    with torch.no_grad():
        return count(lambda: decoder.eval()(torch.empty(MICRO, tokens, code_dim))) / MICRO


def training_step(
    objective: nn.Module, inputs: Callable[[], list[Tensor]], adversary: Any = None, step: int = 0
) -> Step:
    """What one sample takes in a step of a training.

    Args:
        objective: what is minimised, on the meta device; see `optim.Updater`.
        inputs: makes its arguments for MICRO samples; the last are the images where there is an adversary.
        adversary: the discriminator's side, of class `Adversary`; None: without.
        step: which; adversaries start late.
    """
    kept: dict[int, int] = {}
    own = {t.untyped_storage()._cdata for t in [*objective.parameters(), *objective.buffers()]}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if t.device == META and storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return t

    with META, _plainly() as counter:
        given = inputs()
        before = counter.get_total_flops()
        if adversary is not None:
            adversary.begin(step)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            terms = objective(*given)
        terms["loss"].backward()
        if adversary is not None and adversary.learns(step):
            adversary.objective(given[-1], terms["decoded"].detach())["loss"].backward()
        after = counter.get_total_flops()
    return Step(before / MICRO, (after - before) / MICRO, sum(kept.values()) / MICRO)


def updating(objective: nn.Module, optim: Optim, where: str = "optim") -> float:
    """FLOP of an update's products, which Muon alone has; arguments as of `muon_matrices`.

    A step of Newton-Schulz takes X X^T, the square of that, and its product with X, the shorter side first.
    """
    sides = [sorted(p.shape) for p in muon_matrices(objective, optim, where)]
    return float(NEWTON_SCHULZ * sum(4 * short**2 * long + 2 * short**3 for short, long in sides))


def phases(gan: GAN | None, steps: int) -> list[tuple[int, int]]:
    """(first step, number of steps) of each part of a training whose steps are alike."""
    ends = [0, steps] if gan is None else [0, gan.start - gan.warmup, gan.start, steps]
    marks = sorted({min(end, steps) for end in ends})
    return [(start, stop - start) for start, stop in pairwise(marks)]


def training(
    train: Train,
    optim: Optim,
    objective: nn.Module,
    inputs: Callable[[], list[Tensor]],
    *,
    gan: GAN | None = None,
    adversary: Any = None,
    once: str = "",
    images: int | None = None,
    beside: float = 0.0,
) -> tuple[Compute, float]:
    """What a training computes, and bytes of activations of one sample in its fullest step.

    Args:
        train, optim: the recipe's sections.
        objective, inputs, adversary: see `training_step`.
        gan: the recipe's section.
        once: what the inputs are, where they are computed once an image and kept.
        images: how many there are then; None where nobody knows.
        beside: FLOP of what else a step does with each sample, before its update.
    """
    parts = [(number, training_step(objective, inputs, adversary, first)) for first, number in phases(gan, train.steps)]
    last = parts[-1][1]
    products = updating(objective, optim)
    if gan is not None and adversary is not None:
        products += updating(adversary.objective, gan.optim, "gan.optim")  # from its start on, which is soon
    each = train.batch_size * (last.update + (0 if once else last.inputs) + beside) + products
    total = train.steps * products
    each_part = ((number, part.update + (0 if once else part.inputs) + beside) for number, part in parts)
    total += train.batch_size * sum(number * flop for number, flop in each_part)
    uncounted = list(BESIDES)
    if once and images is None:
        uncounted.insert(0, f"{once} once an image ({engineering(parts[0][1].inputs)}FLOP each)")
    total += (images or 0) * parts[0][1].inputs if once else 0
    compute = Compute("step", each, train.steps, total, ON_GPUS[train.precision], uncounted=uncounted)
    return compute, max(part.activations for _, part in parts)
