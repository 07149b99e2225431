"""`tokcli.load`: what a Python user reads from artifacts equals what the commands write."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import tokcli
from tokcli.cli import cli
from tokcli.errors import TokError


def tok(*arguments: object) -> Path:
    ran = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert ran.exit_code == 0, ran.output
    return Path(ran.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Toy artifacts of every kind, over six photos of odd sizes."""
    folder = tmp_path_factory.mktemp("door")
    for number in range(12):
        split, label = ("train", "val")[number // 6], ("cat", "dog")[number % 2]
        file = folder / "photos" / split / label / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((70 + number, 64), 60).convert("RGB").save(file)
    data, space = folder / "photos" / "train", folder / "artifacts"
    common = ("--workspace", space)
    found: dict[str, Path] = {"data": data}
    found["tokenizer"] = tok("train-tokenizer", *common, "--recipe", "toy/tokenizer-vqgan", "--data", data)
    found["tokens"] = tok("tokenize", *common, "--recipe", "toy/tokens", "--tokenizer", found["tokenizer"])
    found["proposal"] = tok(
        "train-proposal", *common, "--mode", "ar", "--recipe", "toy/proposal-ar", "--tokens", found["tokens"]
    )
    found["samples"] = tok(
        "sample", *common, "--mode", "ar", "-n", 3, "--recipe", "toy/sample-ar", "--proposal", found["proposal"]
    )
    yield found


def test_encode_gives_the_tokens_that_the_command_wrote(made: dict[str, Path]) -> None:
    tokens, tokenizer = tokcli.load(made["tokens"]), tokcli.load(made["tokenizer"])
    paths = [made["data"] / key for key in tokens.store.keys]
    wanted = tokens.indices(range(len(tokens)))
    assert tokenizer.encode(paths).equal(wanted)
    assert tokenizer.encode([Image.open(path) for path in paths]).equal(wanted)


def test_images_of_every_form_give_the_same_tokens(made: dict[str, Path]) -> None:
    tokenizer = tokcli.load(made["tokenizer"])
    path = sorted(made["data"].rglob("*.png"))[0]
    array = np.array(Image.open(path))
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    wanted = tokenizer.encode(path)
    for form in (
        str(path),
        array,
        array[None],
        tensor,
        tensor[None],
        tensor / 255,
        [tensor, array][:1],
        array / 255.0,
        (array / 255).astype(">f4"),
        np.array([str(path), None], object)[:1],
    ):
        assert tokenizer.encode(form).equal(wanted)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.rand(3, 8, 8) * 255, "floats must lie in [0, 1]"),
        (torch.full((3, 8, 8), torch.nan), "floats must lie in [0, 1]"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), "must be (3, h, w) or (b, 3, h, w)"),
        (np.zeros((3, 8, 8), np.uint8), "must be (h, w, 3) or (b, h, w, 3)"),
        (torch.zeros(3, 8, 8, dtype=torch.int32), "must be uint8, or floats in [0, 1]"),
        ([], "there are none"),
        (7, "are of a type that is not read"),
        (b"\x89PNG", "are of a type that is not read. Got bytes"),
        (torch.zeros(3, 8, 8).to_sparse(), "are of a type that is not read. Got cpu torch.sparse_coo"),
        (torch.zeros(3, 8, 8, device="meta"), "are of a type that is not read. Got meta"),
        (np.zeros((8, 8, 3), complex), "are of a type that is not read. Got complex128"),
        ("no-such.png", "no-such.png: cannot be read (No such file or directory)"),
    ],
)
def test_images_that_cannot_be_meant_are_refused_in_one_line(images: object, said: str, made: dict[str, Path]) -> None:
    with pytest.raises(TokError) as error:
        tokcli.load(made["tokenizer"]).encode(images)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_list_that_contains_itself_is_refused(made: dict[str, Path]) -> None:
    images: list[object] = []
    images.append(images)
    with pytest.raises(TokError, match="lie in more than 8 sequences"):
        tokcli.load(made["tokenizer"]).encode(images)


