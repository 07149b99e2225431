"""Bulk work in shards: each is claimed by one process, written once, and skipped when it is there."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from tokcli.artifact.manifest import read_manifest
from tokcli.errors import Interrupted
from tokcli.files import locked
from tokcli.training.signals import StopSignal


def claimed(
    folder: Path,
    mine: Sequence[int],
    present: Callable[[], set[int]],
    *,
    size: int,
    unit: str,
    desc: str,
    held: dict[int, contextlib.ExitStack] | None = None,
) -> Iterator[int]:
    """The shards of a bulk command that this process should write: neither there yet nor claimed by another process.

    Args:
        folder: of the artifact.
        mine: shard numbers of this job.
        present: the shards that are written.
        size, unit, desc: items per shard and words for the progress bar.
        held: for a caller that writes a shard after it has asked for the next one: gets the claim of each, to be closed when it
            is written; None: the claim ends with the next one.

    Raises:
        Interrupted: a signal came; finished shards are kept.
    """
    done = present()
    todo = [shard for shard in mine if shard not in done]
    quiet = None if todo else True
    with (
        StopSignal() as stop,
        tqdm(total=len(todo) * size, unit=unit, desc=desc, file=sys.stderr, disable=quiet) as bar,
    ):
        for shard in todo:
            if stop.received is not None:
                raise Interrupted(
                    str(folder),
                    f"interrupted before shard {shard}, finished shards are kept",
                    next="Repeat the command to go on",
                )
            with contextlib.ExitStack() as claim:
                got = claim.enter_context(locked(folder, f".shard-{shard:05d}.lock", remove=True))
                if got and shard not in present():
                    if held is not None:
                        held[shard] = claim.pop_all()
                    yield shard
                    bar.update(size)


@contextlib.contextmanager
def finishing(folder: Path) -> Iterator[bool]:
    """Whether this process is the one that completes the artifact, of all whose shards are written; no locks are left.

    It is not where another one is at it, or has done it.
    """
    with locked(folder, ".finish.lock", remove=True) as got:
        yield got and not completed(folder)
        if got:
            for stale in folder.glob(".shard-*.lock"):  # of killed processes
                with locked(folder, stale.name, remove=True):
                    pass


def completed(folder: Path) -> bool:
    """Whether the artifact is complete."""
    return bool(read_manifest(folder, str(folder))["status"] == "complete")
