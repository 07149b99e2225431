"""What `--dry-run` says: the resolved recipe, what is read and written, facts, parameters, memory, time."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tokcli.artifact.opening import Artifact
from tokcli.artifact.plans import Plan, plan_document
from tokcli.build import parameter_count
from tokcli.command.compute import GPUS, Compute
from tokcli.command.data import held_out_beside
from tokcli.command.options import Options
from tokcli.data.sources import ImageSource, evenly, limited, open_source
from tokcli.data.sources.summary import refuse_bad
from tokcli.device import tensor_cores
from tokcli.errors import NotFound
from tokcli.models import ConvDecoder, ConvEncoder
from tokcli.recipe.check import resolved
from tokcli.recipe.sections import Data, Recipe, Train
from tokcli.recipe.yaml import to_yaml
from tokcli.training.optimizers import hidden_matrices

log = logging.getLogger("tok")
UNKNOWN = "data-unknown"  # id of data that are not on this machine
LOOKED_AT = 256  # images that are asked for captions
TOLD = ("classes", "rows")  # facts of which the text says that they are unknown
PROBES = 2, 8  # samples of the trials that tell what a step takes by itself, and for each sample
CHEAP = 15.0  # seconds: a slower step is reckoned from the trial, not run


@dataclass(frozen=True)
class Images:
    """What a dry run knows of the images that `--data` names.

    Args:
        spec: how they are named.
        source: they themselves; None where they are not on this machine.
    """

    spec: str
    source: ImageSource | None

    @property
    def classes(self) -> list[str] | None:
        """The names of their classes; None where nobody knows."""
        return None if self.source is None else self.source.classes

    @property
    def entry(self) -> dict[str, str]:
        """As an input."""
        known = self.source
        return {"id": UNKNOWN, "path": self.spec} if known is None else {"id": known.id, "path": known.name}

    def captioned(self) -> bool | None:
        """Whether any image has a caption; None where none of those looked at has."""
        if self.source is None:
            return None
        looked_at = evenly(len(self.source), LOOKED_AT)
        found = any(self.source.captions(i) for i in looked_at)
        return found or (False if len(looked_at) == len(self.source) else None)


def find_images(
    spec: str,
    size: int,
    labels: Path | None,
    max_pixels: int,
    most: int = 0,
    source: ImageSource | None = None,
    bound: tuple[str, float] | None = None,
) -> Images:
    """The images that `--data spec` names; what is not on this machine need not be for a plan.

    Args:
        size, labels, max_pixels: see `open_source`.
        most: how many of them are taken; 0: all.
        source: they, where they are open.
        bound: the key `max_bad`, and what share may be left out; None: any.

    Raises:
        TokError: what is there is not a data set, or too much of it is left out.
    """
    try:
        opened = limited(source or open_source(spec, size=size, labels=labels, max_pixels=max_pixels), most)
    except NotFound as error:
        log.info("%s The plan knows neither its classes nor its captions nor how many images it has.", error)
        return Images(spec, None)
    if bound is not None:
        refuse_bad(opened, 0, bound[1], bound[0])
    return Images(spec, opened)


def find_training_images(
    options: Options, spec: str, data: Data, eval_images: int, source: ImageSource | None = None
) -> Images:
    """The same for a training, which also opens the val split beside them."""
    found = find_images(
        spec, data.size, options.labels, data.max_pixels, source=source, bound=("data.max_bad", data.max_bad)
    )
    if found.source is not None:
        held_out_beside(found.source, data.size, eval_images)
    return found


def known(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Those facts that a plan knows."""
    return {name: value for name, value in facts.items() if value is not None}


def describe(
    options: Options,
    recipe: Recipe,
    modules: Mapping[str, nn.Module | None],
    *,
    reads: Mapping[str, Artifact | str],
    writes: str,
    facts: Mapping[str, Any],
    inputs: Mapping[str, Mapping[str, str]],
    seconds: Callable[[], str] = str,
    compute: Compute | None = None,
    activations: float | None = None,
) -> Plan:
    """The plan of a command.

    Args:
        modules: built on the meta device.
        reads: role -> artifact, or name, of each input.
        writes: the kind of artifact.
        facts, inputs: of its manifest, as far as they are known; None for the others.
        seconds: `step_time`, where a step can be timed; only for the text.
        compute: what it computes, where that is counted.
        activations: bytes that a sample's forward pass keeps for the backward pass, in float32.
    """
    document = plan_document(writes, facts, resolved(recipe), inputs)
    parts = {name: part for one, module in modules.items() for name, part in _parts(one, module)}
    document["parameters"] = {
        name: {"trainable": parameter_count(part, True), "frozen": parameter_count(part, False)}
        for name, part in parts.items()
    }
    document["memory"] = _memory(recipe, modules, activations)
    document["preset"] = options.preset._asdict() if options.preset else None
    document["compute"] = compute.as_json() if compute else None
    return Plan(document, lambda: _text(options, recipe, reads, document, seconds(), compute))


