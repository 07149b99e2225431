"""Artifacts: named by content, whole or marked as running, written by one process, on disks that fail."""

import json
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from tokcli.artifact import draft as drafts
from tokcli.artifact.draft import Draft, begin, write_manifest
from tokcli.artifact.manifest import BUILT, MANIFEST, SECTIONS, read_manifest
from tokcli.artifact.opening import Artifact, open_artifact, scan
from tokcli.artifact.weights import save_tensors
from tokcli.errors import TokError
from tokcli.files import atomic_write, write_text

RECIPE = {"stage": "tokenizer", "seed": 0, "optim": {"lr": 0.1, "clip": None}}
FORK = multiprocessing.get_context("fork")
Make = Callable[..., Artifact]


def start(path: Path, kind: str = "tokenizer", recipe: Any = None, inputs: Any = None) -> Draft | Artifact:
    return begin(path, kind, recipe or RECIPE, inputs or {}, {"command": ["tok", "train"]})


def in_child(work: Callable[[Connection], None]) -> tuple[Any, Connection]:
    """A process that runs `work`, and our end of its pipe."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=work, args=(theirs,), daemon=True)
    process.start()
    return process, ours


def kill(process: Any) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join()


# ids


def test_equal_content_has_an_equal_id_wherever_and_whenever_made(tmp_path: Path, make_artifact: Make) -> None:
    a = make_artifact(tmp_path / "a", log="one", seconds=1)
    b = make_artifact(tmp_path / "elsewhere" / "b", log="two", seconds=2)
    assert a.id == b.id
    assert re.fullmatch(r"tokenizer-[0-9a-f]{12}", a.id)


@pytest.mark.parametrize(
    "other",
    [
        {"weights": b"others"},
        {"facts": {"codebook_size": 9}},
        {"kind": "decoder"},
        {"inputs": {"data": {"id": "data-2", "path": "/a"}}},
        {"recipe": {"stage": "tokenizer", "seed": 0, "encoder": {"heads": 2}}},
    ],
)
def test_other_content_has_another_id(tmp_path: Path, make_artifact: Make, other: dict[str, Any]) -> None:
    same = {"inputs": {"data": {"id": "data-1", "path": "/a"}}}
    hexes = {make_artifact(tmp_path / name, **same | more).id.split("-")[1] for name, more in (("a", {}), ("b", other))}
    assert len(hexes) == 2


def test_id_forgets_what_of_the_recipe_nobody_builds_upon(tmp_path: Path, make_artifact: Make) -> None:
    recipe = {"stage": "samples", "seed": 0, "sample": {"temperature": 1.0, "batch_size": 8}, "train": {"workers": 0}}
    a = make_artifact(tmp_path / "a", recipe=recipe)
    b = make_artifact(
        tmp_path / "b",
        recipe=recipe | {"sample": {"temperature": 1.0, "batch_size": 2}, "train": {"workers": 4, "save_every": 3}},
    )
    assert a.id == b.id


HOW = {
    "stage",
    "seed",
    "data",
    "optim",
    "train",
    "expects",
    "perturb",
    "drawn",
    "learn_from_blank",
    "init_batches",
    "alignment",
}
JOBS = {"tokens", "eval", "viz"}  # what they ask for, payload and facts show


def test_every_section_of_a_recipe_is_part_of_the_id_or_only_says_how_weights_and_files_came_about() -> None:
    from tokcli.methods import METHODS, method_class, pixel_decoder
    from tokcli.recipe.sections import Recipe
    from tokcli.stages import evaluate, tokenize, train_proposal, viz_codebook

    models: list[type[Recipe]] = [method_class(name).recipe_model for name in METHODS]
    models += [pixel_decoder.DecoderRecipe, train_proposal.ProposalRecipe, tokenize.TokensRecipe]
    models += [evaluate.EvalRecipe, viz_codebook.VizRecipe]
    keys = {key for model in models for key in model.model_fields}
    assert keys - {*BUILT, *SECTIONS} == HOW | JOBS, "a new section: does a network depend on it when it is loaded?"


def test_id_forgets_the_paths_of_inputs_and_the_order_of_facts(tmp_path: Path, make_artifact: Make) -> None:
    facts = {"codebook_size": 8, "grid": [2, 2]}
    a = make_artifact(tmp_path / "a", facts=facts, inputs={"data": {"id": "data-1", "path": "/a"}})
    b = make_artifact(
        tmp_path / "b", facts=dict(reversed(facts.items())), inputs={"data": {"id": "data-1", "path": "/b"}}
    )
    assert a.id == b.id


def test_a_renamed_payload_file_changes_the_id(tmp_path: Path) -> None:
    ids = []
    for name in ("x.png", "y.png"):
        draft = start(tmp_path / name)
        assert isinstance(draft, Draft)
        (draft.path / name).write_bytes(b"same")
        ids.append(draft.finish({}, payload=[name]).id)
    assert ids[0] != ids[1]


# writing: whole or absent


def test_running_artifact_is_not_readable_and_says_how_to_go_on(tmp_path: Path) -> None:
    start(tmp_path / "a")
    with pytest.raises(TokError, match=r"--tokenizer .*a: is not complete yet. Repeat .*: tok train\."):
        open_artifact(tmp_path / "a", "--tokenizer")
    assert scan(tmp_path) == []


def test_artifact_is_running_until_its_manifest_is_replaced(
    tmp_path: Path, make_artifact: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(source: Path, target: Path) -> None:
        raise KeyboardInterrupt  # the last moment before the rename

    draft = start(tmp_path / "a")
    assert isinstance(draft, Draft)
    monkeypatch.setattr("tokcli.files.os.replace", die)
    with pytest.raises(KeyboardInterrupt):
        draft.finish({}, payload=[])
    assert json.loads((tmp_path / "a" / MANIFEST).read_text())["status"] == "running"
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [".lock", MANIFEST]


def test_manifest_is_old_or_new_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    def write_on(pipe: Connection) -> None:
        for number in range(1_000_000):
            manifest = {"schema": 1, "kind": "tokens", "status": "running", "inputs": {}, "provenance": {}}
            manifest["recipe"] = {"n": [number] * 2000}
            write_manifest(tmp_path, manifest)
            if number == 0:
                pipe.send("started")

    moments = random.Random(0)
    for _ in range(10):
        process, pipe = in_child(write_on)
        pipe.recv()
        time.sleep(moments.uniform(0, 0.03))
        kill(process)
        assert len(set(read_manifest(tmp_path, "a")["recipe"]["n"])) == 1


def test_repeating_a_begun_command_resumes_and_sweeps_up(tmp_path: Path) -> None:
    first = start(tmp_path / "a")
    assert isinstance(first, Draft) and not first.resumed
    first.close()
    (tmp_path / "a" / ".model.safetensors.x.tmp").write_bytes(b"half")
    (tmp_path / "a" / "state.pt").write_bytes(b"kept")
    second = start(tmp_path / "a")
    assert isinstance(second, Draft) and second.resumed
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [".lock", MANIFEST, "state.pt"]


def test_repeating_a_finished_command_finds_its_artifact(tmp_path: Path, make_artifact: Make) -> None:
    made = make_artifact(tmp_path / "a", recipe=RECIPE)
    before = (tmp_path / "a" / MANIFEST).stat().st_mtime_ns
    found = start(tmp_path / "a")
    assert isinstance(found, Artifact) and found.id == made.id
    assert (tmp_path / "a" / MANIFEST).stat().st_mtime_ns == before


def test_artifact_that_another_process_completed_meanwhile_is_found(
    tmp_path: Path, make_artifact: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_lock = drafts._take_lock

    def late(path: Path, wait: bool) -> Any:
        monkeypatch.setattr(drafts, "_take_lock", take_lock)
        make_artifact(path, recipe=RECIPE)
        return take_lock(path, wait)

    monkeypatch.setattr(drafts, "_take_lock", late)
    assert isinstance(start(tmp_path / "a"), Artifact)


def test_changed_recipe_or_inputs_are_refused_with_the_differing_keys(tmp_path: Path, make_artifact: Make) -> None:
    make_artifact(tmp_path / "a", recipe=RECIPE, inputs={"data": {"id": "data-1", "path": "x"}})
    changed = RECIPE | {"optim": {"lr": 0.2, "clip": None}, "steps": 3}
    with pytest.raises(TokError) as caught:
        start(tmp_path / "a", recipe=changed, inputs={"data": {"id": "data-2", "path": "x"}})
    got = "optim.lr: 0.1, not 0.2; steps: None, not 3; inputs.data: 'data-1', not 'data-2'"
    assert got in str(caught.value)
    assert "clip" not in str(caught.value) and "seed" not in str(caught.value)


def test_folder_of_another_kind_is_refused(tmp_path: Path, make_artifact: Make) -> None:
    make_artifact(tmp_path / "a", recipe=RECIPE)
    with pytest.raises(TokError, match="is not of kind decoder, which this command writes. Got tokenizer"):
        start(tmp_path / "a", kind="decoder")


def test_folder_of_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(TokError, match="is not empty and not an artifact"):
        start(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


# one writer


def hold(path: Path) -> Callable[[Connection], None]:
    def work(pipe: Connection) -> None:
        draft = start(path)
        pipe.send(type(draft).__name__)
        time.sleep(60)

    return work


def test_second_writer_is_refused_naming_the_first_until_that_is_killed(tmp_path: Path) -> None:
    process, pipe = in_child(hold(tmp_path / "a"))
    assert pipe.recv() == "Draft"
    with pytest.raises(TokError, match=rf"is being written by process {process.pid} on "):
        start(tmp_path / "a")
    kill(process)
    again = start(tmp_path / "a")
    assert isinstance(again, Draft) and again.resumed


def test_lock_is_free_after_finish_and_after_a_refusal(tmp_path: Path) -> None:
    draft = start(tmp_path / "a")  # kept alive, so that only finish can release it
    assert isinstance(draft, Draft)
    draft.finish({}, payload=[])
    for _ in range(2):
        with pytest.raises(TokError, match="another recipe"):
            start(tmp_path / "a", recipe={"stage": "other"})
    assert isinstance(start(tmp_path / "a"), Artifact)


def test_bulk_writers_share_a_folder(tmp_path: Path) -> None:
    drafts = [begin(tmp_path / "a", "tokens", RECIPE, {}, {}, exclusive=False) for _ in range(2)]
    assert all(isinstance(draft, Draft) for draft in drafts)
    assert [file.name for file in (tmp_path / "a").iterdir()] == [MANIFEST]


def test_of_bulk_writers_of_two_recipes_that_begin_at_once_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, ends = drafts.write_manifest, list[Any]()

    def other() -> None:
        try:
            ends.append(begin(tmp_path / "a", "tokens", {"stage": "tokens", "seed": 1}, {}, {}, exclusive=False))
        except TokError as error:
            ends.append(error)

    def late(*arguments: Any) -> Any:
        if not ends:
            monkeypatch.setattr(drafts, "write_manifest", write)
            second.start()
            second.join(0.3)  # it has seen that there is no manifest
        return write(*arguments)

    second = threading.Thread(target=other)
    monkeypatch.setattr(drafts, "write_manifest", late)
    begin(tmp_path / "a", "tokens", {"stage": "tokens", "seed": 0}, {}, {}, exclusive=False)
    second.join()
    assert "seed: 0, not 1" in str(ends[0])


# disks


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "a") as tmp:
        tmp.write_text("half")
        1 / 0  # noqa: B018
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]


def full_disk(path: Path, write: Callable[[Path], None]) -> str:
    """What a process says that may write no more than 4 KiB a file."""

    def work(pipe: Connection) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            write(path)
            pipe.send("nothing was wrong")
        except TokError as error:
            pipe.send(str(error))
        except BaseException as error:
            pipe.send(repr(error))

    process, pipe = in_child(work)
    assert pipe.poll(30), "no answer"
    process.join()
    return str(pipe.recv())


def too_much_text(path: Path) -> None:
    write_text(path, "x" * 10_000)


def too_many_weights(path: Path) -> None:
    import torch

    save_tensors(path, {"w": torch.zeros(10_000)})


@pytest.mark.parametrize("write", [too_much_text, too_many_weights])
def test_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "a").write_text("old")
    assert full_disk(tmp_path / "a", write) == (
        f"{tmp_path / 'a'}: the disk is full. Free some space and repeat the command: it resumes."
    )
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]


def test_full_disk_while_finishing_keeps_the_draft(tmp_path: Path) -> None:
    def finish(path: Path) -> None:
        draft = start(path)
        assert isinstance(draft, Draft)
        (path / "log.jsonl").write_text("kept")
        draft.finish({"much": "x" * 10_000}, payload=["log.jsonl"])

    assert "manifest.json: the disk is full" in full_disk(tmp_path / "a", finish)
    draft = start(tmp_path / "a")
    assert isinstance(draft, Draft) and draft.resumed
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [".lock", "log.jsonl", MANIFEST]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/sys is Linux's")
def test_place_where_nobody_may_write_is_one_line() -> None:
    with pytest.raises(TokError, match=r"^/sys/tok: cannot (write here|be written)"):
        start(Path("/sys/tok"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder_is_one_line_and_still_readable(tmp_path: Path, make_artifact: Make) -> None:
    (tmp_path / "empty").mkdir(mode=0o500)
    with pytest.raises(TokError, match="empty.*: cannot write here"):
        start(tmp_path / "empty")
    made = make_artifact(tmp_path / "a", recipe=RECIPE)
    made.path.chmod(0o500)
    assert isinstance(start(made.path), Artifact)


def test_file_in_place_of_the_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(TokError, match="a: cannot be written"):
        start(tmp_path / "a")
