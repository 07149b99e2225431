"""Data that lies about itself: splits as classes, links to nothing, headers and tables with numbers that are none."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokcli.data.sources import open_source
from tokcli.errors import TokError


def draw(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(file)
    return file


def refused(spec: Path, labels: Path | None = None) -> str:
    with pytest.raises(TokError) as caught:
        open_source(str(spec), size=8, labels=labels)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_a_pipe_among_files_is_named_and_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    for spec in (tmp_path, tmp_path / name):
        assert "is a folder, a pipe or a device" in refused(spec)


@pytest.mark.parametrize("names", [("train",), ("test", "train"), ("train", "validation")])
def test_splits_are_never_taken_for_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        draw(tmp_path / name / "a.png")
    assert " or ".join(str(tmp_path / name) for name in names) in refused(tmp_path)


def test_a_link_to_nothing_is_a_problem_and_not_passed_over(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    assert open_source(str(tmp_path), size=8).problems == [("b.png", "a link to nothing, or a device")]


def test_an_image_with_two_classes_is_refused_with_the_line(tmp_path: Path) -> None:
    draw(tmp_path / "photos" / "a.png")
    (tmp_path / "labels.tsv").write_text("a.png\tcat\na.png\tdog\n")
    assert "labels.tsv:2: a.png has two classes. Got cat and dog" in refused(
        tmp_path / "photos", labels=tmp_path / "labels.tsv"
    )


def test_a_tar_header_with_a_number_that_is_none_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOK_CACHE", str(tmp_path / "cache"))
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("a.png")
        member.size = 512
        sparse = {"major": "1", "minor": "0", "name": "a.png", "realsize": "9"}
        member.pax_headers = {f"GNU.sparse.{key}": value for key, value in sparse.items()}
        tar.addfile(member, io.BytesIO(b"\x89PNG\r\n" + bytes(506)))
    assert "not a plain tar" in refused(tmp_path / "a.tar")


@pytest.mark.parametrize(("number", "name"), [(1, "a\0.jpg"), (1, ""), (1, "x" * 5000)])
def test_coco_names_that_are_no_file_are_problems(tmp_path: Path, number: Any, name: str) -> None:
    draw(tmp_path / "train2017" / "a.jpg")
    images = [{"id": number, "file_name": name}, {"id": 2, "file_name": "a.jpg"}]
    (tmp_path / "annotations").mkdir()
    table = tmp_path / "annotations" / "captions_train2017.json"
    table.write_text(json.dumps({"images": images, "annotations": []}))
    source = open_source(str(tmp_path / "train2017"), size=8)
    assert len(source) == 1 and [key for key, _ in source.problems] == [name]
    table.write_text('{"images": [{"id": 1e999, "file_name": "a.jpg"}], "annotations": []}')
    assert "not COCO's captions" in refused(tmp_path / "train2017")


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 4)])
def test_idx_files_without_pixels_are_refused(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    head = bytes([0, 0, 8, 3]) + np.array(shape, ">u4").tobytes()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(head)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(
        bytes([0, 0, 8, 1]) + np.array(shape[:1], ">u4").tobytes() + bytes(shape[0])
    )
    assert "holds no images" in refused(tmp_path / "train")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])  # SIGINT is ignored in background jobs
def test_a_signal_outside_of_any_loop_is_resumable_too(tmp_path: Path, number: int) -> None:
    code = (
        f"import os, sys, tokcli.cli as c, tokcli.cli.recipes as s; s.listing = lambda: os.kill(os.getpid(), {int(number)})\n"
        "sys.argv = ['tok', 'recipes']; c.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (75, "tok: interrupted. Repeat the command to go on.\n")
