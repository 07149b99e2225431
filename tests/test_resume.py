"""Real commands that are interrupted or killed and repeated: the same weights, bit for bit, and nothing unreadable."""

import contextlib
import fcntl
import gc
import io
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_faults import logged

from tokcli import build as build_module
from tokcli import loading
from tokcli.artifact import draft as drafts
from tokcli.artifact.draft import Draft
from tokcli.artifact.manifest import read_manifest
from tokcli.artifact.opening import open_artifact, scan
from tokcli.artifact.weights import load_tensors, read_checkpoint, save_tensors
from tokcli.cli import cli
from tokcli.errors import Interrupted, TokError
from tokcli.files import locked
from tokcli.training.state import STATE, save_state
from tokcli.training.updater import Updater

STEPS = 5  # of 8 images out of 20: two epochs end inside a step


class Killed(BaseException):
    """Ends a command as kill -9 does: nothing more is saved."""


STOPS: dict[str, type[BaseException]] = {"SIGTERM": Interrupted, "killed": Killed}


def tok(*arguments: object) -> Path:
    """The path that a command prints; its exceptions are left to the caller."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # paths are printed as bytes
    with contextlib.redirect_stdout(out):
        cli.main([str(a) for a in (*arguments, "--threads", 1)], prog_name="tok", standalone_mode=False)
    out.flush()
    return Path(out.buffer.getvalue().decode().strip())  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def commands(root: Path) -> dict[str, list[object]]:
    """Each training command; what it reads is there."""
    for number in range(20):
        file = root / "photos" / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((70, 64)).save(file)
    steps = ["--set", f"train.steps={STEPS}"]
    data = ["--data", root / "photos"]
    tokenizer = ["train-tokenizer", "--recipe", "toy/tokenizer-vqkd", *data, *steps]
    made = tok(*tokenizer, "--out", root / "straight" / "tokenizer")
    tokens = tok("tokenize", "--recipe", "toy/tokens", "--tokenizer", made, "--out", root / "tokens")
    proposal = ["train-proposal", "--tokens", tokens, *steps]
    drawer = tok(*proposal, "--recipe", "toy/proposal-ar", "--out", root / "drawer")
    decoder = ["train-decoder", "--recipe", "toy/decoder-conv", "--tokenizer", made, *steps]
    return {
        "tokenizer": tokenizer,
        "tokenizer-vqgan": ["train-tokenizer", "--recipe", "toy/tokenizer-vqgan", *data, *steps],
        "tokenizer-cluster": ["train-tokenizer", "--recipe", "toy/tokenizer-cluster", *data, *steps],
        "decoder": decoder,
        "decoder-drawn": [*decoder, "--set", "drawn={share: 0.5, end_share: 0.9}", "--proposal", drawer],
        "proposal-ar": [*proposal, "--mode", "ar", "--recipe", "toy/proposal-ar"],
        "proposal-nar": [*proposal, "--mode", "nar", "--recipe", "toy/proposal-nar"],
        "proposal-rar": [
            *proposal,
            "--recipe",
            "toy/proposal-ar",
            "--set",
            "proposal.random_order=[0.1, 0.9]",
            "--set",
            "proposal.checkpointing=true",
            "--set",
            "proposal.attention_dropout=0.1",
        ],
    }


def straight(commands: dict[str, list[object]], name: str, root: Path) -> Path:
    """The artifact of a command that was left alone; made once."""
    return tok(*commands[name], "--out", root / "straight" / name)


def stop_in_step(monkeypatch: pytest.MonkeyPatch, wanted: int, how: str) -> None:
    apply = Updater.apply

    def stopping(self: Updater, step: int) -> None:
        apply(self, step)
        if step + 1 == wanted:
            if how == "killed":
                raise Killed  # in the middle of a step
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Updater, "apply", stopping)


def stopped(command: list[object], wanted: int, how: str) -> None:
    """Run a command that is stopped in a step."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_in_step(monkeypatch, wanted, how)
        with pytest.raises(STOPS[how]):
            tok(*command)
    gc.collect()  # a dead process holds no lock; here the draft's goes with the last frame


def history(path: Path) -> list[dict[str, Any]]:
    """The log, without what differs between any two runs."""
    lines = logged(path)
    return [{key: value for key, value in line.items() if not key.endswith("_per_second")} for line in lines]


