"""What `--dry-run` prints: the resolved recipe, what is read and written, parameters, memory."""

from collections.abc import Mapping

from torch import nn

from tokcli.recipe import resolved, to_yaml
from tokcli.schema import Recipe, Train
from tokcli.workspace import Options


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
) -> str:
    """The plan of a command as text.

    Args:
        modules: built on the meta device.
        reads: role -> path or name of each input.
        writes: the kind of artifact.
    """
    lines = [to_yaml(recipe).rstrip(), ""]
    lines += [f"# reads   {role}: {path}" for role, path in reads.items()]
    lines += [f"# writes  {writes}: {options.out or options.workspace / (writes + '-...')}"]
    if modules:
        lines += ["#", f"# {'module':<18}{'trainable':>15}{'frozen':>15}"]
    for name, module in modules.items():
        if module is not None:
            lines.append(f"# {name:<18}{parameter_count(module, True):>15,}{parameter_count(module, False):>15,}")
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
    return "\n".join(lines)
