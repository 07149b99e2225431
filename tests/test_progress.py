"""Progress bars: one form, rate and time left, on a terminal only; and which work has one."""

import io
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import test_bulk_reading
from test_bulk_reading import COMMANDS
from test_faults import made

from tokcli import distributed, progress
from tokcli.progress import passing

ready = test_bulk_reading.ready  # a fixture


class Screen(io.StringIO):
    """Where a bar goes."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(terminal: bool, delay: float = 0.0) -> Screen:
        found = Screen(terminal)
        monkeypatch.setattr(sys, "stderr", found)
        monkeypatch.setattr(progress, "DELAY", delay)
        return found

    return make


def work(count: int = 4) -> None:
    for _ in passing(range(count), 2 * count, unit="image", desc="tokenize", units=lambda _: 2):
        time.sleep(0.12)


def test_a_bar_says_rate_and_time_left_and_goes(screen: Any) -> None:
    seen = screen(True)
    work()
    said = seen.getvalue()
    assert "tokenize" in said and "4/8" in said and "image/s" in said and "<" in said
    assert said.rstrip("\n").endswith("\r") or said.endswith("\r")


@pytest.mark.parametrize(("terminal", "rank", "delay"), [(False, "0", 0.0), (True, "1", 0.0), (True, "0", 60.0)])
def test_no_bar_without_a_terminal_on_other_ranks_or_for_short_work(
    terminal: bool, rank: str, delay: float, screen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = screen(terminal, delay)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert distributed.rank() == int(rank)
    work(2)
    assert seen.getvalue() == ""


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[int, int]]]:
    """By what a bar is called: how far it came, and of how much."""
    found: dict[str, list[tuple[int, int]]] = {}

    class Counting(progress.tqdm):  # type: ignore[type-arg]
        called = ""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"disable": False, "file": io.StringIO()})
            self.called = options["desc"]

        def close(self) -> None:
            if not self.disable:
                found.setdefault(self.called, []).append((self.n, self.total))
            super().close()

    monkeypatch.setattr(progress, "tqdm", Counting)
    return found


BARS = {
    "tokenize": {"tokenize"},
    "viz-codebook": {"tokens", "sheets of codes", "similar codes"},
    "eval": {"held-out images", "reconstructions"},
}


@pytest.mark.parametrize("command", BARS)
def test_long_work_of_a_command_has_a_bar_that_comes_to_its_end(
    command: str, ready: dict[str, Path], counted: dict[str, list[tuple[int, int]]], tmp_path: Path
) -> None:
    made(*COMMANDS[command](ready), "--out", tmp_path / "x")
    assert BARS[command] <= set(counted)
    assert all(done >= total for one in counted.values() for done, total in one)


def test_other_long_work_has_a_bar(ready: dict[str, Path], counted: dict[str, list[tuple[int, int]]]) -> None:
    import torch

    from tokcli.metrics.bootstrap import bootstrap_error
    from tokcli.metrics.fid import Moments
    from tokcli.metrics.neighbours import neighbours
    from tokcli.quantizers.kmeans import kmeans
    from tokcli.stages.check_data import examine
    from tokcli.stages.show import verify

    rows = torch.randn(12, 3)
    moments = Moments("m")
    moments.update(rows)
    bootstrap_error(rows, moments, replicates=2)
    neighbours(rows, rows + 1)
    kmeans(rows, 2, metric="euclidean", iterations=3, generator=torch.Generator())
    examine(str(ready["train"]), labels=None, size=8, max_bad=0.5, max_pixels=1000)
    verify(ready["tokenizer"])
    assert {"intervals", "neighbours", "k-means", "check", "verify"} <= set(counted)
    assert all(done >= total for one in counted.values() for done, total in one)