def assert_equal(a: Path, b: Path) -> None:
    left, right = open_artifact(a), open_artifact(b)
    name = "model.safetensors"
    assert left.manifest["files"][name]["sha256"] == right.manifest["files"][name]["sha256"]
    assert left.id == right.id and left.file(name).exists()
    assert history(a) == history(b)


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer",
        "tokenizer-vqgan",
        "tokenizer-cluster",
        "decoder",
        "decoder-drawn",
        "proposal-ar",
        "proposal-nar",
        "proposal-rar",
    ],
)
def test_an_interrupted_command_that_is_repeated_ends_as_if_it_had_not_been(
    commands: dict[str, list[object]], root: Path, tmp_path: Path, name: str
) -> None:
    undisturbed = straight(commands, name, root)
    again = [*commands[name], "--out", tmp_path / "again"]
    stopped(again, 4, "killed")  # the toy recipes save every 2 steps
    assert read_checkpoint(tmp_path / "again" / STATE)["step"] == 2
    stopped(again, 3, "SIGTERM")
    assert read_checkpoint(tmp_path / "again" / STATE)["step"] == 3
    with pytest.raises(TokError, match="not complete yet"):
        open_artifact(tmp_path / "again")
    assert tok(*again) == tmp_path / "again"
    assert [line["step"] for line in history(undisturbed)] == list(range(1, STEPS + 1))
    assert_equal(undisturbed, tmp_path / "again")
    assert not (tmp_path / "again" / STATE).exists()


def test_weights_depend_on_when_training_ends(commands: dict[str, list[object]], root: Path, tmp_path: Path) -> None:
    full = straight(commands, "proposal-nar", root)
    short = tok(*commands["proposal-nar"], "--out", tmp_path / "short", "--set", f"train.steps={STEPS - 1}")
    assert open_artifact(full).id != open_artifact(short).id  # or the equalities above would say nothing


def test_a_command_killed_while_it_completes_its_artifact_can_be_repeated(
    commands: dict[str, list[object]], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = [*commands["proposal-ar"], "--out", tmp_path / "again"]
    with monkeypatch.context() as patch:
        patch.setattr(Draft, "finish", lambda *_, **__: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            tok(*again)
    gc.collect()
    assert scan(tmp_path) == []  # readers do not see it
    assert_equal(straight(commands, "proposal-ar", root), tok(*again))


@contextlib.contextmanager
def process(command: list[object], stderr: Any = subprocess.PIPE) -> Iterator["subprocess.Popen[str]"]:
    """A real process, which does not outlive the test."""
    run = subprocess.Popen(
        [sys.executable, "-m", "tokcli", *map(str, command), "--threads", "1"], env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=stderr, text=True,
    )  # fmt: skip
    try:
        yield run
    finally:
        run.kill()
        run.communicate()


LONGER = ["--set", "train.steps=120", "--set", "train.save_every=7"]


@pytest.fixture(scope="module")
def longer(commands: dict[str, list[object]], root: Path) -> Path:
    return tok(*commands["proposal-nar"], *LONGER, "--out", root / "straight" / "longer")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGKILL, -9)])
def test_a_process_that_got_a_signal_and_is_repeated_ends_as_if_it_had_not(
    commands: dict[str, list[object]], longer: Path, tmp_path: Path, number: int, code: int
) -> None:
    again = [*commands["proposal-nar"], *LONGER, "--out", tmp_path / "again"]
    with process(again) as run:
        while not (tmp_path / "again" / STATE).exists() and run.poll() is None:
            time.sleep(0.005)
        run.send_signal(number)
        out, err = run.communicate()
    assert (run.returncode, out) == (code, ""), err
    done = read_checkpoint(tmp_path / "again" / STATE)["step"]
    assert 7 <= done < 120
    if number == signal.SIGTERM:
        assert err.splitlines()[-1] == (
            f"{tmp_path / 'again'}: interrupted after step {done} of 120, state saved. Repeat the command to go on."
        )
    assert_equal(longer, tok(*again))


def test_a_training_whose_session_is_closed_saves_and_goes_on_later(
    commands: dict[str, list[object]], longer: Path, tmp_path: Path
) -> None:
    again = [*commands["proposal-nar"], *LONGER, "--out", tmp_path / "again"]
    with process(again) as run:
        while not (tmp_path / "again" / STATE).exists() and run.poll() is None:
            time.sleep(0.005)
        assert run.stderr is not None
        run.stderr.close()  # whatever is printed from here on fails
        run.send_signal(signal.SIGHUP)
        assert run.wait(60) == 75
    assert 7 <= read_checkpoint(tmp_path / "again" / STATE)["step"] < 120
    assert_equal(longer, tok(*again))


