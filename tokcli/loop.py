"""The one training loop: batch -> step -> log -> save -> evaluate.

It can be interrupted at any moment. State is written whole or not at all; a repeated command continues from the last state,
and on the same number of threads ends with the same bits as an uninterrupted run.
"""

import contextlib
import json
import logging
import os
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
from tqdm import tqdm

from tokcli import distributed
from tokcli.artifact import Artifact
from tokcli.data.randomness import seed_of
from tokcli.draft import Draft, locked
from tokcli.errors import Interrupted, TokError, printable
from tokcli.optim import NonFinite
from tokcli.precision import tensor_cores
from tokcli.schema import MeasuredTrain, Train
from tokcli.weights import atomic_write, disk_error, read_checkpoint

log = logging.getLogger("tok")
STATE = "state.pt"
LOG = "log.jsonl"
RATE = "images_per_second"  # in every line of a training step, in none of an evaluation


@runtime_checkable
class Stateful(Protocol):
    """Something whose state is saved with the run."""

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to continue."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from such a state."""
        ...


class StopSignal:
    """Remembers SIGTERM, SIGINT and SIGUSR1, so that a loop can stop between steps; a second signal acts at once.

    What comes within `echo` seconds of the first is that one again: torchrun and SLURM pass on to each rank what the
    rank has already got from the terminal or the scheduler.
    """

    echo = 1.0

    def __init__(self) -> None:
        self.received: int | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > self.echo:
            self.__exit__()
            os.kill(os.getpid(), number)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


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
                    str(folder / STATE), "could not be written, the disk may be full",
                    next="free some space and repeat the command: it resumes from the last state",
                ) from error  # fmt: skip
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
            str(path), "is damaged", got=f"{type(error).__name__}: {error}"[:160].splitlines()[0],
            next=f"to start again, delete {folder} and repeat the command",
        ) from None  # fmt: skip


def run(
    folder: Path,
    train: Train,
    seed: int,
    *,
    batches: Callable[[int], Iterator[Any]],
    step: Callable[[int, Any], dict[str, Any]],
    parts: dict[str, Stateful],
    evaluate: Callable[[int], dict[str, float]] | None = None,
    epoch: Callable[[int], float] | None = None,
    live: tuple[str, ...] = ("loss",),
    rates: Mapping[str, float] | None = None,
) -> float:
    """Train to `train.steps`, from wherever the folder's saved state stands.

    Args:
        folder: where state and logs are kept.
        train: steps, intervals and batch size.
        seed: of dropout, which depends on (seed, rank, step).
        batches: start step -> endless batches of this rank.
        step: (number, batch) -> values to log (numbers or 0-d tensors, read only when logged); performs one update.
        parts: what must be saved to continue exactly.
        evaluate: called by all ranks every `train.eval_every` steps, after saving; its values are logged as val/NAME.
        epoch: step -> passes over the data.
        live: names of the values shown beside the progress bar.
        rates: name -> how much of something one image is; logged per second.

    Returns:
        Seconds of training, those before an interruption included.

    Raises:
        Interrupted: a signal came; the state is saved.
        TokError: the loss is not finite; the state before that step is saved.
    """

    every = train.eval_every if isinstance(train, MeasuredTrain) else None

    def due(done: int) -> bool:
        return bool(evaluate and every and done % every == 0 and 0 < done < train.steps)

    first, seconds = load_state(folder, parts)
    started = time.perf_counter() - seconds
    journal = Journal(folder, first) if distributed.is_main() else None
    if first:
        log.info("%s: goes on at step %d of %d", folder, first, train.steps)
    source = batches(first)
    bar = tqdm(
        total=train.steps, initial=first, unit="step", file=sys.stderr, disable=not distributed.is_main(),
        mininterval=0.5 if sys.stderr.isatty() else 15, dynamic_ncols=True, smoothing=0.1,
    )  # fmt: skip
    window_start, window_steps = time.perf_counter(), 0
    with StopSignal() as stop, bar:
        try:
            for number in range(first, train.steps):
                # before a step, not after the last one: a run stopped between saving and evaluating passes here again
                if evaluate is not None and due(number):
                    measured = evaluate(number)
                    # apart from what a step calls the same: its "l1" is weighted, its usage that of training images
                    if journal:
                        journal.write(number, {f"val/{name}": value for name, value in measured.items()})
                    window_start, window_steps = time.perf_counter(), 0
                torch.manual_seed(seed_of(seed, "dropout", distributed.rank(), number))
                try:
                    batch = next(source)
                    with tensor_cores():
                        values = step(number, batch)
                except NonFinite:
                    save_state(folder, number, time.perf_counter() - started, parts)
                    raise TokError(
                        f"step {number + 1}",
                        f"loss or gradient is not finite (last finite at {number})",
                        got=f"State before it kept in {folder}",
                        next="lower optim.lr or set optim.clip, and train into a new --out",
                    ) from None
                done = number + 1
                window_steps += 1
                bar.update()
                if journal and (done % train.log_every == 0 or done == train.steps):
                    values = {name: float(value) for name, value in values.items()}
                    rate = window_steps * train.batch_size / (time.perf_counter() - window_start)
                    values |= {name: float(f"{rate * amount:.4g}") for name, amount in (rates or {}).items()}
                    values |= {RATE: round(rate, 2)} | ({"epoch": round(epoch(done), 4)} if epoch else {})
                    journal.write(done, values)
                    shown = {name: f"{values[name]:.3g}" for name in live if name in values}
                    bar.set_postfix(shown | {"images/s": f"{rate:.0f}"}, refresh=False)
                    window_start, window_steps = time.perf_counter(), 0
                stopping = distributed.any_rank(stop.received is not None)
                if stopping or due(done) or done % train.save_every == 0 or done == train.steps:
                    save_state(folder, done, time.perf_counter() - started, parts)
                if stopping:
                    raise Interrupted(
                        f"{folder}", f"interrupted after step {done} of {train.steps}, state saved",
                        next="repeat the command to go on",
                    )  # fmt: skip
        finally:
            if journal:
                journal.close()
    return time.perf_counter() - started


def started(folder: Path) -> bool:
    """Whether a training in this folder has a state to go on from."""
    return (folder / STATE).exists()


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
                    next="repeat the command to go on",
                )
            with contextlib.ExitStack() as claim:
                got = claim.enter_context(locked(folder, f".shard-{shard:05d}.lock"))
                if got and shard not in present():
                    if held is not None:
                        held[shard] = claim.pop_all()
                    yield shard
                    bar.update(size)


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
