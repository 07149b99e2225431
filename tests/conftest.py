"""What all tests share: shapes checked, one thread, a tiny folder of images, a maker of artifacts."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

# before torch is imported: tests share few cores, and sums of several threads differ in the last bit
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# every annotated call in these is checked, shapes included; beartype cannot check the protocol that others take
SHAPED = [
    "data.decode", "data.npy", "data.randomness", "data.transforms", "losses", "metrics", "models",
    "pretrained", "quantizers",
]  # fmt: skip
install_import_hook([f"tokcli.{name}" for name in SHAPED], "beartype.beartype")


# A shell starts background jobs with Ctrl-C ignored, and nohup with SIGHUP; commands that tests send these to would inherit it.
for ignored, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(ignored) == signal.SIG_IGN:
        signal.signal(ignored, usual)


def pytest_configure(config: pytest.Config) -> None:
    """A cache folder of the tests' own, which lasts; the user's is only read, through links to the weights in it."""
    users = Path(os.environ.get("TOK_CACHE") or Path.home() / ".cache" / "tok").expanduser()
    own = (
        Path(config.cache.mkdir("tok"))
        if getattr(config, "cache", None)
        else Path(tempfile.mkdtemp(prefix="tok-cache-"))
    )
    os.environ["TOK_CACHE"] = str(own)
    for file in users.iterdir() if users.is_dir() and users != own else ():
        if file.is_file() and not (own / file.name).exists():
            with contextlib.suppress(FileExistsError):  # another process of the tests was first
                (own / file.name).symlink_to(file)


# files whose tests take longest, which come first, so that no process waits for them at the end
LONGEST = [
    f"test_{name}.py"
    for name in (
        "claims",
        "storm",
        "distributed_training",
        "gpu_check",
        "sample",
        "torchrun",
        "shipped_recipes",
        "parity",
    )
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order by files alone; the order on the command line does not help, where files lie in a folder that is named as well."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))  # stable


@pytest.fixture(autouse=True)
def _logger() -> Iterator[None]:
    """A logger that no command has touched, whatever ran before (fixtures of a module run commands too)."""
    logger = logging.getLogger("tok")
    _fresh(logger)
    yield
    _fresh(logger)


def _fresh(logger: logging.Logger) -> None:
    logger.handlers[:], logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """`photos/train` and `photos/val`: two classes of three 12x10 PNGs each, every one of another colour."""
    from PIL import Image

    root = tmp_path / "photos"
    for number in range(12):
        split, label = ("train", "val")[number // 6], ("cat", "dog")[number % 2]
        file = root / split / label / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (20 * number, 255 - 20 * number, 90)).save(file)
    return root


@pytest.fixture
def closed() -> str:
    """A path that nobody may look at, root included: a folder in somebody's closed home is refused in the same way."""
    return "/" + "x" * 300


@pytest.fixture
def make_artifact() -> Callable[..., Any]:
    """Write a small complete artifact: `make_artifact(folder, weights=b"1", kind="tokenizer", ...)`."""
    from tokcli.artifact.draft import Draft, begin
    from tokcli.artifact.opening import Artifact

    def make(
        path: Path, weights: bytes = b"weights", kind: str = "tokenizer", facts: Any = None, inputs: Any = None,
        recipe: Any = None, log: str = "", seconds: int = 0,
    ) -> Artifact:  # fmt: skip
        made_by = {"command": ["tok", "train"], "started": "today", "device": "cpu", "seconds": seconds}
        draft = begin(path, kind, recipe or {"stage": kind, "seed": 0}, inputs or {}, made_by)
        assert isinstance(draft, Draft)
        (path / "model.safetensors").write_bytes(weights)
        (path / "log.jsonl").write_text(log)
        return draft.finish(facts or {"codebook_size": 8}, payload=["model.safetensors"], extras=["log.jsonl"])

    return make


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with random weights of the true architectures, for what reads networks that no package ships."""
    folder = tmp_path_factory.mktemp("weights")
    script = Path(__file__).parent.parent / "scripts" / "mini.py"
    names = [
        "clip",
        "vit",
        "dino",
        "mae",
        "vgg16",
        "inception",
        "dinov2-s",
        "efflite0",
        "vits14",
        "squeezenet",
        "minilm",
        "gpt2-medium",
    ]
    subprocess.run([sys.executable, str(script), "weights", str(folder), *names], check=True)
    return folder