@pytest.mark.slow
def test_a_training_whose_stderr_is_full_ends_as_any_other(
    commands: dict[str, list[object]], longer: Path, tmp_path: Path
) -> None:
    again = [*commands["proposal-nar"], *LONGER, "--out", tmp_path / "again"]
    with open("/dev/full", "w") as full, process(again, stderr=full) as run:
        assert run.wait(120) == 0
    assert_equal(longer, tmp_path / "again")


@pytest.fixture(scope="module")
def bulk(commands: dict[str, list[object]], root: Path) -> dict[str, list[object]]:
    """Commands that write shard by shard, in many shards."""
    networks = [
        "--proposal",
        straight(commands, "proposal-nar", root),
        "--decoder",
        straight(commands, "decoder", root),
    ]
    small = ["--set", "sample.batch_size=2", "--set", "sample.shard_size=2", "-n", "24"]
    return {
        "tokens": [
            "tokenize", "--recipe", "toy/tokens", "--tokenizer", root / "straight" / "tokenizer", "--set", "tokens.shard_size=1"
        ],
        "samples": ["sample", "--recipe", "toy/sample-nar", *networks, *small],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["tokens", "samples"])
def test_a_bulk_command_that_was_killed_and_is_repeated_keeps_its_shards_and_ends_as_if_it_had_not(
    bulk: dict[str, list[object]], tmp_path: Path, name: str
) -> None:
    undisturbed = open_artifact(tok(*bulk[name], "--out", tmp_path / "straight"))
    again, units = tmp_path / "again", {"tokens": "indices-*.npy", "samples": ".parts/indices-*.npy"}[name]
    with process([*bulk[name], "--out", again]) as run:
        while not list(again.glob(units)) and run.poll() is None:
            time.sleep(0.002)
        run.kill()
        run.communicate()
    assert run.returncode == -signal.SIGKILL
    done = list(again.glob(units))
    if name == "samples":  # batches of two images, of which the pictures stay
        numbers = [2 * int(path.stem.split("-")[1]) + i for path in done for i in (0, 1)]
        assert 0 < len(numbers) < 24
        done = [again / "images" / f"{number:06d}.png" for number in numbers]
    else:
        assert 0 < len(done) < len(list((tmp_path / "straight").glob(units)))
    kept = {path: path.stat().st_mtime_ns for path in done}
    assert scan(tmp_path) == [undisturbed]  # readers do not see what is not whole
    repeated = open_artifact(tok(*bulk[name], "--out", again))
    assert repeated.id == undisturbed.id
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # nothing was made twice
    assert not list(again.glob(".parts"))
    assert not list(again.glob("**/.*.tmp"))
    assert not list(again.glob(".*.lock"))


def test_a_lock_goes_with_its_file(tmp_path: Path) -> None:
    with locked(tmp_path, remove=True) as first:
        with locked(tmp_path, remove=True) as second:
            assert (first, second) == (True, False)
        waiting = open(tmp_path / ".lock", "a+")  # by one who comes too late to see that the file is removed
    assert not list(tmp_path.iterdir())
    with waiting:
        fcntl.flock(waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with locked(tmp_path, remove=True) as third:  # the removed file is locked, which keeps nobody from the new one
            assert third


def test_a_lock_of_a_removed_file_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = fcntl.flock

    def late(file: Any, how: int) -> None:
        (tmp_path / ".lock").unlink()  # its holder ends between opening and locking
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path, remove=True) as got:
        assert not got


