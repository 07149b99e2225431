"""What the files of a foreign artifact claim is weighed before it is believed, however well its manifest fits. Limits are lowered here."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_data_parquet import png
from test_foreign import samples, tokens

from tokcli import limits
from tokcli.artifact.draft import Draft, begin
from tokcli.artifact.opening import Artifact, open_artifact
from tokcli.data import decode, sample_store, token_store
from tokcli.data.shard_writer import CLASSES
from tokcli.data.sources import open_source
from tokcli.data.token_store import TokenStore
from tokcli.errors import TokError
from tokcli.handles.stored import ReportHandle
from tokcli.measure.previews import read_samples
from tokcli.pretrained import text
from tokcli.training.finite import EVIDENCE, show_evidence


def test_lines_of_keys_and_captions_end_somewhere_and_are_as_many_as_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tokens(tmp_path / "k").path
    assert TokenStore(folder).keys == ["a", "b"] * 2
    (folder / "keys.txt").write_text("a\n" * 1000)
    with pytest.raises(
        TokError, match="keys.txt: not one line for each of 4 rows. Got 5"
    ):  # and no further line is read
        _ = TokenStore(folder).keys
    monkeypatch.setattr(token_store, "LINE", 30)
    for name, read in (("keys.txt", "keys"), ("captions.jsonl", "captions")):
        (folder / name).write_text('{"captions": ["' + "a" * 100)
        with pytest.raises(TokError, match=f"{name}: has a line of 30 bytes or more"):
            getattr(TokenStore(folder), read)


@pytest.mark.parametrize("line", ['{"captions": [[]]}', '{"captions": "a"}', "[]", '{"captions": [1]}', "{", "3"])
def test_captions_of_tokens_are_lists_of_texts(tmp_path: Path, line: str) -> None:
    folder = tokens(tmp_path / "k").path
    (folder / "captions.jsonl").write_text(f"{line}\n" * 4)
    with pytest.raises(TokError, match="captions.jsonl: is damaged"):
        _ = TokenStore(folder).captions


def test_a_list_of_hashes_is_read_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = begin(tmp_path / "s", "samples", {"stage": "samples"}, {}, {})
    assert isinstance(draft, Draft)
    (draft.path / "images.sha256").write_bytes(bytes(5000))
    made = draft.finish({"name": "x", "number": 4, "per_file": 2}, payload=["images.sha256"])
    monkeypatch.setattr(limits, "MOST_LINE", 4000)
    with pytest.raises(TokError, match="is a line of more than 4,000 characters"):
        made.listed("images.sha256")


def test_a_sample_that_is_larger_than_any_image_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = samples(tmp_path / "s", "png")
    monkeypatch.setattr(decode, "SMALL", 10)
    monkeypatch.setattr(sample_store, "check_bytes", lambda size, key: decode.check_bytes(size, key, 1))
    with pytest.raises(TokError, match="000000.png: is missing or damaged.*bytes is more than 4 for each of 1 pixels"):
        read_samples(open_artifact(made.path), [0])


@pytest.mark.parametrize("held", ["[" + "[]," * 1000 + "[]]", "{", "[" * 5000])
def test_numbers_of_a_report_are_weighed(
    tmp_path: Path, make_artifact: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    draft = begin(tmp_path / "r", "report", {"stage": "eval", "seed": 0}, {}, {"command": ["tok"]})
    assert isinstance(draft, Draft)
    (draft.path / "metrics.json").write_text(held)
    made = draft.finish({"name": "x", "protocol": {}}, payload=["metrics.json"])
    monkeypatch.setattr(limits.read_json, "__defaults__", (10_000,))
    with pytest.raises(TokError, match="metrics.json: is damaged"):
        _ = ReportHandle(made, torch.device("cpu")).metrics


def test_evidence_that_claims_too_much_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts: dict[str, Any] = {"step": 3, "dropout_seeds": [1], "samples": [[2]], "gradient_norms": {"w": 1.0}}
    (tmp_path / EVIDENCE).write_text(json.dumps(facts))
    assert "not finite: the loss or a gradient of step 3" in show_evidence(tmp_path)
    monkeypatch.setattr(limits.read_json, "__defaults__", (100,))
    assert show_evidence(tmp_path) == []


def test_evidence_is_lines_of_text_whatever_it_names_and_a_pipe_is_none(tmp_path: Path) -> None:
    facts = {"step": 3, "dropout_seeds": [1], "samples": [[2]], "gradient_norms": {"w\nforged\r\x1b[A": 1.0}}
    (tmp_path / EVIDENCE).write_text(json.dumps(facts))
    assert all(line.isprintable() for line in show_evidence(tmp_path))
    (tmp_path / EVIDENCE).unlink()
    os.mkfifo(tmp_path / EVIDENCE)
    assert show_evidence(tmp_path) == []


def test_a_list_of_classes_that_would_take_much_memory_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in ((CLASSES, b"[" + b"[]," * 1000 + b"[]]"), ("1.png", png())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    monkeypatch.setattr(limits.parse_json, "__defaults__", (10_000,))
    source = open_source(str(tmp_path / "a.tar"), size=8)
    assert ("a.tar/.classes.json", "is not a list of classes, or too long") in source.problems


@pytest.mark.parametrize("held", [b"{", b'{"version": [' + b"[]," * 2000 + b"[]]}", b"\0" * 100])
def test_word_pieces_that_are_none_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bytes) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_bytes(held)
    monkeypatch.setattr(text, "MOST_WORDS", 5000)
    with pytest.raises(TokError, match=r"text minilm: .*tokenizer.json holds no word pieces") as caught:
        text._word_pieces(tmp_path / "tokenizer.json", "text minilm")
    assert "\n" not in str(caught.value)
