"""The training loop: stopping, resuming and failing at any step, in this process and on a toy network."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from test_faults import logged
from torch import Tensor, nn
from torch.nn import functional as F

from tokcli.artifact.weights import read_checkpoint
from tokcli.data.token_batches import TokenBatches
from tokcli.errors import Interrupted, TokError
from tokcli.recipe.sections import MeasuredTrain, Optim
from tokcli.training import loop
from tokcli.training.finite import NonFinite
from tokcli.training.signals import STOPPING, NothingCame, StopSignal
from tokcli.training.updater import Updater

STEPS = 7
TOKENS = torch.randint(
    0, 8, (10, 4), generator=torch.Generator().manual_seed(0)
)  # 10 rows by 4 a step: epochs end inside steps
STORE: Any = SimpleNamespace(rows=10, views=1, labels=np.arange(10) % 3, batch=lambda rows, views: TOKENS[rows])
Hook = Callable[[int, "Classifier"], None]


class Classifier(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding, self.dropout, self.head = nn.Embedding(8, 6), nn.Dropout(dropout), nn.Linear(6, 3)

    def forward(self, indices: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self.head(self.dropout(self.embedding(indices)).mean(1)), labels)}


def train(
    folder: Path, *, dropout: float = 0.5, before: Hook | None = None, after: Hook | None = None,
    evaluate: Callable[[int], dict[str, float]] | None = None, seed: int = 0, **keys: Any,
) -> dict[str, Tensor]:  # fmt: skip
    """Run the loop to its end, or until it is stopped; `before` and `after` are called around each update with its number."""
    folder.mkdir(exist_ok=True)
    settings = MeasuredTrain(**{"steps": STEPS, "batch_size": 4, "ema": 0.9, "log_every": 1, "save_every": 3, **keys})
    network = Classifier(dropout)
    updater = Updater(network, Optim(lr=0.1, warmup_steps=2), settings, torch.device("cpu"))

    def step(number: int, batch: Any) -> dict[str, Any]:
        if before:
            before(number, network)
        values = updater.update(number, [batch.indices, batch.labels])
        if after:
            after(number, network)
        return values

    batches = TokenBatches(STORE, batch_size=4, seed=0)
    loop.run(
        folder, settings, seed, batches=batches.from_step, step=step, parts={"updater": updater}, evaluate=evaluate,
        epoch=batches.epoch,
    )  # fmt: skip
    with updater.weights():
        return {name: t.clone() for name, t in network.state_dict().items()}


def signal_in_step(wanted: int, number: int = signal.SIGTERM) -> Hook:
    return lambda step, _: os.kill(os.getpid(), number) if step + 1 == wanted else None


def die_in_step(wanted: int) -> Hook:
    def die(step: int, _: Classifier) -> None:
        if step + 1 == wanted:
            raise KeyboardInterrupt  # like kill -9: nothing more is saved

    return die


def losses(folder: Path) -> list[tuple[int, float]]:
    """What the log says of training steps, without the times."""
    lines = logged(folder)
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[tuple[int, float]]]:
    folder = tmp_path_factory.mktemp("straight")
    return train(folder), losses(folder)


@pytest.mark.parametrize("stop", [1, 2, 3, 5, STEPS])
def test_interrupted_and_repeated_equals_uninterrupted(straight: Any, tmp_path: Path, stop: int) -> None:
    with pytest.raises(Interrupted, match=f"interrupted after step {stop} of {STEPS}"):
        train(tmp_path, after=signal_in_step(stop))
    assert same(train(tmp_path), straight[0])
    assert losses(tmp_path) == straight[1]


@pytest.mark.parametrize("stop", [1, 2, 4, 6, STEPS])
def test_killed_and_repeated_equals_uninterrupted(straight: Any, tmp_path: Path, stop: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, after=die_in_step(stop))
    assert same(train(tmp_path), straight[0])
    assert losses(tmp_path) == straight[1]  # the steps that were lost and done again are logged once


def test_stopped_at_every_step_equals_uninterrupted(straight: Any, tmp_path: Path) -> None:
    for stop in range(1, STEPS + 1):
        with pytest.raises(Interrupted):
            train(tmp_path, after=signal_in_step(stop))
    assert same(train(tmp_path), straight[0])
    assert losses(tmp_path) == straight[1]


def test_dropout_depends_on_the_seed(straight: Any, tmp_path: Path) -> None:
    assert not same(train(tmp_path, seed=1), straight[0])  # or the equalities above would not be about dropout


def test_a_finished_run_that_is_repeated_trains_no_more(straight: Any, tmp_path: Path) -> None:
    train(tmp_path)
    assert same(train(tmp_path, before=die_in_step(STEPS)), straight[0])


def test_a_log_cut_short_in_a_line_is_mended(straight: Any, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path, after=signal_in_step(4))
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    train(tmp_path)
    assert losses(tmp_path) == straight[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_finishes_the_step_saves_and_asks_for_exit_code_75(tmp_path: Path, number: int) -> None:
    with pytest.raises(Interrupted) as caught:
        train(tmp_path, before=signal_in_step(2, number))
    assert caught.value.exit_code == 75
    assert str(caught.value) == f"{tmp_path}: interrupted after step 2 of 7, state saved. Repeat the command to go on."
    assert read_checkpoint(tmp_path / "state.pt")["step"] == 2


def hang(folder: Path, patched: pytest.MonkeyPatch, stop: int, first_bad: int | None = None) -> None:
    """Train until a signal comes, which is while the batch after `stop` steps is waited for.

    Args:
        first_bad: what a look finds then, as on a GPU, where steps after the first that is not finite change nothing.
    """
    whole = TokenBatches.from_step

    def hanging(self: TokenBatches, first: int) -> Iterator[Any]:
        yield from itertools.islice(whole(self, first), stop - first)
        if first_bad is not None:
            patched.setattr(Updater, "look", Mock(side_effect=NonFinite(first_bad)))
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        time.sleep(60)

    patched.setattr(TokenBatches, "from_step", hanging)
    train(folder)


@pytest.mark.parametrize("stop", [0, 1, 3, 4])
def test_a_signal_while_a_batch_is_waited_for_saves_at_once(
    straight: Any, tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    with (
        monkeypatch.context() as patched,
        pytest.raises(Interrupted, match=f"after step {stop} of {STEPS}, state saved"),
    ):
        hang(tmp_path, patched, stop)
    assert time.monotonic() - began < 30 and read_checkpoint(tmp_path / "state.pt")["step"] == stop
    assert same(train(tmp_path), straight[0])
    assert losses(tmp_path) == straight[1]


def test_a_state_is_not_written_over_by_itself(straight: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path, after=signal_in_step(4))
    saved = (tmp_path / "state.pt").stat()
    with monkeypatch.context() as patched, pytest.raises(Interrupted, match=f"after step 4 of {STEPS}, state saved"):
        patched.setattr(loop, "save_state", None)  # a kill while it is written would cost it
        hang(tmp_path, patched, 4)
    assert (tmp_path / "state.pt").stat() == saved
    assert same(train(tmp_path), straight[0])


def test_a_signal_while_a_batch_is_waited_for_saves_what_was_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(Interrupted, match=f"after step 4 of {STEPS}, state saved"):
        hang(tmp_path, patched, 5, first_bad=4)
    assert read_checkpoint(tmp_path / "state.pt")["step"] == 4


def test_nothing_is_waited_for_after_a_signal() -> None:
    with StopSignal() as stop:
        with stop.waiting():
            pass
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(NothingCame), stop.waiting():
            raise AssertionError("it waits")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_signal_in_a_process_that_was_just_forked_is_not_the_trainings() -> None:
    with StopSignal() as stop, stop.waiting():
        child = os.fork()
        if not child:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)  # a handler of Python runs between two lines
                os._exit(0 if stop.received is None else 1)
            except BaseException:  # it must not return into the tests
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert stop.received is None


def test_handlers_are_as_before_after_a_run(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in STOPPING]
    with pytest.raises(Interrupted):
        train(tmp_path, after=signal_in_step(1))
    assert [signal.getsignal(number) for number in STOPPING] == before


def second_signal(number: int, pause: float) -> None:
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.received == signal.SIGUSR1
        time.sleep(pause)
        os.kill(os.getpid(), number)
        time.sleep(0.01)  # a handler of Python runs between two lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_acts_at_once(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def act(*_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(StopSignal, "echo", 0.02)
    before = signal.signal(number, act)  # what the process would do without the loop
    try:
        with pytest.raises(TimeoutError):
            second_signal(number, pause=0.05)
    finally:
        signal.signal(number, before)


def test_an_echo_of_a_signal_is_not_a_second_one() -> None:
    second_signal(signal.SIGINT, pause=0)  # torchrun passes on what the terminal already sent


def poison(wanted: int) -> Hook:
    def spoil(step: int, network: Classifier) -> None:
        if step + 1 == wanted:
            network.head.register_forward_hook(lambda module, inputs, output: output * torch.nan)

    return spoil


@pytest.mark.parametrize("wanted", [1, 3, 6])
def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_state_before(
    straight: Any, tmp_path: Path, wanted: int
) -> None:
    with pytest.raises(TokError, match=rf"^step {wanted}: .*not finite \(last finite at {wanted - 1}\)") as caught:
        train(tmp_path, before=poison(wanted))
    assert caught.value.exit_code == 1
    assert read_checkpoint(tmp_path / "state.pt")["step"] == wanted - 1
    assert [step for step, _ in losses(tmp_path)] == list(range(1, wanted))
    assert same(train(tmp_path), straight[0])  # the state was not touched by the step that failed


class Evaluations:
    """Counts evaluations, notes which state was saved before each, and stops in the one it is told to."""

    def __init__(self, folder: Path, die_at: int | None = None) -> None:
        self.folder, self.die_at, self.saved = folder, die_at, []  # type: ignore[var-annotated]

    def __call__(self, step: int) -> dict[str, float]:
        self.saved.append((step, read_checkpoint(self.folder / "state.pt")["step"]))
        if step == self.die_at:
            raise KeyboardInterrupt
        torch.rand(step)  # uses random numbers, as a measurement may
        return {"psnr": float(step)}


def evaluated(folder: Path) -> list[int]:
    lines = logged(folder)
    return [line["step"] for line in lines if "val/psnr" in line]


def test_state_is_saved_before_each_evaluation(straight: Any, tmp_path: Path) -> None:
    evaluate = Evaluations(tmp_path)
    assert same(train(tmp_path, evaluate=evaluate, eval_every=2, save_every=5), straight[0])
    assert evaluate.saved == [(2, 2), (4, 4), (6, 6)]
    assert evaluated(tmp_path) == [2, 4, 6]


def test_an_evaluation_that_was_killed_is_done_again(straight: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, evaluate=Evaluations(tmp_path, die_at=4), eval_every=2, save_every=5)
    assert same(train(tmp_path, evaluate=Evaluations(tmp_path), eval_every=2, save_every=5), straight[0])
    assert evaluated(tmp_path) == [2, 4, 6]
    assert losses(tmp_path) == straight[1]


@pytest.mark.parametrize("stop", [4, 5])
def test_an_interrupted_run_logs_each_evaluation_once(tmp_path: Path, stop: int) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path, evaluate=Evaluations(tmp_path), eval_every=2, after=signal_in_step(stop))
    train(tmp_path, evaluate=Evaluations(tmp_path), eval_every=2)
    assert evaluated(tmp_path) == [2, 4, 6]


def test_only_every_so_many_steps_and_the_last_are_logged(tmp_path: Path) -> None:
    train(tmp_path, log_every=3)
    assert [step for step, _ in losses(tmp_path)] == [3, 6, 7]


def test_a_run_that_goes_on_counts_its_earlier_seconds(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path, before=lambda step, _: time.sleep(0.2), after=signal_in_step(1))
    first = read_checkpoint(tmp_path / "state.pt")["seconds"]
    train(tmp_path)
    assert read_checkpoint(tmp_path / "state.pt")["seconds"] > first > 0.2


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    train(tmp_path)
    (tmp_path / "state.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:500])
    with pytest.raises(TokError, match="state.pt"):
        train(tmp_path)