def test_images_of_a_generator_are_read_batch_by_batch(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, asked, read = tokcli.load(made["tokenizer"]), 0, []

    def paths() -> Iterator[Path]:
        nonlocal asked
        for path in sorted(made["data"].rglob("*.png")) * 30:
            asked += 1
            yield path

    whole = tokenizer.network.encode
    monkeypatch.setattr(tokenizer.network, "encode", lambda batch: (read.append(asked), whole(batch))[1])
    assert len(tokenizer.encode(paths())) == asked == 180 and read == [64, 128, 180]


def test_decode_gives_uint8_images_by_the_tokenizers_own_decoder_or_a_named_one(made: dict[str, Path]) -> None:
    tokenizer = tokcli.load(made["tokenizer"])
    indices = tokenizer.encode(sorted(made["data"].rglob("*.png")))
    images = tokenizer.decode(indices)
    size = tokenizer.facts["use_size"]
    assert images.dtype == torch.uint8 and images.shape == (6, 3, size, size)
    one = tokenizer.decode(indices[0], decoder=made["tokenizer"])
    assert (one.int() - images[:1].int()).abs().max() <= 1  # a batch of another size rounds otherwise
    assert tokenizer.decode(indices.numpy().astype(np.uint16)).equal(images)


def test_samples_decode_to_their_own_pictures(made: dict[str, Path]) -> None:
    samples, tokenizer = tokcli.load(made["samples"]), tokcli.load(made["tokenizer"])
    indices = np.load(made["samples"] / "indices-00000.npy").reshape(3, -1)
    assert tokenizer.decode(indices).equal(samples.images()) and len(samples.labels) == 3


def test_sample_gives_the_tokens_of_the_command(made: dict[str, Path]) -> None:
    proposal = tokcli.load(made["proposal"])
    wanted = torch.from_numpy(np.load(made["samples"] / "indices-00000.npy").reshape(3, -1).astype(np.int64))
    assert proposal.sample(3, recipe="toy/sample-ar").equal(wanted)
    assert not proposal.sample(3, recipe="toy/sample-ar", seed=1).equal(wanted)
    cats = proposal.sample(4, recipe="toy/sample-ar", classes=["cat"], temperature=0.5, batch_size=1)
    assert cats.shape == (4, wanted.shape[1])
    again = tok("sample", "--workspace", made["proposal"].parent, "--mode", "ar", "-n", 4, "--recipe", "toy/sample-ar",
                "--classes", "cat", "--temperature", 0.5, "--proposal", made["proposal"])  # fmt: skip
    assert cats.numpy().tolist() == np.load(again / "indices-00000.npy").reshape(4, -1).tolist()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"cfg": 2.0}, "has no such setting"),
        ({"classes": ["cow"]}, "no such class 'cow'"),
        ({"top_p": 2.0}, "top_p"),
        ({"prompts": ["a cat"]}, "not on captions"),
        ({"prompts": 5}, "prompts: must be a list. Got int"),
        ({"classes": 0}, "classes: must be a list. Got int"),
        ({"seed": "one"}, "seed: should be a valid integer"),
        ({"seed": 1.5}, "seed: should be a valid integer"),
    ],
)
def test_what_cannot_be_drawn_is_refused(asked: dict[str, object], said: str, made: dict[str, Path]) -> None:
    with pytest.raises(TokError) as error:
        tokcli.load(made["proposal"]).sample(2, recipe="toy/sample-ar", **asked)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("indices", "said"),
    [([[0] * 3], "must be (b, "), ([[-1] * 64], "must be from 0 to"), ([[10**6] * 64], "must be from 0 to"), ([[0.5] * 64], "must be whole numbers")],
)  # fmt: skip
def test_indices_that_are_none_are_refused(indices: object, said: str, made: dict[str, Path]) -> None:
    tokenizer = tokcli.load(made["tokenizer"])
    n = tokenizer.facts["grid"][0] * tokenizer.facts["grid"][1]
    given = [row * n if len(row) == 1 else (row * n)[:n] if len(row) == 64 else row for row in indices]  # type: ignore[attr-defined]
    with pytest.raises(TokError, match=said.replace("(", r"\(")):
        tokenizer.decode(given)


