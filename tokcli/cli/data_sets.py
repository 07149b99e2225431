"""Commands on data sets: check one, pack one into shards."""

from pathlib import Path

import click

from tokcli import terminal
from tokcli.cli.flags import COLUMNS, PATH, quiet_stdout, with_columns, with_options
from tokcli.recipe import MAX_PIXELS


def _number(context: click.Context, option: click.Parameter, value: float) -> float:
    if value != value:  # NaN lies in no range, but click lets it pass
        raise click.BadParameter("nan is not a number from 0 to 1.")
    return value


SPEC = click.argument("spec", metavar="SET/SPLIT|DIR|TAR")
SHARED = [
    click.option("--labels", type=PATH, metavar="FILE", help="A file of lines `path class`."),
    COLUMNS,
    click.option("--size", type=click.IntRange(1), default=256, show_default=True, metavar="PIXELS",
                 help="Side of the images that will be trained on."),
    click.option("--max-bad", type=click.FloatRange(0, 1), callback=_number, default=0.01, show_default=True, metavar="SHARE",
                 help="Share of images that may be left out."),
    click.option("--max-pixels", type=click.IntRange(1, 2**30), default=MAX_PIXELS, show_default=True, metavar="N",
                 help="Largest number of pixels of an image that is decoded."),
]  # fmt: skip


@click.group(short_help="check a data set, pack it into shards")
def data() -> None:
    """Check a data set before work starts, or pack it into shards."""


@data.command()
@SPEC
@with_options(SHARED)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
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

    The exit code is 1 where a training would stop.
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
@click.option("--out", type=PATH, required=True, metavar="DIR", help="Folder to write.")
@click.option(
    "--shard-megabytes", type=click.IntRange(1), default=1000, show_default=True, metavar="N", help="Size of a shard."
)
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
