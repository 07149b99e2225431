"""The saved state of a training, from which it goes on, and the artifact that it ends in."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from tokcli import distributed
from tokcli.artifact.draft import Draft
from tokcli.artifact.opening import Artifact
from tokcli.artifact.weights import read_checkpoint
from tokcli.errors import TokError
from tokcli.files import atomic_write
from tokcli.training.journal import LOG

STATE = "state.pt"


@runtime_checkable
class Stateful(Protocol):
    """Something whose state is saved with the run."""

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to continue."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from such a state."""
        ...


def save_state(folder: Path, step: int, seconds: float, parts: dict[str, Stateful]) -> None:
    """Write the run's state after `step` updates and `seconds` of training, atomically, by one rank."""
    if distributed.is_main():
        with atomic_write(folder / STATE) as tmp:
            try:
                torch.save(
                    {"step": step, "seconds": seconds, **{name: part.state_dict() for name, part in parts.items()}}, tmp
                )
            except RuntimeError as error:  # torch's zip writer reports a full disk this way
                raise TokError(
                    str(folder / STATE),
                    "could not be written, the disk may be full",
                    next="Free some space and repeat the command: it resumes from the last state",
                ) from error
    distributed.barrier()


def load_state(folder: Path, parts: dict[str, Stateful]) -> tuple[int, float]:
    """Restore a saved state if there is one; returns the number of updates done and the seconds they took."""
    path = folder / STATE
    if not path.exists():
        return 0, 0.0
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"checksum of {damaged}")
        state = read_checkpoint(path)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return int(state["step"]), float(state["seconds"])
    except (TokError, zipfile.BadZipFile, OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise TokError(
            str(path),
            "is damaged",
            why=f"{type(error).__name__}: {error}"[:160].splitlines()[0],
            next=f"Delete {folder} and repeat the command to start again",
        ) from None


def started(folder: Path) -> bool:
    """Whether a training in this folder has a state to go on from."""
    return (folder / STATE).exists()


def complete(
    draft: Draft,
    facts: Mapping[str, Any],
    metrics: Mapping[str, Any],
    skipped: Sequence[tuple[str, str]],
    seconds: float,
) -> Artifact:
    """Turn a trained draft into a finished artifact: list its files, forget the state of training.

    Args:
        facts, metrics: for the manifest.
        skipped: unreadable images by key, with the reason.
        seconds: of training.
    """
    made = {
        "seconds": round(seconds, 1),
        "skipped": {"images": len(skipped), "first": [f"{k}: {why}" for k, why in skipped[:20]]},
    }
    extras = [name for name in ("recipe.yaml", LOG, "preview.png") if (draft.path / name).exists()]
    finished = draft.finish(facts, payload=["model.safetensors"], extras=extras, metrics=metrics, provenance=made)
    (draft.path / STATE).unlink(missing_ok=True)
    return finished