def test_every_kind_of_artifact_loads_or_says_why_not(made: dict[str, Path]) -> None:
    from tokcli.artifact.manifest import KINDS
    from tokcli.handles import HANDLES

    assert {*KINDS} - {*HANDLES} == {"viz"}
    report = tok("eval", made["tokenizer"], "--recipe", "toy/eval", "--workspace", made["tokenizer"].parent)
    assert tokcli.load(report).metrics["artifacts"]
    with pytest.raises(TokError, match="no such folder|holds no manifest|not an artifact"):
        tokcli.load(made["data"])


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, tokcli; assert callable(tokcli.load); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_lines_of_the_readme_run(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    section = text.split("## From Python")[1].split("\n## ")[0]
    code = section.split("```python\n")[1].split("```")[0]
    links = {"tokenizer-vqkd-efflite0-1f09ab": made["tokenizer"], "proposal-nar-vqkd-efflite0-77ab02": made["proposal"]}
    for name, path in links.items():
        assert name in code
        code = code.replace(f"artifacts/{name}", str(path))
    names: dict[str, object] = {}
    monkeypatch.chdir(made["data"] / "cat")
    for number, file in enumerate(sorted(Path.cwd().glob("*.png"))[:2]):
        (Path.cwd() / f"{'ab'[number]}.jpg").write_bytes(file.read_bytes())
    exec(code, names)  # noqa: S102
    assert names["images"].shape == (2, 3, 64, 64) and names["new"].shape[0] == 8  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda t: t.decode(np.full((1, 64), 0.7)), "must be whole numbers"),
        (lambda t: t.decode([[1, 2], [3]]), "must be an array of whole numbers"),
        (lambda t: t.decode([[0] * 64], decoder=3), "must be a path"),
        (lambda t: tokcli.load(None), "takes the path of an artifact"),
        (lambda t: tokcli.load(t.artifact.path, device="xpu9"), "device xpu9: no such device"),
        (lambda t: tokcli.load(t.artifact.path, device="meta"), "device meta: this device is not supported"),
        (lambda t: tokcli.load(t.artifact.path, device=None), "device None: no such device"),
        (lambda t: tokcli.load(t.artifact.path, device="cuda:9999"), "device cuda:9999: "),
    ],
)
def test_mistakes_are_one_line(ask: Any, said: str, made: dict[str, Path]) -> None:
    with pytest.raises(TokError) as error:
        ask(tokcli.load(made["tokenizer"]))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_rows_and_numbers_that_are_not_there_are_refused(made: dict[str, Path]) -> None:
    for rows, view in (([-1], 0), ([36], 0), ([0], 99), ([0], -1), ([0.5], 0), (3, 0), ("ab", 0), ([0], "x")):
        with pytest.raises(TokError, match="there are rows 0 to 5"):
            tokcli.load(made["tokens"]).indices(rows, view)
    for numbers in ([], [3], 1, "ab", [0.5]):
        with pytest.raises(TokError, match="numbered 0 to 2"):
            tokcli.load(made["samples"]).images(numbers)


def test_numbers_and_names_may_be_numpys(made: dict[str, Path]) -> None:
    proposal = tokcli.load(made["proposal"])
    wanted = proposal.sample(2, recipe="toy/sample-ar", classes=[0, 1], temperature=0.5)
    assert proposal.sample(
        np.int64(2), recipe="toy/sample-ar", classes=np.array([0, 1]), temperature=np.float64(0.5)
    ).equal(wanted)
    with pytest.raises(TokError, match="classes: there are none"):
        proposal.sample(2, recipe="toy/sample-ar", classes=[])