def _memory(
    recipe: Recipe, modules: Mapping[str, nn.Module | None], activations: float | None
) -> dict[str, Any] | None:
    """Bytes of a training: of its networks and optimizer, of a sample's activations, and of one of several GPUs."""
    train = getattr(recipe, "train", None)
    if not isinstance(train, Train):
        return None
    trainable, frozen = (sum(parameter_count(m, kind) for m in modules.values()) for kind in (True, False))
    # float32 weights, gradients and what the optimizers keep; averaged weights where the recipe keeps them
    moments = _moments(recipe, modules)
    state = 4 * ((3 if train.ema else 2) * trainable + frozen + moments)
    on_disk = 4 * ((train.keep + 1) * ((2 if train.ema else 1) * trainable + moments) + trainable)
    samples = -(-train.batch_size // (GPUS * train.accumulate))
    found = {"state_bytes": state, "activation_bytes_per_sample": activations, "gpus": GPUS, "samples_at_once": samples}
    found["disk_bytes"] = on_disk
    kept = state if train.parallel == "ddp" else (state - 4 * frozen) / GPUS + 4 * frozen
    return found | {"bytes_per_gpu": None if activations is None else kept + samples * activations}


def _moments(recipe: Any, modules: Mapping[str, nn.Module | None]) -> int:
    """Numbers that the optimizers keep: two of each trainable parameter, one of those that Muon trains."""
    found = 0
    for name, module in modules.items():
        optim = recipe.gan.optim if name == "discriminator" else recipe.optim
        alone = hidden_matrices(module) if module is not None and optim.name == "muon" else []
        found += 2 * parameter_count(module, True) - sum(p.numel() for p in alone)
    return found


def _text(
    options: Options,
    recipe: Recipe,
    reads: Mapping[str, Artifact | str],
    document: Mapping[str, Any],
    seconds: str,
    compute: Compute | None,
) -> str:
    writes, parameters, memory = document["kind"], document["parameters"], document["memory"]
    lines = [to_yaml(recipe).rstrip(), ""]
    lines += [f"# reads   {role}: {path.path if isinstance(path, Artifact) else path}" for role, path in reads.items()]
    lines += [f"# writes  {writes}: {options.out or options.workspace / (writes + '-...')}"]
    unknown = [name for name, value in document["facts"].items() if value is None and name in TOLD]
    lines += [f"# unknown {', '.join(unknown)}"] if unknown else []
    if parameters:
        lines += ["#", f"# {'module':<18}{'trainable':>15}{'frozen':>15}"]
    lines += [f"# {name:<18}{n['trainable']:>15,}{n['frozen']:>15,}" for name, n in parameters.items()]
    if memory:
        said = f"# memory  {memory['state_bytes'] / 2**30:.2f} GiB for weights, gradients and optimizer"
        if memory["bytes_per_gpu"] is None:
            lines.append(f"{said}; activations come on top")
        else:
            sample, gpu = memory["activation_bytes_per_sample"] / 2**30, memory["bytes_per_gpu"] / 2**30
            many = f"{memory['samples_at_once']} at once on each of {memory['gpus']} GPUs"
            lines.append(f"{said}, and up to {sample:.2g} GiB of activations a sample: {gpu:.1f} GiB with {many}")
        lines.append(
            f"# disk    {memory['disk_bytes'] / 2**30:.2f} GiB for saved states, one of them being written, and weights"
        )
    train = getattr(recipe, "train", None)
    if isinstance(train, Train):
        lines.append(
            f"# trains  {train.steps:,} steps x {train.batch_size} = {train.steps * train.batch_size:,} samples"
        )
    lines += compute.text() if compute else []
    if seconds:
        lines.append(f"# time    {seconds}")
    return "\n".join(lines)


def _parts(name: str, module: nn.Module | None) -> list[tuple[str, nn.Module]]:
    """A convolutional network without its 1x1 convolution from or to codes, as its parameters are published, and that."""
    if isinstance(module, ConvEncoder | ConvDecoder):
        return [(name, module.layers), (f"{name} 1x1", module.embed)]
    return [] if module is None else [(name, module)]


def step_time(
    train: Train, device: torch.device, step: Callable[[int], Callable[[], Any]], cheap: float = CHEAP
) -> str:
    """Time training steps on random input: milliseconds a step and the whole duration, in words.

    Args:
        train: the recipe's section.
        device: where the steps run.
        step: a number of samples -> a function that performs one update on so many.
        cheap: seconds; a slower step is reckoned from the trial, not run.
    """

    @tensor_cores()  # as the training loop does
    def seconds(samples: int, repeats: int) -> float:
        update = step(samples)
        update()  # allocates, compiles, picks kernels
        _wait(device)
        started = time.perf_counter()
        for _ in range(repeats):
            update()
        _wait(device)
        return (time.perf_counter() - started) / repeats

    few, more = (min(train.batch_size, number * train.accumulate) for number in PROBES)
    took, slope = seconds(few, 1), 0.0
    if more > few:
        slope = max(seconds(more, 1) - took, 0.0) / (more - few)
    took += slope * (train.batch_size - few)
    how = f"reckoned from {more} samples"
    if more == train.batch_size or took <= cheap:
        took, how = seconds(train.batch_size, 3), "measured"
    duration = in_words(took * train.steps)
    threads = f", {torch.get_num_threads()} thread(s)" if device.type == "cpu" else ""
    return f"{took * 1000:,.0f} ms a step on {device}{threads} ({how}), {duration} in all; reading and evaluation come on top"


def in_words(seconds: float) -> str:
    """A duration, such as `3 min 20 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