class Counter:
    """50,000 numbers, all equal to the number of the save: a torn file shows."""

    def __init__(self) -> None:
        self.number = 0

    def state_dict(self) -> dict[str, Any]:
        return {"weights": torch.full((50_000,), float(self.number))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number = int(state["weights"][0])


def save_forever(folder: Path) -> None:
    torch.set_num_threads(1)  # the pool of threads does not survive a fork
    part = Counter()
    part.load_state_dict(read_checkpoint(folder / STATE)["part"])
    while True:
        part.number += 1
        save_state(folder, part.number, 0.0, {"part": part})
        save_tensors(folder / "model.safetensors", part.state_dict())
        manifest = read_manifest(folder, "")
        drafts.write_manifest(folder, manifest | {"provenance": {"saved": part.number}})


def saved_numbers(folder: Path) -> list[int]:
    """What the files hold, each read whole."""
    state = read_checkpoint(folder / STATE)
    tensors = [state["part"]["weights"], load_tensors(folder / "model.safetensors")["weights"]]
    assert all(t.unique().numel() == 1 and len(t) == 50_000 for t in tensors)
    manifest = read_manifest(folder, "")
    return [state["step"], *(int(t[0]) for t in tensors), manifest["provenance"]["saved"]]


def test_twenty_kills_at_random_moments_of_saving_leave_nothing_unreadable(tmp_path: Path) -> None:
    folder, moments = tmp_path / "run", random.Random(0)
    recipe, facts = {"stage": "proposal"}, {"saved": 0}
    draft = drafts.begin(folder, "proposal", recipe, {}, facts)
    save_state(folder, 0, 0.0, {"part": Counter()})
    save_tensors(folder / "model.safetensors", Counter().state_dict())
    assert isinstance(draft, Draft)
    draft.close()
    kills_in_a_save = 0
    for _ in range(20):
        before = read_checkpoint(folder / STATE)["step"]
        run = multiprocessing.get_context("fork").Process(target=save_forever, args=(folder,), daemon=True)
        run.start()
        while read_checkpoint(folder / STATE)["step"] < before + 2:
            assert run.is_alive()
        time.sleep(moments.uniform(0, 0.03))
        run.kill()
        run.join()
        numbers = saved_numbers(folder)
        assert max(numbers) - min(numbers) <= 1 and min(numbers) > before
        kills_in_a_save += any(folder.glob(".*.tmp"))
        resumed = drafts.begin(folder, "proposal", recipe, {}, facts)
        assert isinstance(resumed, Draft) and resumed.resumed
        resumed.close()
        assert not list(folder.glob("*.tmp")) and not list(folder.glob(".*.tmp"))  # what a kill left is cleared away
    assert kills_in_a_save >= 5  # the moments were well chosen


def test_what_a_decoder_is_trained_on_does_not_move(
    commands: dict[str, list[object]], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = yaml.safe_load((Path(__file__).parent.parent / "recipes" / "toy" / "decoder-conv.yaml").read_text())
    recipe["gan"] = {
        "discriminator": {"name": "features", "network": "efflite0", "layers": ["blocks.1"], "width": 8},
        "optim": {"lr": 1e-3, "weight_decay": 0.0},
        "weight": 0.5,
    }
    (tmp_path / "decoder.yaml").write_text(yaml.safe_dump(recipe))
    frozen: list[tuple[torch.nn.Module, dict[str, torch.Tensor]]] = []
    trained: list[tuple[torch.nn.Module, dict[str, torch.Tensor]]] = []

    def keep(module: torch.nn.Module, among: list[tuple[torch.nn.Module, dict[str, torch.Tensor]]]) -> None:
        # with buffers: running statistics and counts of codes must stand still too
        among.append((module, {name: t.detach().clone() for name, t in module.state_dict().items()}))

    def kept(function: Any, modules: Any, among: list[Any]) -> Any:
        def build(*args: Any, **keys: Any) -> Any:
            made = function(*args, **keys)
            for module in modules(made):
                keep(module, among)
            return made

        return build

    monkeypatch.setattr(loading, "load_tokenizer", kept(loading.load_tokenizer, lambda t: [t], frozen))
    monkeypatch.setattr(
        build_module, "build_losses", kept(build_module.build_losses, lambda ls: [ls[1][2].network], frozen)
    )
    monkeypatch.setattr(
        build_module, "build_discriminator", kept(build_module.build_discriminator, lambda d: [d], trained)
    )
    again = kept(build_module.build_discriminator, lambda d: [d._network[0]], frozen)
    monkeypatch.setattr(build_module, "build_discriminator", again)
    monkeypatch.setattr(build_module, "build_decoder", kept(build_module.build_decoder, lambda d: [d], trained))
    made = tok(*commands["decoder"], "--recipe", tmp_path / "decoder.yaml", "--out", tmp_path / "decoder")
    assert len(frozen) == 3 and len(trained) == 2
    for module, before in frozen:
        assert not module.training
        assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())
    for module, before in trained:
        assert any(not torch.equal(t, before[name]) for name, t in module.state_dict().items())
    facts = open_artifact(made, "decoder", ["decoder"]).facts
    assert facts["frozen_parameters"] == sum(p.numel() for p in frozen[0][0].parameters())
    assert facts["trainable_parameters"] == sum(p.numel() for p in trained[0][0].parameters())


def test_a_complete_artifact_is_not_made_again(commands: dict[str, list[object]], root: Path) -> None:
    first = straight(commands, "proposal-nar", root)
    before = (first / "manifest.json").stat().st_mtime_ns
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_in_step(monkeypatch, 1, "killed")
        assert straight(commands, "proposal-nar", root) == first
    assert (first / "manifest.json").stat().st_mtime_ns == before
