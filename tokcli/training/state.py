"""What a training keeps in its folder: the log, the saved state from which it goes on, and the artifact that it ends in."""

import contextlib
import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from tokcli import distributed
from tokcli.artifact.draft import Draft
from tokcli.artifact.opening import Artifact
from tokcli.artifact.weights import read_checkpoint
from tokcli.errors import TokError
from tokcli.files import atomic_write, disk_error, not_saved, require_space
from tokcli.limits import check_zip
from tokcli.terminal import printable
from tokcli.training.finite import EVIDENCE

LOG = "log.jsonl"


RATE = "images_per_second"  # in every line of a training step, in none of an evaluation


class Journal:
    """`log.jsonl` and, where it is installed, TensorBoard; continued at `step` without the lines of lost steps.

    Dropped too is an evaluation at `step` itself: state is saved before it, so the continued run does it again.
    """

    def __init__(self, folder: Path, step: int) -> None:
        path = folder / LOG
        kept: list[str] = []
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    values = json.loads(line)
                    if values["step"] < step or (values["step"] == step and RATE in values):
                        kept.append(line)
                except (json.JSONDecodeError, KeyError, TypeError):
                    break  # a line cut short by kill -9 is the last one
        with atomic_write(path) as tmp:
            tmp.write_text("".join(line + "\n" for line in kept))
        self._file = open(path, "a", buffering=1)
        self._board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
        except ImportError:
            pass
        except (OSError, ValueError) as error:  # a full disk, a path that is not UTF-8
            log.warning("there is no TensorBoard log: %s", printable(str(error)))

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line of numbers at a step."""
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise disk_error(Path(self._file.name), error) from None
        if self._board:
            with self._optional():
                for name, value in values.items():
                    self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        with contextlib.suppress(OSError):  # what could not be written has been told already
            self._file.close()
        if self._board:
            with self._optional():
                self._board.close()

    @contextlib.contextmanager
    def _optional(self) -> Iterator[None]:
        """TensorBoard's files are a comfort: where they cannot be written, training goes on without."""
        try:
            yield
        except OSError as error:
            log.warning("TensorBoard's log is given up: %s", error)
            self._board = None


log = logging.getLogger("tok")

STATE = "state.pt"
NUMBERED = "state-{:08d}"  # the stem of a state that is kept beside it, and of its parts
NUMBER = re.compile(r"state-(\d{8,})\.(?:pt|parts)")


@runtime_checkable
class Stateful(Protocol):
    """Something whose state is saved with the run."""

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to continue."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from such a state."""
        ...


@runtime_checkable
class Weighed(Protocol):
    """Something that knows how large its saved state will be."""

    def saved_bytes(self) -> int:
        """Over all ranks, after the first step."""
        ...


@runtime_checkable
class InParts(Protocol):
    """Something of whose state every rank may keep a part, saved as tensors by name."""

    in_parts: bool

    def tensors(self) -> dict[str, Tensor]:
        """What this rank keeps."""
        ...

    def load_tensors(self, folder: Path, prefix: str) -> None:
        """Continue from what `shards.write` wrote under names with that prefix."""
        ...


def save_state(folder: Path, step: int, seconds: float, parts: Mapping[str, Stateful], keep: int = 1) -> None:
    """Write the run's state after `step` updates and `seconds` of training, atomically; all ranks call it.

    Args:
        keep: so many states remain. The newest is state.pt; where there are several, each has also its number in its name.
    """
    apart = _in_parts(parts)
    beside = f"{NUMBERED.format(step)}.parts" if apart else None
    if beside:
        from tokcli.training import shards  # takes as long to import as the rest of torch

        if distributed.is_main():
            shutil.rmtree(folder / beside, ignore_errors=True)  # of a process that was killed
        distributed.barrier()
        tensors = {f"{name}/{key}": t for name, part in apart.items() for key, t in part.tensors().items()}
        shards.write(folder / beside, tensors)
    if distributed.is_main():
        with atomic_write(folder / STATE) as tmp:
            states = {name: part.state_dict() for name, part in parts.items() if name not in apart}
            try:
                torch.save({"step": step, "seconds": seconds, "parts": beside, **states}, tmp)
            except RuntimeError as error:  # torch's zip writer reports a full disk this way
                raise not_saved(folder / STATE) from error
        _keep(folder, step, keep)
    distributed.barrier()


def require_disk(folder: Path, parts: Mapping[str, Stateful], keep: int) -> None:
    """Tell what disk a training needs before it starts: its states, one more while it is written, and the weights at the end.

    Raises:
        TokError: it is not free.
    """
    sizes = [part.saved_bytes() for part in parts.values() if isinstance(part, Weighed)]
    files = [file.stat() for pattern in ("state*", "state*.parts/*") for file in folder.glob(pattern) if file.is_file()]
    present = sum(
        {file.st_ino: file.st_size for file in files}.values()
    )  # state.pt has two names where several are kept
    need = (keep + 1) * sum(sizes) + sum(size // 3 for size in sizes)  # weights are less than a third of a state
    log.info(
        "%s: takes up to %s of disk: %d saved states of %s, and the weights; %s are free",
        folder,
        _size(need),
        keep + 1,
        _size(sum(sizes)),
        _size(shutil.disk_usage(folder).free),
    )
    if need > present:
        how = "Free some space, lower train.keep, or choose another --out"
        require_space(folder, need - present, "train.keep", next=how)


def _size(count: int) -> str:
    """Bytes in words."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _in_parts(parts: Mapping[str, Stateful]) -> dict[str, InParts]:
    return {name: part for name, part in parts.items() if isinstance(part, InParts) and part.in_parts}


def _keep(folder: Path, step: int, keep: int) -> None:
    """Number the newest state where several are kept, and remove what is too old, or of a future that was given up."""
    if keep > 1:
        numbered = folder / f"{NUMBERED.format(step)}.pt"
        numbered.unlink(missing_ok=True)
        try:
            os.link(folder / STATE, numbered)
        except OSError:  # a file system without links
            shutil.copyfile(folder / STATE, numbered)
    known = {path: int(found.group(1)) for path in folder.iterdir() if (found := NUMBER.fullmatch(path.name))}
    kept = sorted({number for number in known.values() if number <= step} | {step})[-keep:]
    for path in [path for path, number in known.items() if number not in kept]:
        forget(path)


def forget(path: Path) -> None:
    """Remove a state, or its parts."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def load_state(folder: Path, parts: Mapping[str, Stateful]) -> tuple[int, float]:
    """Restore a saved state if there is one; returns the number of updates done and the seconds they took."""
    path = folder / STATE
    if not path.exists():
        return 0, 0.0
    try:
        check_zip(path)
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"checksum of {damaged}")
        state = read_checkpoint(path)
        apart = _in_parts(parts)
        for name, part in parts.items():
            if name not in apart:
                part.load_state_dict(state[name])
        for name, sharded in apart.items():
            sharded.load_tensors(folder / state["parts"], f"{name}/")
        return int(state["step"]), float(state["seconds"])
    except Exception as error:  # a damaged zip fails in as many ways as it has fields
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
    for path in draft.path.iterdir():
        if path.name in (STATE, EVIDENCE) or NUMBER.fullmatch(path.name):
            forget(path)
    return finished
