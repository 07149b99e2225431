"""Flags that several commands share, declared once, and what they turn into."""

import contextlib
import logging
import os
import sys
import typing
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tokcli import terminal
from tokcli.files import from_home
from tokcli.recipe.sample_options import Option, declared

if TYPE_CHECKING:
    from tokcli.artifact.opening import Artifact
    from tokcli.artifact.plans import Plan
    from tokcli.command.options import Options

F = TypeVar("F", bound=Callable[..., Any])


class _Path(click.Path):
    """A path that is not empty, as that of a script's unset variable is: Path("") would be the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty: name one, or leave it out", param, ctx)
        return super().convert(value, param, ctx)


class _Name(click.ParamType):
    """A word that is not empty."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).strip():
            self.fail("it is empty: name one, or leave it out", param, ctx)
        return value


PATH, NAME = _Path(path_type=Path), _Name()


def flag(names: str, help: str, metavar: str | None = None, type: Any = NAME, **more: Any) -> Any:
    """A flag with a value; after its name may stand that of the parameter."""
    return click.option(*names.split(), help=help, metavar=metavar, type=type, show_default="default" in more, **more)


def switch(names: str, help: str, **more: Any) -> Any:
    """A flag without a value."""
    return click.option(*names.split(), help=help, **({"is_flag": True} | more))


COMMON = [
    flag("--recipe", "Use another recipe: a name that `tok recipes` lists, or a YAML file.", "NAME|FILE"),
    flag("--set sets", "Change a recipe key, such as optim.lr=1e-4. Repeatable.", "KEY=VALUE", str, multiple=True),
    flag(
        "--workspace",
        "Folder in which artifacts are found and written.",
        "DIR",
        PATH,
        envvar="TOK_WORKSPACE",
        default=Path("artifacts"),
    ),
    flag("--out", "Folder to write. Default: a readable name in the workspace.", "DIR", PATH),
    flag("--device", "Device to compute on. Default: a GPU if there is one.", "cpu|cuda[:N]"),
    flag("--threads", "Number of CPU threads. Default: all cores.", "N", click.IntRange(1)),
    flag("--seed", "Random seed; short for --set seed=N.", "N", click.IntRange(0)),
    switch("--dry-run", "Print the resolved recipe, inputs, parameters and memory, and write nothing."),
    switch("--json as_json", "Print the manifest instead of the path (eval: the metrics; dry run: the plan)."),
]
COLUMNS = flag(
    "--columns",
    "Columns of Parquet files to read. Default: by their features or usual names.",
    "image=A,label=B,caption=C",
)
WORKERS = flag(
    "--workers",
    "Number of processes that read images and of threads that write them; 0 uses the main process. Default: the number of cores that tok may use; for training batches, data.workers.",
    "N",
    click.IntRange(0),
)
DATA = [
    flag(
        "--data",
        "Images: openmoji/train, fashion-mnist/train, a folder, or shards-{000..099}.tar. Default: the data that the input was made from, else $TOK_DATA, else openmoji/train.",
        "SET/SPLIT|DIR|TAR",
        str,
    ),
    flag("--labels", "File with a line `path class` for each image. Default: sub-folders are classes.", "FILE", PATH),
    COLUMNS,
    WORKERS,
]
HELD_OUT = [
    flag("--data", "Held-out images. Default: the val split beside the training data.", "SET/SPLIT|DIR|TAR", str),
    *DATA[1:],
]
TEACHER_WEIGHTS = flag(
    "--teacher-weights",
    "A teacher's weights, if no hub can be reached. Repeatable: clip=a.safetensors is for the teacher clip only.",
    "[NAME=]FILE",
    multiple=True,
)
VGG_WEIGHTS = flag("--vgg-weights", "torchvision's VGG16 weights, for LPIPS.", "FILE", PATH)
INCEPTION_WEIGHTS = flag("--inception-weights", "pytorch-fid's Inception weights, which FID needs.", "FILE", PATH)

TEXT_WEIGHTS = flag("--text-weights", "The text tower's weights, if no hub can be reached.", "FILE", PATH)


class _Text(click.ParamType):
    """A value that an option reads from text by itself."""

    name = "text"

    def __init__(self, parse: Callable[[str], Any]) -> None:
        self.parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def flags_of(owner: type) -> list[Any]:
    """The flags of the options that a dataclass declares; each is short for --set of its key, which the recipe checks."""
    return [_flag(key, one) for key, one in declared(owner).items() if one.flags]


def _flag(key: str, one: Option) -> Any:
    kind: Any = NAME
    if one.parse:
        kind = _Text(one.parse)
    elif one.choices:
        kind = click.Choice(one.choices)
    else:
        kind = next((k for k in (bool, int, float) if k in (one.type, *typing.get_args(one.type))), NAME)
    help = f"{one.help}  [{one.range.text}]" if one.range and kind in (int, float) else one.help
    return click.option(*one.flags, key, type=kind, default=None, metavar=one.metavar, help=help)


