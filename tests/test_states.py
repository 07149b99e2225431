"""Saved states: several are kept by step, disk is told beforehand, parts are checked and run nothing."""

import logging
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rank_trainings import ADAPTIVE, TRAININGS, settings
from torch import Tensor
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

from tokcli.artifact.weights import read_checkpoint
from tokcli.errors import TokError
from tokcli.training import loop, shards

ALL = TRAININGS | ADAPTIVE


def train(folder: Path, name: str = "proposal", **keys: Any) -> dict[str, Tensor]:
    folder.mkdir(exist_ok=True)
    updater, batches, step, others = ALL[name](settings(**keys))
    parts = {"updater": updater, **others}
    loop.run(folder, updater.train, 0, batches=batches.from_step, step=step, parts=parts)
    return {name: t.clone() for name, t in updater.module.state_dict().items()}


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_the_newest_states_are_kept_and_any_of_them_is_gone_on_from(tmp_path: Path, parallel: str) -> None:
    straight = train(tmp_path / "straight", parallel=parallel)
    train(tmp_path / "run", parallel=parallel, keep=3, save_every=1)
    numbered = sorted(path.name for path in (tmp_path / "run").glob("state-*.pt"))
    assert numbered == [f"state-{step:08d}.pt" for step in (3, 4, 5)]
    parts = sorted(path.name for path in (tmp_path / "run").glob("*.parts"))
    assert parts == ([f"state-{step:08d}.parts" for step in (3, 4, 5)] if parallel == "fsdp" else [])
    shutil.copy(tmp_path / "run" / numbered[0], tmp_path / "run" / "state.pt")
    again = train(tmp_path / "run", parallel=parallel, keep=1, save_every=1)
    torch.testing.assert_close(again, straight, rtol=0, atol=0)
    assert [path.name for path in (tmp_path / "run").glob("state-*.pt")] == []  # keep is lower now
    assert read_checkpoint(tmp_path / "run" / "state.pt")["step"] == 5


@pytest.mark.parametrize("name", ALL)
def test_the_size_of_a_state_is_known_before_it_is_written(tmp_path: Path, name: str) -> None:
    updater, _, _, others = ALL[name](settings())
    told = updater.saved_bytes() + sum(part.saved_bytes() for part in others.values())  # type: ignore[attr-defined]
    train(tmp_path, name)
    state = read_checkpoint(tmp_path / "state.pt")

    def size(value: Any) -> int:
        if isinstance(value, Tensor):
            return value.nbytes if value.ndim else 0
        each = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        return sum(map(size, each))

    assert told == pytest.approx(size(state), rel=0.01)


def test_a_training_tells_the_disk_it_needs_and_does_not_begin_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tok"):
        train(tmp_path / "a", keep=4, save_every=1)
    assert "of disk: 5 saved states of" in caplog.text
    size = (tmp_path / "a" / "state.pt").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * size))
    train(tmp_path / "a", keep=4)  # its states are there already
    with pytest.raises(TokError, match=r"^train.keep: needs .*Free some space, lower train.keep"):
        train(tmp_path / "b", keep=4)
    assert not list((tmp_path / "b").iterdir())


@pytest.mark.parametrize("which", ["*.distcp", "contents.pt", "*.sha256"])
def test_a_part_that_is_damaged_is_not_read(tmp_path: Path, which: str) -> None:
    train(tmp_path, parallel="fsdp")
    file = next(tmp_path.glob(f"*.parts/{which}"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(TokError, match=r"state\.pt: is damaged"):
        train(tmp_path, parallel="fsdp")


class Evil:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("where", ["contents.pt", ".metadata"])
def test_a_state_in_parts_runs_nothing(tmp_path: Path, where: str) -> None:
    train(tmp_path, parallel="fsdp")
    folder = next(tmp_path.glob("*.parts"))
    ran = tmp_path / "ran"
    if where == "contents.pt":
        torch.save(Evil(ran), folder / where)
        with pytest.raises(TokError, match="is damaged"):
            train(tmp_path, parallel="fsdp")
    else:  # torch's own list, which is not looked at
        assert not (folder / where).exists()
        (folder / where).write_bytes(pickle.dumps(Evil(ran)))
        train(tmp_path, parallel="fsdp")
    assert not ran.exists()


def test_a_state_in_parts_is_read_where_python_pickles_enumerations_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Python 3.11.2 does, and 3.11.7 does not."""
    by_name = lambda self, protocol: (getattr, (type(self), self.name))  # noqa: E731
    monkeypatch.setattr(_MEM_FORMAT_ENCODING, "__reduce_ex__", by_name)
    shards.write(tmp_path / "parts", {"x": torch.ones(3)})
    found = {"x": torch.zeros(3)}
    shards.read(tmp_path / "parts", found)
    assert torch.equal(found["x"], torch.ones(3))
