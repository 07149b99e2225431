"""Commands on data sets: check one, pack one into shards."""

from pathlib import Path

import click

from tokcli import terminal
from tokcli.cli.flags import COLUMNS, PATH, flag, quiet_stdout, switch, with_columns, with_options
from tokcli.recipe import MAX_PIXELS


def _number(context: click.Context, option: click.Parameter, value: float) -> float:
    if value != value:  # NaN lies in no range, but click lets it pass
        raise click.BadParameter("nan is not a number from 0 to 1.")
    return value


SPEC = click.argument("spec", metavar="SET/SPLIT|DIR|TAR")
SHARED = [
    flag("--labels", "File with a line `path class` for each image.", "FILE", PATH),
    COLUMNS,
    flag("--size", "Side of the images that will be trained on.", "PIXELS", click.IntRange(1), default=256),
    flag(
        "--max-bad",
        "Share of images that may be left out.",
        "SHARE",
        click.FloatRange(0, 1),
        callback=_number,
        default=0.01,
    ),
    flag(
        "--max-pixels",
        "Largest number of pixels of an image that is decoded.",
        "N",
        click.IntRange(1, 2**30),
        default=MAX_PIXELS,
    ),
]


@click.group(short_help="check a data set, pack it into shards")
def data() -> None:
    """Check a data set before work starts, or pack it into shards."""


@data.command()
@SPEC
@with_options(SHARED)
@switch("--json as_json", "Print everything as JSON.")
@click.pass_context
def check(
    ctx: click.Context,
    spec: str,
    labels: Path | None,
    columns: str | None,
    size: int,
    max_bad: float,
    max_pixels: int,
    as_json: bool,
) -> None:
    """Decode every image and report sizes, classes, captions, duplicates and faults.

    The exit code is 1 if a training would stop.
    """
    from tokcli.stages import check_data as stage

    with quiet_stdout():
        found = stage.examine(
            str(with_columns(spec, columns)), labels=labels, size=size, max_bad=max_bad, max_pixels=max_pixels
        )
    click.echo(terminal.as_json(found) if as_json else stage.text(found))
    ctx.exit(1 if found["stops"] else 0)


@data.command()
@SPEC
@with_options(SHARED)
@flag("--out", "Folder to write.", "DIR", PATH, required=True)
@flag("--shard-megabytes", "Size of a shard.", "N", click.IntRange(1), default=1000)
def pack(
    spec: str,
    out: Path,
    labels: Path | None,
    columns: str | None,
    size: int,
    max_bad: float,
    max_pixels: int,
    shard_megabytes: int,
) -> None:
    """Write a data set as webdataset shards with classes, captions and an index; --data DIR reads them."""
    from tokcli.stages import pack_data as stage

    with quiet_stdout():
        made = stage.main(
            str(with_columns(spec, columns)),
            out,
            labels=labels,
            size=size,
            shard_bytes=shard_megabytes * 10**6,
            max_bad=max_bad,
            max_pixels=max_pixels,
        )
    click.echo(made)


COMMANDS = [data]