def with_options(*groups: Any) -> Callable[[F], F]:
    """Add flags, singly or in lists, in the order given."""

    def decorate(function: F) -> F:
        for option in reversed([o for group in groups for o in (group if isinstance(group, list) else [group])]):
            function = option(function)
        return function

    return decorate


def _by_name(given: tuple[str, ...]) -> dict[str, Path]:
    """Files of weights as `teacher` for all teachers, or `teacher:NAME` for one."""
    found: dict[str, Path] = {}
    for text in given:
        name, sign, file = text.rpartition("=")
        key = f"teacher:{name}" if sign and not Path(text).exists() else "teacher"
        path = from_home(file if key != "teacher" else text)
        if not path.is_file():
            raise click.BadParameter(f"File '{path}' does not exist.", param_hint="'--teacher-weights'")
        if key in found:
            raise click.BadParameter(
                f"{name or 'a file for all teachers'} is given twice.", param_hint="'--teacher-weights'"
            )
        found[key] = path
    return found


def with_columns(data: str | None, columns: str | None) -> str | None:
    """What `--data` and `--columns` name together, in the form in which artifacts record it: `DIR:image=A,label=B`."""
    if columns is None:
        return data
    if not data:
        raise click.UsageError("--columns goes with --data.")
    if not columns.startswith(("image=", "label=", "caption=")):
        raise click.BadParameter(f"'{columns}' is not like image=A,label=B,caption=C.", param_hint="'--columns'")
    return f"{data}:{columns}"


def options_of(flags: dict[str, Any], shorthands: dict[str, Any] | None = None) -> "Options":
    """The common flags as `Options`; shorthands (dotted key -> value or None) join the `--set`s.

    Args:
        flags: values of COMMON, DATA and the weights flags; those that a command does not have are absent.
        shorthands: recipe keys that have a flag of their own.
    """
    from tokcli.command.options import Options
    from tokcli.recipe.yaml import parse_set

    sets = parse_set(flags["sets"])
    for key, value in {"seed": flags["seed"], **(shorthands or {})}.items():
        if value is not None:
            sets[key] = value
    weights = {
        name: flags[f"{name}_weights"]
        for name in ("teacher", "vgg", "inception", "text", "language")
        if flags.get(f"{name}_weights")
    }
    if isinstance(weights.get("teacher"), tuple):
        weights |= _by_name(weights.pop("teacher"))
    flags = flags | {"data": with_columns(flags.get("data"), flags.get("columns"))}
    kept = ("workspace", "out", "recipe", "data", "labels", "device", "threads", "workers", "dry_run")
    return Options(sets=sets, weights=weights, **{name: flags[name] for name in kept if name in flags})


@contextlib.contextmanager
def quiet_stdout() -> Any:
    """stdout carries the result alone: whatever a library prints goes to stderr, our notices too."""
    logger = logging.getLogger("tok")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(terminal.Line())
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(logging.INFO)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # other packages' deprecations are no news to a user of tok
    with contextlib.redirect_stdout(sys.stderr):
        yield


def run_stage(stage: Callable[["Options"], Any], options: "Options", as_json: bool) -> None:
    """Run one stage and print its artifact's path (a sweep's one a line), the manifest with --json, or the plan of a dry run."""
    from tokcli import distributed
    from tokcli.artifact.plans import Plan

    with quiet_stdout():
        if not distributed.is_main():
            logging.getLogger("tok").setLevel(logging.WARNING)  # notices once, not once a rank
        result: Artifact | Plan | Sequence[Artifact | Plan] | None = stage(options)
        listed = [] if result is None else result if isinstance(result, Sequence) else [result]
        lines: list[str | bytes] = []
        if not as_json:
            lines = [one.text() if isinstance(one, Plan) else _path(one.path) for one in listed]
    if not listed or not distributed.is_main():
        return
    if as_json:
        shown = [_document(one) for one in listed]
        click.echo(terminal.as_json(shown if isinstance(result, Sequence) else shown[0]))
    for line in lines:
        click.echo(line)


def _path(path: Path) -> str | bytes:
    """A path for a terminal, or for a script, which needs it as it is, be it UTF-8 or not."""
    return str(path) if sys.stdout.isatty() else os.fsencode(path)


def _document(result: "Artifact | Plan") -> Any:
    """What --json prints: a plan, metrics, or a manifest."""
    from tokcli.artifact.plans import Plan

    if isinstance(result, Plan):
        return result.document
    return result.manifest["metrics"] if result.kind == "report" else result.manifest
