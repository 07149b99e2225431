"""Ranks that fail: one line, no tracebacks, nobody waits; what is logged is the mean over ranks. One spawn for all tests."""

import contextlib
import io
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from tokcli import cli, distributed, terminal
from tokcli.errors import Interrupted, TokError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "abc"}, "RANK: is no whole number from 0 on. Got abc."),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE: is no whole number from 1 on. Got -1."),
        ({"RANK": "3"}, "RANK: is not below WORLD_SIZE, which is 1. Got 3."),  # it would leave the work to nobody
        ({"RANK": "0", "WORLD_SIZE": "2"}, "torchrun: the 2 ranks that WORLD_SIZE promises do not find each other"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "x"},
            "torchrun: the 2 ranks that WORLD_SIZE promises do not find each other",
        ),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "99999"},
            "torchrun: the 2 ranks that WORLD_SIZE promises do not find each other",
        ),
    ],
)
def test_variables_of_ranks_that_cannot_be_are_one_line(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TokError) as caught:
        distributed.rank()
        distributed.start(CPU)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_an_empty_variable_of_ranks_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")
    assert (distributed.rank(), distributed.world_size(), distributed.local_world_size()) == (0, 1, 1)


def error_of_one() -> None:
    """Rank 1 fails while rank 0 waits for it in a collective."""
    if distributed.rank() == 1:
        raise TokError("--data photos", "cannot be read on this machine", next="Copy it")
    distributed.all_reduce_sum(torch.ones(2))


def error_of_all() -> None:
    raise Interrupted("run", "interrupted after step 3", next="Repeat it")


def loss_of_one() -> None:
    """Rank 1 is killed."""
    if distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.all_reduce_sum(torch.ones(2))


def own_mistake() -> None:
    """A mistake of tok's own in rank 1 keeps its traceback."""
    if distributed.rank() == 1:
        raise RuntimeError("a shape is wrong")
    distributed.all_reduce_sum(torch.ones(2))


def deaf() -> None:
    """Rank 0 would not hear of the end of rank 1, as in a collective of a GPU."""
    with distributed.watched():
        if distributed.rank() == 1:
            raise TokError("step 3", "fails", next="Repeat it")
        time.sleep(60)


def in_time() -> None:
    """Nobody fails."""
    with distributed.watched():
        distributed.barrier()


def done_early() -> None:
    """Rank 1 has nothing to do, and rank 0 writes when it was done."""
    if distributed.rank() == 0:
        time.sleep(1)
        print(time.time(), file=sys.stderr)


def loss_of_the_last() -> None:
    """Rank 0 is killed when rank 1 is done."""
    if distributed.rank() == 0:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)


# cases of one line share two processes; the last of a line may end them
SPAWNS: list[list[Callable[[], None]]] = [
    [in_time, done_early, error_of_one, error_of_all, own_mistake, loss_of_one],
    [deaf],
    [loss_of_the_last],
]


def rank_main(rank: int, spawn: int, ports: list[int], folder: str) -> None:
    """One rank of a command for each case of a spawn, with its exit code and what it prints kept."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    distributed.GRACE = 0.2
    terminal.guard = lambda: None  # it would write past what is kept here
    for case, port in zip(SPAWNS[spawn], ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        code, said = ending(case)
        Path(folder, f"{case.__name__}-{rank}.json").write_text(json.dumps([code, said, time.time()]))


def ending(case: Callable[[], None]) -> tuple[int, str]:
    """The exit code and the text of a command that does so."""

    def command(prog_name: str) -> None:
        with distributed.joined(CPU):
            case()

    cli.cli = command  # type: ignore[assignment]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            cli.main()
        except SystemExit as error:
            return int(error.code or 0), said.getvalue()
        except RuntimeError as error:
            return 99, f"Traceback: {error}"
    return 0, said.getvalue()


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What both ranks of each case did: exit code and text; None for a rank that wrote nothing."""
    folder = tmp_path_factory.mktemp("ranks")
    started = []
    for number, cases in enumerate(SPAWNS):
        given = (number, [free_port() for _ in cases], str(folder))
        started.append(mp.start_processes(rank_main, args=given, nprocs=2, join=False, start_method="spawn"))
    for process in [process for spawn in started for process in spawn.processes]:
        process.join(120)
        assert process.exitcode is not None, "a rank hangs"
    found = {}
    for name in [case.__name__ for cases in SPAWNS for case in cases]:
        files = [folder / f"{name}-{rank}.json" for rank in range(2)]
        told = [json.loads(file.read_text()) if file.exists() else None for file in files]
        found[name], found[f"{name}, left"] = [one and one[:2] for one in told], [one and one[2] for one in told]
    return found


def test_an_error_of_one_rank_is_one_line_and_ends_the_other_silently(ends: dict[str, list[Any]]) -> None:
    assert ends["error_of_one"] == [[1, ""], [1, "--data photos: cannot be read on this machine. Copy it.\n"]]


def test_an_error_of_all_ranks_is_said_once(ends: dict[str, list[Any]]) -> None:
    assert [code for code, _ in ends["error_of_all"]] == [75, 75]
    assert sorted(text for _, text in ends["error_of_all"]) == ["", "run: interrupted after step 3. Repeat it.\n"]


def test_a_rank_that_was_killed_is_one_line_of_the_other(ends: dict[str, list[Any]]) -> None:
    first, second = ends["loss_of_one"]
    assert second is None
    assert first[0] == 1
    assert first[1].startswith("torchrun: another rank is gone without a word")
    assert len(first[1].splitlines()) == 1


def test_a_mistake_of_our_own_is_no_lost_connection(ends: dict[str, list[Any]]) -> None:
    assert ends["own_mistake"] == [[1, ""], [99, "Traceback: a shape is wrong"]]


def test_a_rank_that_hears_nothing_is_ended(ends: dict[str, list[Any]]) -> None:
    assert ends["deaf"] == [None, [1, "step 3: fails. Repeat it.\n"]]  # rank 0 had no time to write


def test_ranks_that_end_well_are_left_alone(ends: dict[str, list[Any]]) -> None:
    assert ends["in_time"] == [[0, ""], [0, ""]]


def test_a_rank_that_is_done_waits_for_the_others(ends: dict[str, list[Any]]) -> None:
    (code, worked), other = ends["done_early"]
    assert code == 0 and other == [0, ""]
    assert ends["done_early, left"][1] > float(worked)


def test_a_rank_that_is_done_hears_of_one_that_was_killed(ends: dict[str, list[Any]]) -> None:
    first, second = ends["loss_of_the_last"]
    assert first is None and second[0] == 1
    assert second[1].startswith("torchrun: another rank is gone without a word")
