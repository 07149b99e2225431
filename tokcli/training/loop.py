"""The one training loop: batch -> step -> log -> save -> evaluate."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tokcli import distributed
from tokcli.device import tensor_cores
from tokcli.errors import Interrupted, TokError
from tokcli.recipe.sections import MeasuredTrain, Train
from tokcli.training.finite import EVIDENCE, NonFinite, dropout_seed, write_evidence
from tokcli.training.signals import NothingCame, StopSignal
from tokcli.training.state import RATE, Journal, Stateful, load_state, require_disk, save_state
from tokcli.training.updater import Updater

log = logging.getLogger("tok")


def run(
    folder: Path,
    train: Train,
    seed: int,
    *,
    batches: Callable[[int], Iterator[Any]],
    step: Callable[[int, Any], dict[str, Any]],
    parts: Mapping[str, Stateful],
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
        step: (number, batch) -> values to log (numbers or 0-d tensors, read only when logged); performs one update. What is
            logged are means over ranks.
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

    updater = next((part for part in parts.values() if isinstance(part, Updater)), None)
    first, seconds = load_state(folder, parts)
    started = time.perf_counter() - seconds
    on_disk = first or None  # the step of the saved state
    if distributed.is_main():
        require_disk(folder, parts, train.keep)
    journal = Journal(folder, first) if distributed.is_main() else None
    if first:
        log.info("%s: goes on at step %d of %d", folder, first, train.steps)
    source = batches(first)
    bar = tqdm(
        total=train.steps,
        initial=first,
        unit="step",
        file=sys.stderr,
        disable=not distributed.is_main(),
        mininterval=0.5 if sys.stderr.isatty() else 15,
        dynamic_ncols=True,
        smoothing=0.1,
    )
    window_start, window_steps = time.perf_counter(), 0

    def save(done: int) -> None:
        nonlocal on_disk
        if done != on_disk:  # a state is not written over by itself: a kill meanwhile would cost it
            save_state(folder, done, time.perf_counter() - started, parts, train.keep)
            on_disk = done

    def interrupted(done: int) -> Interrupted:
        return Interrupted(
            f"{folder}",
            f"interrupted after step {done} of {train.steps}, state saved",
            next="Repeat the command to go on",
        )

    with StopSignal() as stop, distributed.watched(), bar:
        try:
            for number in range(first, train.steps):
                # before a step, not after the last one: a run stopped between saving and evaluating passes here again
                if evaluate is not None and due(number):
                    measured = evaluate(number)
                    # apart from what a step calls the same: its "l1" is weighted, its usage that of training images
                    if journal:
                        journal.write(number, {f"val/{name}": value for name, value in measured.items()})
                    window_start, window_steps = time.perf_counter(), 0
                torch.manual_seed(dropout_seed(seed, distributed.rank(), number))
                batch: Any = None
                try:
                    try:  # ranks stop together, after a step; a training alone does not wait for a disk that hangs
                        with contextlib.nullcontext() if distributed.active() else stop.waiting():
                            batch = next(source)
                    except NothingCame:
                        done = number
                        try:
                            if updater:
                                updater.look()
                        except NonFinite as found:  # the repeated command meets it again; to look closer needs a batch
                            done = found.step
                        save(done)
                        raise interrupted(done) from None
                    with tensor_cores():
                        values = step(number, batch)
                    logged = (number + 1) % train.log_every == 0 or number + 1 == train.steps
                    stopping = distributed.any_rank(stop.received is not None)
                    saved = (
                        stopping or due(number + 1) or (number + 1) % train.save_every == 0 or number + 1 == train.steps
                    )
                    if updater and (logged or saved):
                        updater.look()
                except NonFinite as found:
                    save(found.step)
                    if updater and found.norms is None:
                        found, batch = _again(found, seed, updater, batches, step)
                    write_evidence(folder, found, seed, batch.numbers)
                    raise TokError(
                        f"step {found.step + 1}",
                        f"loss or gradient is not finite (last finite at {found.step}), the state before it is kept in {folder}, "
                        f"and what repeats it in {EVIDENCE}",
                        next=f"Lower optim.lr or set optim.clip, and train into a new --out; tok show {folder} prints what happened",
                    ) from None
                done = number + 1
                window_steps += 1
                bar.update()
                if number == first:
                    say_memory(parts)
                if logged:
                    values = distributed.means(values)
                    rate = window_steps * train.batch_size / (time.perf_counter() - window_start)
                    values |= {name: float(f"{rate * amount:.4g}") for name, amount in (rates or {}).items()}
                    values |= {RATE: round(rate, 2)} | ({"epoch": round(epoch(done), 4)} if epoch else {})
                    if journal:
                        journal.write(done, values)
                    shown = {name: f"{values[name]:.3g}" for name in live if name in values}
                    bar.set_postfix(shown | {"images/s": f"{rate:.0f}"}, refresh=False)
                    window_start, window_steps = time.perf_counter(), 0
                if saved:
                    save(done)
                if stopping:
                    raise interrupted(done)
        finally:
            if journal:
                journal.close()
    return time.perf_counter() - started


def _again(
    found: NonFinite,
    seed: int,
    updater: Updater,
    batches: Callable[[int], Iterator[Any]],
    step: Callable[[int, Any], dict[str, Any]],
) -> tuple[NonFinite, Any]:
    """The step that was not finite once more, looked at at once: what is found, and its batch."""
    updater.watch.again()
    batch = next(batches(found.step))
    torch.manual_seed(dropout_seed(seed, distributed.rank(), found.step))
    try:
        with tensor_cores():
            step(found.step, batch)
    except NonFinite as repeated:
        return repeated, batch
    return found, batch  # a device that computes otherwise this time


def say_memory(parts: Mapping[str, Stateful]) -> None:
    """Tell what each rank keeps of a network in parts."""
    for part in parts.values():
        if isinstance(part, Updater) and part.in_parts and distributed.active():
            own = part.memory()
            rows = distributed.all_gather_rows(torch.tensor([list(own.values())], dtype=torch.float64)) / 2**20
            each = [f"{name} {', '.join(f'{v:.1f}' for v in c)}" for name, c in zip(own, rows.T.tolist(), strict=True)]
            log.info("MiB by rank: %s", "; ".join(each))
