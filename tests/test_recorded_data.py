"""Data that an artifact records is followed on a disk and said; an address only where the user has named it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forging import forge
from test_faults import copy, family, refusal, run  # noqa: F401  the fixture

from tokcli.artifact.opening import Artifact
from tokcli.command.data import recorded_data
from tokcli.command.options import Options
from tokcli.data import addresses
from tokcli.data.sources import sibling
from tokcli.errors import TokError
from tokcli.stages import evaluate

ADDRESS = "http://127.0.0.1:9/train-{000..001}.tar"  # nobody listens there


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TOK_DATA", raising=False)
    monkeypatch.setattr(addresses, "_now", set())
    return tmp_path / "cache"


def recording(folder: Path, spec: str) -> Path:
    return forge(folder, lambda manifest: manifest["inputs"]["data"].update(path=spec))


@pytest.mark.parametrize("role", ["tokenizer", "decoder", "proposal"])
def test_no_command_asks_an_address_that_only_an_artifact_names(
    family: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    role: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it asks the server"))
    artifact = recording(copy(family[role], tmp_path / "foreign"), ADDRESS)
    commands: dict[str, list[list[Any]]] = {
        "tokenizer": [["tokenize", "--tokenizer", artifact], ["viz-codebook", "--tokenizer", artifact]],
        "decoder": [["eval", artifact]],
        "proposal": [["eval", artifact], ["sample", "--proposal", artifact, "--decoder", family["decoder"], "-n", 1, "--neighbours", "pixels"]],
    }  # fmt: skip
    for command in commands[role]:
        said = refusal(*command, "--workspace", tmp_path / "ws")
        assert said.startswith(
            f"{artifact}: records an address as its data, and you have never named it. Got {ADDRESS}."
        )
        assert f"{'tok data check' if command[0] == 'sample' else '--data'} '{ADDRESS}'" in said


def test_an_address_that_the_user_has_named_is_followed(family: dict[str, Path], tmp_path: Path, cache: Path) -> None:  # noqa: F811
    artifact = recording(copy(family["tokenizer"], tmp_path / "t"), ADDRESS)
    command = ["tokenize", "--tokenizer", artifact, "--workspace", tmp_path / "ws"]
    for named in (["--data", ADDRESS], []):
        assert "the server cannot be reached" in refusal(*command, *named)
    addresses._now.clear()  # another process
    assert "the server cannot be reached" in refusal(*command)
    assert (cache / "addresses.txt").read_text() == f"{ADDRESS}\n"
    (cache / "addresses.txt").unlink()
    assert "you have never named it" in refusal(*command)
    assert "the server cannot be reached" in refusal(*command, env={"TOK_DATA": ADDRESS})
    assert "the server cannot be reached" in str(run("data", "check", ADDRESS).exception)
    assert "the server cannot be reached" in refusal(*command)


def test_data_on_a_disk_is_followed_and_said(
    make_artifact: Callable[..., Artifact], photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a = make_artifact(tmp_path / "a", inputs={"data": {"id": "data-1", "path": str(photos / "train")}})
    with caplog.at_level(logging.INFO, "tok"):
        assert recorded_data(a) == str(photos / "train")
    assert caplog.messages == [f"data: {photos / 'train'}, as recorded in {a.path}"]


def test_data_that_is_gone_is_named_with_the_artifact_that_records_it(
    make_artifact: Callable[..., Artifact], tmp_path: Path
) -> None:
    a = make_artifact(tmp_path / "a", inputs={"data": {"id": "data-1", "path": "/gone/photos"}})
    for flag, step in (("--data DIR", "Name the images: --data DIR"), ("", "Bring them back")):
        with pytest.raises(TokError) as caught:
            recorded_data(a, flag)
        assert (
            str(caught.value) == f"{a.path}: the data that it records is not on this machine. Got /gone/photos. {step}."
        )
    assert recorded_data(a, planned=True) == "/gone/photos"


def test_recorded_data_that_is_out_of_sight_is_not_on_this_machine(
    make_artifact: Callable[..., Artifact], tmp_path: Path, closed: str
) -> None:
    a = make_artifact(tmp_path / "a", inputs={"data": {"id": "data-1", "path": f"{closed}/train"}})
    with pytest.raises(TokError, match="the data that it records is not on this machine"):
        recorded_data(a)
    assert sibling(f"{closed}/train", "val") is None


def test_an_evaluation_says_whose_record_it_follows(
    make_artifact: Callable[..., Artifact], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a = make_artifact(tmp_path / "a", inputs={"data": {"id": "data-1", "path": "openmoji/train"}})
    with caplog.at_level(logging.INFO, "tok"):
        assert evaluate._held_out(a, Options()) == "openmoji/val"
    assert caplog.messages == [f"data: openmoji/val, beside openmoji/train, as recorded in {a.path}"]
    b = make_artifact(tmp_path / "b", inputs={"data": {"id": "data-1", "path": "/gone/photos/train"}})
    with pytest.raises(TokError) as caught:
        evaluate._held_out(b, Options())
    assert f"/gone/photos/train, as recorded in {b.path}, has no held-out part beside it" in str(caught.value)


def test_forged_records_hold_no_command(family: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    artifact = recording(copy(family["tokenizer"], tmp_path / "t"), "pipe:touch x")
    assert "not on this machine. Got pipe:touch x." in refusal(
        "tokenize", "--tokenizer", artifact, "--workspace", tmp_path
    )
