"""What `--dry-run` prints: the resolved recipe, what is read and written, parameters, memory, time."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from tokcli.models import ConvDecoder, ConvEncoder
from tokcli.recipe import resolved, to_yaml
from tokcli.schema import Recipe, Train
from tokcli.workspace import Options

PROBE = 2  # samples of the first trial
CHEAP = 15.0  # seconds: a slower step is reckoned from the trial, not run


def parameter_count(module: nn.Module | None, trainable: bool | None = None) -> int:
    """How many parameters a module has; only the trainable or only the frozen ones if asked."""
    if module is None:
        return 0
    return sum(p.numel() for p in module.parameters() if trainable is None or p.requires_grad == trainable)


def describe(
    options: Options,
    recipe: Recipe,
    modules: Mapping[str, nn.Module | None],
    *,
    reads: Mapping[str, str],
    writes: str,
    seconds: str = "",
) -> str:
    """The plan of a command as text.

    Args:
        modules: built on the meta device.
        reads: role -> path or name of each input.
        writes: the kind of artifact.
        seconds: what `step_time` said, where it was asked.
    """
    lines = [to_yaml(recipe).rstrip(), ""]
    lines += [f"# reads   {role}: {path}" for role, path in reads.items()]
    lines += [f"# writes  {writes}: {options.out or options.workspace / (writes + '-...')}"]
    if modules:
        lines += ["#", f"# {'module':<18}{'trainable':>15}{'frozen':>15}"]
    for name, module in modules.items():
        for part, inner in _parts(name, module):
            lines.append(f"# {part:<18}{parameter_count(inner, True):>15,}{parameter_count(inner, False):>15,}")
    trainable = sum(parameter_count(m, True) for m in modules.values())
    frozen = sum(parameter_count(m, False) for m in modules.values())
    if trainable:
        # float32 weights, gradients and two Adam moments; averaged weights where the recipe keeps them
        copies = 5 if resolved(recipe).get("train", {}).get("ema") else 4
        gigabytes = 4 * (copies * trainable + frozen) / 2**30
        lines.append(f"# memory  {gigabytes:.2f} GiB for weights, gradients and optimizer; activations come on top")
    train = getattr(recipe, "train", None)
    if isinstance(train, Train):
        lines.append(
            f"# trains  {train.steps:,} steps x {train.batch_size} = {train.steps * train.batch_size:,} samples"
        )
    if seconds:
        lines.append(f"# time    {seconds}")
    return "\n".join(lines)


def _parts(name: str, module: nn.Module | None) -> list[tuple[str, nn.Module]]:
    """A convolutional network without its 1x1 convolution from or to codes, as its parameters are published, and that."""
    if isinstance(module, ConvEncoder | ConvDecoder):
        return [(name, module.layers), (f"{name} 1x1", module.embed)]
    return [] if module is None else [(name, module)]


def step_time(train: Train, device: torch.device, step: Callable[[int], Callable[[], Any]]) -> str:
    """Time training steps on random input: milliseconds a step and the whole duration, in words.

    Args:
        train: the recipe's section.
        device: where the steps run.
        step: a number of samples -> a function that performs one update on so many.
    """

    def seconds(samples: int, repeats: int) -> float:
        update = step(samples)
        update()  # allocates, compiles, picks kernels
        _wait(device)
        started = time.perf_counter()
        for _ in range(repeats):
            update()
        _wait(device)
        return (time.perf_counter() - started) / repeats

    few = min(train.batch_size, PROBE * train.accumulate)
    took = seconds(few, 1) * train.batch_size / few
    how = f"reckoned from {few} samples"
    if few == train.batch_size or took <= CHEAP:
        took, how = seconds(train.batch_size, 3), "measured"
    minutes, rest = divmod(round(took * train.steps), 60)
    hours, minutes = divmod(minutes, 60)
    duration = f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
    threads = f", {torch.get_num_threads()} thread(s)" if device.type == "cpu" else ""
    return f"{took * 1000:,.0f} ms a step on {device}{threads} ({how}), {duration} in all; reading and evaluation come on top"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
