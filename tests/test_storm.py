"""The scripts that look for lost work and silent changes: they find what they look for."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokcli.artifact.opening import Artifact, open_artifact

SCRIPTS = Path(__file__).parent.parent / "scripts"
Make = Callable[..., Artifact]


@pytest.fixture
def flips(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import flips

    return flips


@pytest.fixture
def storm(flips: Any) -> Any:
    import storm

    return storm


def weights(a: Artifact) -> bytes:
    return a.file("model.safetensors").read_bytes()


def careless(a: Artifact) -> bytes:
    return (a.path / "model.safetensors").read_bytes()


def test_each_part_of_a_file_gets_one_flip_and_the_file_comes_back(tmp_path: Path, flips: Any) -> None:
    (tmp_path / "f").write_bytes(bytes(100))
    places = []
    for at in flips.flipped(tmp_path / "f", 10, random.Random(0)):
        data = (tmp_path / "f").read_bytes()
        assert sum(byte.bit_count() for byte in data) == 1 and data[at]
        places.append(at)
    assert [at // 10 for at in places] == list(range(10)) and (tmp_path / "f").read_bytes() == bytes(100)


def test_every_flip_of_a_small_artifact_is_noticed_or_harmless(tmp_path: Path, make_artifact: Make, flips: Any) -> None:
    recipe = {"stage": "tokenizer", "seed": 0, "encoder": {"heads": 3}}
    made = make_artifact(tmp_path / "a", recipe=recipe, inputs={"data": {"id": "data-1", "path": "x"}}, log="{}\n")
    wanted = open_artifact(made.path).manifest, weights(made)
    found = set()
    for file in ("manifest.json", "model.safetensors", "log.jsonl"):
        for _ in flips.flipped(made.path / file, 300, random.Random(1)):
            found.add(flips.judge(made.path, weights, wanted))
    assert flips.VERIFIED in found and flips.SILENT not in found


def test_a_flip_that_nobody_notices_is_called_so(
    tmp_path: Path, make_artifact: Make, flips: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_artifact(tmp_path / "a")
    wanted = open_artifact(made.path).manifest, careless(made)
    monkeypatch.setattr("tokcli.stages.show.verify", lambda path: "whole")
    for _ in flips.flipped(made.path / "model.safetensors", 1, random.Random(0)):
        assert flips.judge(made.path, careless, wanted) == flips.SILENT
        assert flips.judge(made.path, weights, wanted) == flips.READ


def test_what_a_command_leaves_behind_is_seen(tmp_path: Path, make_artifact: Make, storm: Any) -> None:
    made = make_artifact(tmp_path / "a")
    assert storm.signature(made.path)["id"] == made.id
    (made.path / ".half.tmp").touch()
    with pytest.raises(AssertionError, match="left behind"):
        storm.signature(made.path)


def test_a_storm_s_folder_may_have_spaces_in_its_name(storm: Any) -> None:
    for command in storm.family(Path("/a b/{c}")).values():
        assert [word for word in command if "/a b/{c}/" in word] == [
            word for word in command if "a b" in word or "{" in word
        ]
        assert not {"/a", "b/{c}"} & set(command)


def test_a_storm_asks_only_for_what_commands_know(storm: Any, tmp_path: Path) -> None:
    from tokcli.cli import cli

    assert {command[0] for command in storm.family(tmp_path).values()} == set(list(cli.commands)[:7])


@pytest.mark.slow
def test_a_short_storm_loses_nothing(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(SCRIPTS / "storm.py"),
        "--minutes",
        "0.3",
        "--folder",
        str(tmp_path),
        "--only",
        "tokens",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["faults"] == 0 and said["runs"] > 0
