"""Bulk work in shards: each is claimed by one process, written once, and skipped when it is there."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tokcli.artifact.draft import Draft
from tokcli.artifact.manifest import read_manifest
from tokcli.artifact.opening import Artifact, open_artifact
from tokcli.errors import Interrupted
from tokcli.files import locked
from tokcli.training.signals import StopSignal

log = logging.getLogger("tok")


class Held(dict[int, contextlib.ExitStack]):
    """The claims of shards that are not written yet; with the block they end."""

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_: object) -> None:
        for claim in self.values():
            claim.close()


def claimed(
    folder: Path, todo: Sequence[int], present: Callable[[], set[int]], stop: StopSignal, held: Held
) -> Iterator[int]:
    """The shards of a bulk command that this process should write: neither there yet nor claimed by another process.

    Args:
        folder: of the artifact.
        todo: shard numbers of this job that were missing at its start.
        present: the shards that are written.
        stop: where it has been asked to stop, no more shards are claimed.
        held: gets the claim of each shard, to be closed when it is written.

    Raises:
        Interrupted: a signal came; finished shards are kept.
    """
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
                held[shard] = claim.pop_all()
                yield shard


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


def left_to_another(draft: Draft) -> Artifact:
    """What a command that does not complete the artifact gives: what another job has completed, or is completing."""
    if completed(draft.path):
        return open_artifact(draft.path)
    log.info("%s: another job completes it", draft.path)
    return Artifact(draft.path, draft.manifest)


def completed(folder: Path) -> bool:
    """Whether the artifact is complete."""
    return bool(read_manifest(folder, str(folder))["status"] == "complete")
