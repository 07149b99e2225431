"""What is left out is bounded when it is met, kept in the facts, and said in one line; raising the bound makes no other artifact."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tokcli import loading
from tokcli.artifact.draft import begin, removed_if_refused
from tokcli.artifact.opening import open_artifact
from tokcli.cli import cli
from tokcli.data.sources import open_source
from tokcli.data.sources.summary import MOST_NAMED, kinds, one_line, say_problems
from tokcli.errors import TokError


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments), "--threads", "1"])


def draw(root: Path, *names: str, size: tuple[int, int] = (64, 64)) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(root / name)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("left")
    draw(root / "photos", "a/1.png", "b/2.png")
    done = run("train-tokenizer", "--recipe", "toy/tokenizer-vqgan", "--data", root / "photos", "--workspace", root,
               "--set", "train.steps=1")  # fmt: skip
    return Path(done.stdout.strip())


def tokenize(tokenizer: Path, data: Path, *more: Any) -> Result:
    flags = ["--recipe", "toy/tokens", "--tokenizer", tokenizer, "--data", data, "--set", "tokens.shard_size=2"]
    return run("tokenize", *flags, *more)


def test_too_many_bad_images_stop_the_work_where_they_are_met(tokenizer: Path, tmp_path: Path) -> None:
    draw(tmp_path / "d", *(f"{i}.png" for i in range(10)))
    for i in (2, 3):
        (tmp_path / "d" / f"{i}.png").write_text("no image")
    stopped = tokenize(tokenizer, tmp_path / "d", "--out", tmp_path / "k")
    assert "2 of 10 images could not be read" in str(stopped.exception)
    assert sorted(p.name for p in (tmp_path / "k").glob("indices-*")) == ["indices-00000.npy", "indices-00001.npy"]


def test_a_raised_bound_goes_on_with_the_same_artifact(tokenizer: Path, tmp_path: Path) -> None:
    draw(tmp_path / "d", *(f"{i}.png" for i in range(4)))
    for i in (0, 1):
        (tmp_path / "d" / f"{i}.png").write_text("no image")
    flags = ["--workspace", tmp_path]
    assert tokenize(tokenizer, tmp_path / "d", *flags).exit_code == 1
    first = tmp_path.glob("tokens-*")
    written = {p: p.stat().st_mtime_ns for folder in first for p in folder.glob("indices-*")}
    made = Path(tokenize(tokenizer, tmp_path / "d", *flags, "--set", "tokens.max_bad=0.5").stdout.strip())
    assert len(written) == 1 and all(p.parent == made and p.stat().st_mtime_ns == then for p, then in written.items())
    assert open_artifact(made).recipe["tokens"]["max_bad"] == 0.5  # what is stored repeats the run
    again = tokenize(tokenizer, tmp_path / "d", *flags, "--set", "tokens.max_bad=0.9")
    assert Path(again.stdout.strip()) == made
    assert open_artifact(made).facts["left_out"] == {"unreadable": 2} and open_artifact(made).facts["rows"] == 2


def test_what_was_missing_while_listing_stops_before_any_work_and_is_a_fact(tokenizer: Path, tmp_path: Path) -> None:
    draw(tmp_path / "d", "1.png", "2.png")
    (tmp_path / "d" / "3.heic").touch()
    (tmp_path / "d" / "4.heic").touch()
    stopped = tokenize(tokenizer, tmp_path / "d", "--out", tmp_path / "k")
    assert "2 of 4 images" in str(stopped.exception) and not list((tmp_path / "k").glob("indices-*"))
    made = tokenize(tokenizer, tmp_path / "d", "--out", tmp_path / "k", "--set", "tokens.max_bad=0.5")
    assert open_artifact(Path(made.stdout.strip())).facts["left_out"] == {"images of type .heic are not read": 2}


def test_clean_data_has_no_such_fact(tokenizer: Path, tmp_path: Path) -> None:
    draw(tmp_path / "d", "1.png")
    made = tokenize(tokenizer, tmp_path / "d", "--out", tmp_path / "k")
    assert "left_out" not in open_artifact(Path(made.stdout.strip())).facts


def test_the_first_problems_are_named_and_the_others_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(tmp_path, "1.png")
    for i in range(MOST_NAMED + 30):
        (tmp_path / f"{i:03d}.heic").touch()
    source = open_source(str(tmp_path), size=8)
    say_problems(source)
    assert caplog.text.count("left out: ") == MOST_NAMED and "30 (images of type .heic are not read)" in caplog.text
    assert kinds(source.problems) == {"images of type .heic are not read": 50}


def test_one_line_says_what_a_source_found(tmp_path: Path) -> None:
    draw(tmp_path, "a/1.png", "a/2.png", "b/1.png", size=(8, 4))
    draw(tmp_path, "b/0.png", size=(2, 2))
    draw(tmp_path, "b/3.png", size=(16, 8))
    (tmp_path / "a" / "1.txt").write_text("a caption")
    (tmp_path / "a" / "x.heic").touch()
    assert one_line(open_source(str(tmp_path), size=8)) == (
        f"{tmp_path}: 5 images; 2 classes of 2 to 3 images; 20% have captions; 2x2 to 16x8, median 8x4; "
        "left out or incomplete: 1 (images of type .heic are not read)"
    )


def test_one_line_says_that_numbers_are_missing_and_images_unlabelled(tmp_path: Path) -> None:
    draw(tmp_path / "d", "1.png", "2.png", "3.png")
    (tmp_path / "labels").write_text("1.png 1\n2.png 5\n3.png -1\n")
    said = one_line(open_source(str(tmp_path / "d"), size=8, labels=tmp_path / "labels"))
    assert (
        "2 classes of 1 to 1 images, 4 numbers between without images, 1 images without class; no captions; all 64x64"
        in said
    )


def test_lines_of_tables_that_name_no_image_count_like_images(tokenizer: Path, tmp_path: Path) -> None:
    draw(tmp_path / "d", "1.png", "2.png")
    (tmp_path / "d" / "captions.jsonl").write_text(
        "".join(f'{{"key": "other/{i}.png", "captions": ["x"]}}\n' for i in (1, 2))
    )
    (tmp_path / "d" / "alone.txt").write_text("no image, and no line of a table")
    stopped = tokenize(tokenizer, tmp_path / "d", "--out", tmp_path / "k")
    assert "2 of 4 images could not be read or are incomplete, more than tokens.max_bad. Got 0.01; " in str(
        stopped.exception
    )
    assert "left out: 2 (in captions.jsonl, but no such image)" in str(stopped.exception)


@pytest.mark.parametrize("bad", ["listed", "unreadable"])
def test_data_refused_before_the_first_step_leave_no_folder(tokenizer: Path, tmp_path: Path, bad: str) -> None:
    draw(tmp_path / "d", "1.png")
    for i in range(3):
        (tmp_path / "d" / f"x{i}.{'heic' if bad == 'listed' else 'png'}").write_text("no image")
    flags = ["--data", tmp_path / "d", "--workspace", tmp_path / "ws", "--set", "train.batch_size=4"]
    refused = run("train-tokenizer", "--recipe", "toy/tokenizer-vqgan", *flags)
    assert refused.exit_code == 1 and "max_bad" in str(refused.exception) and not list((tmp_path / "ws").iterdir())
    if bad == "listed":
        assert tokenize(tokenizer, tmp_path / "d", "--workspace", tmp_path / "ws").exit_code == 1
        assert not list((tmp_path / "ws").iterdir())


COMMANDS = {
    "train-tokenizer": ["--recipe", "toy/tokenizer-vqgan"],
    "train-decoder": ["--recipe", "toy/decoder-conv", "--tokenizer", "TOKENIZER"],
    "tokenize": ["--recipe", "toy/tokens", "--tokenizer", "TOKENIZER"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dry_run_refuses_what_the_run_would(tokenizer: Path, tmp_path: Path, command: str) -> None:
    draw(tmp_path / "train", "1.png", "2.png")
    flags = [tokenizer if flag == "TOKENIZER" else flag for flag in COMMANDS[command]]
    dry = lambda: run(command, *flags, "--data", tmp_path / "train", "--dry-run", "--json")  # noqa: E731
    assert dry().exit_code == 0
    for i in range(3):
        (tmp_path / "train" / f"{i}.heic").touch()
    assert "3 of 5 images could not be read or are incomplete, more than" in str(dry().exception)
    if command.startswith("train"):
        for i in range(3):
            (tmp_path / "train" / f"{i}.heic").unlink()
        (tmp_path / "val").mkdir()
        assert f"{tmp_path}/val: no images found" in str(dry().exception)


@pytest.mark.parametrize("made", ["", "state.pt", "log.jsonl"])
def test_a_folder_with_work_in_it_stays_when_the_command_is_refused(tmp_path: Path, made: str) -> None:
    with pytest.raises(TokError), removed_if_refused():
        begun = begin(tmp_path / "t", "tokenizer", {"seed": 0}, {}, {})
        (begun.path / "log.jsonl").write_text("")
        if made:
            (begun.path / made).write_text("work")
        raise TokError("data", "is refused", next="Mend it")
    assert (tmp_path / "t").exists() == bool(made)


def test_a_report_says_what_its_held_out_images_lack_and_reads_a_tokenizer_once(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loaded = loading.load_tokenizer, list[Any]()
    monkeypatch.setattr(loading, "load_tokenizer", lambda a, device: loaded.append(a.id) or load(a, device))
    draw(tmp_path / "val", *(f"{i}.png" for i in range(6)))
    (tmp_path / "val" / "7.png").write_text("no image")
    (tmp_path / "val" / "8.heic").touch()
    flags = ["--recipe", "toy/eval", "--data", tmp_path / "val", "--workspace", tmp_path]
    done = run("eval", tokenizer, *flags)
    assert done.exit_code == 0, (done.output, done.exception)
    left_out = open_artifact(Path(done.stdout.strip())).facts["left_out"]
    assert left_out == {"images of type .heic are not read": 1, "unreadable": 1}
    assert len(loaded) == 1  # its own decoder is part of it
