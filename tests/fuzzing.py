"""What the fuzz tests share: how bytes and values are damaged, and what may come of reading them.

An example is right if it ends in a result, or in an error of one printable line; nothing else may have changed on the disk. Without
`TOK_FUZZ_SEED` the examples are the same in every run; `scripts/fuzz.sh` counts seeds up.
"""

import contextlib
import copy
import io
import itertools
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st

from tokcli.data.decode import BadImage
from tokcli.errors import TokError
from tokcli.recipe.check import InvalidRecipe
from tokcli.terminal import printable

EXAMPLES, SEED = int(os.environ.get("TOK_FUZZ_EXAMPLES", "25")), os.environ.get("TOK_FUZZ_SEED")
NUMBERS = itertools.count()
TOKENS = [
    b"\0",
    b"\xff",
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\0" * 512,
    b"9" * 5000,
    b"[" * 3000,
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b'"',
    b"\\ud800",
    b"\xed\xa0\x80",
    b"{}",
    b"[]",
    b"\n",
    b"\r",
    b"../../x",
    b"/etc/passwd",
    b"2020-13-45",
    b"0b" + b"1" * 70,
    b"!!python/name:os.system",
    b"PK\5\6",
    b"GNU.sparse.map=",
    b"\x1b[2J",
]
VALUES = [
    None,
    True,
    -1,
    0,
    2**63,
    10**400,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "\ud800",
    "a\nb",
    "../../x",
    [],
    {},
    [[]],
    {"name": 3},
    {"": None},
    "vq",
    ["a"] * 40,
]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of the module's own; what imports it uses it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def within(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which examples write."""
    return tmp_path_factory.mktemp("fuzz")


def fuzz(scale: float = 1.0, **given: Any) -> Callable[[Any], Any]:
    """A test of many examples, the same ones in every run unless a seed is given."""

    def decorate(test: Any) -> Any:
        test = hypothesis.settings(
            max_examples=max(3, int(EXAMPLES * scale)),
            derandomize=SEED is None,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        )(hypothesis.given(**given)(test))
        return hypothesis.seed(int(SEED))(test) if SEED is not None else test

    return decorate


@st.composite
def damaged(draw: Any, whole: bytes) -> bytes:
    """Bytes with up to four faults: flipped, overwritten, cut out, repeated, filled in, cut off."""
    chance = draw(st.randoms(use_true_random=False))
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice([1, 2, 4, 8, 64, 1000]))
        fault = draw(st.sampled_from(["flip", "write", "cut", "repeat", "fill", "end", "swap"]))
        if fault == "flip" and start < len(data):
            data[start] ^= 1 << chance.randrange(8)
        elif fault == "write":
            data[start:end] = chance.randbytes(end - start)
        elif fault == "cut":
            del data[start:end]
        elif fault == "repeat":
            data[start:start] = data[start:end] * chance.choice([1, 2, 50])
        elif fault == "fill":
            data[start:start] = chance.choice(TOKENS)
        elif fault == "swap":
            data[start:end] = chance.choice(TOKENS)[: chance.choice([1, 4, 9999])]
        elif fault == "end":
            del data[start:]
    return bytes(data)


@st.composite
def forged(draw: Any, tree: Any) -> Any:
    """A tree of JSON with up to three values of another kind, keys taken away, or keys that nobody knows."""
    chance = draw(st.randoms(use_true_random=False))
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, 3))):
        node, key = _place(tree, chance)
        if key is None:
            continue
        fault = draw(st.sampled_from(["value", "gone", "new", "number"]))
        if fault == "value":
            node[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))  # a later fault may change it
        elif fault == "number" and isinstance(node[key], int | float):
            node[key] = draw(st.one_of(st.integers(), st.floats()))
        elif fault == "gone" and isinstance(node, dict):
            del node[key]
        elif fault == "new" and isinstance(node, dict):
            node[draw(st.text(max_size=5))] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    return tree


def _place(tree: Any, chance: random.Random) -> tuple[Any, Any]:
    node, key = None, None
    while isinstance(tree, dict | list) and tree:
        node, key = tree, chance.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
        tree = node[key]
        if chance.random() < 0.25:
            break
    return node, key


@contextlib.contextmanager
def room(within: Path, *, out: str = "") -> Iterator[Path]:
    """A fresh folder. What is read in it ends well or in one line, and leaves everything but `out` as it was."""
    root = within / f"{next(NUMBERS):06d}"
    root.mkdir()
    yield root
    for left in root.rglob("*"):
        assert not left.name.endswith(".tmp"), f"{left} is half-written"
    beside = {path.name for path in within.iterdir()}
    assert all(name.isdigit() for name in beside), beside
    assert not out or {path.name for path in root.iterdir()} <= {*out.split()}, sorted(root.iterdir())


@contextlib.contextmanager
def told() -> Iterator[None]:
    """An error that a file can cause is one line that a terminal can show; anything else is a fault of tok."""
    try:
        yield
    except (TokError, BadImage) as error:
        lines = str(error).split("\n") if isinstance(error, InvalidRecipe) else [str(error)]
        assert all(line and line == printable(line) for line in lines) or isinstance(error, BadImage), str(error)


def command(*words: Any) -> None:
    """Run `tok` in this process; what click refuses is told as well."""
    import click

    from tokcli.cli import cli

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            cli.main([str(word) for word in words], prog_name="tok", standalone_mode=False)
        except click.exceptions.Exit:
            pass
        except click.ClickException as error:
            assert error.format_message()
