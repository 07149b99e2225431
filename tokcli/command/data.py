"""Which data a command reads: what `--data` names, else what its input was made from, which is said and checked."""

import logging
import os
import shlex

from tokcli.artifact.opening import Artifact
from tokcli.command.options import EMBEDDED, Options
from tokcli.data.addresses import may_read, remember
from tokcli.data.sources import ImageSource, limited, names_data, open_source, sibling
from tokcli.errors import TokError

log = logging.getLogger("tok")


def named_data(options: Options) -> str | None:
    """What `--data` names, if anything.

    Raises:
        TokError: `--data ""`, as a script passes whose variable is not set.
    """
    if options.data is not None and not options.data.strip():
        raise TokError("--data", "is empty", next="Name a data set or a folder, or leave the flag out")
    if options.data is not None:
        remember(options.data)
    return options.data


def data_spec(options: Options, made_by: Artifact | None = None) -> str:
    """Which data to read: `--data`, else what the input artifact recorded, else $TOK_DATA, else the embedded set.

    Raises:
        TokError: see `named_data` and `recorded_data`.
    """
    named = named_data(options)
    if named is not None:
        return named
    if made_by is not None and made_by.inputs["data"]["path"]:
        return recorded_data(made_by, "--data DIR", planned=options.dry_run)
    if spec := os.environ.get("TOK_DATA"):
        log.info("data: %s (from TOK_DATA)", spec)
        return spec
    log.info("data: %s (embedded; --data names your own)", EMBEDDED)
    return EMBEDDED


def recorded_data(a: Artifact, flag: str = "", *, planned: bool = False) -> str:
    """The data that an artifact records, checked and said.

    Args:
        flag: see `recorded_spec`.
        planned: it need not be on this machine.

    Raises:
        TokError: see `recorded_spec`; or nothing is there.
    """
    spec = recorded_spec(a, flag)
    if not planned and not names_data(spec):
        how = f"Name the images: {flag}" if flag else "Bring them back"
        raise TokError(str(a.path), "the data that it records is not on this machine", got=spec, next=how)
    log.info("data: %s, as recorded in %s", spec, a.path)
    return spec


def recorded_spec(a: Artifact, flag: str = "") -> str:
    """What an artifact records as its data. Whoever made it wrote it there, so that an address is read only where the user has named it.

    Args:
        flag: by which the command takes other data; "": it has none.

    Raises:
        TokError: an address that the user has never named.
    """
    spec = a.inputs["data"]["path"]
    if not may_read(spec):
        raise TokError(
            str(a.path),
            "records an address as its data, and you have never named it",
            got=spec,
            next=f"If you trust it, name it: {'--data' if flag else 'tok data check'} {shlex.quote(spec)}",
        )
    return spec


def held_out_beside(source: ImageSource, size: int, most: int) -> ImageSource | None:
    """At most so many images of the val split beside a source, at `size` pixels; None, with a word, where there is none."""
    spec = sibling(source.name, "val")
    if spec is None:
        log.info("no held-out images beside %s: metrics are left to `tok eval --data`", source.name)
        return None
    held_out = open_source(spec, size=size, max_pixels=source.max_pixels)
    if held_out.id == source.id:
        log.warning("%s holds the same images as %s: no image is held out from training", spec, source.name)
    return limited(held_out, most)
