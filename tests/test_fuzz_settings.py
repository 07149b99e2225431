"""Forged manifests, recipes and values of `--set`: an error of one line or a right result, and nothing else."""

import json
from pathlib import Path
from typing import Any

import fuzzing
import pytest
from fuzzing import VALUES, command, damaged, forged, fuzz, room, told
from hypothesis import strategies as st

from tokcli.artifact.manifest import content_id

own_cache, within = fuzzing.own_cache, fuzzing.within  # fixtures


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The manifest of a tokenizer, as a training records it."""
    from tokcli.cli.recipes import check_file
    from tokcli.recipe.check import resolved
    from tokcli.recipe.yaml import recipes_root

    recipe = resolved(check_file(recipes_root() / "toy" / "tokenizer-vqgan.yaml"))
    facts = {
        "method": "vqgan",
        "name": "vqgan",
        "codebook_size": 64,
        "code_dim": 8,
        "train_size": 32,
        "use_size": 32,
        "grid": [4, 4],
        "has_decoder": True,
        "classes": ["cat", "dog"],
        "teacher": None,
    }
    return {
        "schema": 1,
        "kind": "tokenizer",
        "id": "",
        "status": "complete",
        "facts": facts,
        "metrics": {"loss": 0.5},
        "inputs": {"data": {"id": "data-1", "path": "photos"}},
        "files": {},
        "recipe": recipe,
        "provenance": {"command": ["tok", "train-tokenizer"], "seconds": 3.5, "started": "today", "device": "cpu"},
    }


@fuzz(2, choice=st.data(), action=st.sampled_from(["show", "json", "verify", "list", "tokenize"]))
def test_manifests(within: Path, recorded: dict[str, Any], choice: st.DataObject, action: str) -> None:
    with room(within, out="t") as root, told():
        tree = choice.draw(forged(recorded))
        try:
            tree["id"] = content_id(tree)  # as whoever forges it would
        except Exception:  # a tree from which no id follows
            pass
        data = json.dumps(tree).encode()
        (root / "t").mkdir()
        (root / "t" / "manifest.json").write_bytes(choice.draw(st.just(data) | damaged(data)))
        words = {
            "show": ["show", root / "t"],
            "json": ["show", root / "t", "--json"],
            "verify": ["verify", root / "t"],
            "list": ["show", "--workspace", root],
            "tokenize": [
                "tokenize",
                "--tokenizer",
                root / "t",
                "--data",
                root / "none",
                "--workspace",
                root,
                "--dry-run",
            ],
        }
        command(*words[action])


def shipped() -> list[Path]:
    from tokcli.recipe.yaml import recipes_root

    return sorted(recipes_root().glob("toy/*.yaml"))


@fuzz(2, path=st.sampled_from(shipped()), choice=st.data())
def test_recipes(within: Path, path: Path, choice: st.DataObject) -> None:
    from tokcli.cli.recipes import check_file
    from tokcli.recipe.yaml import read_yaml

    with room(within, out="r.yaml") as root, told():
        tree = choice.draw(forged(read_yaml(path)))
        data = choice.draw(st.just(json.dumps(tree).encode()) | damaged(path.read_bytes()))
        (root / "r.yaml").write_bytes(data)
        check_file(root / "r.yaml")


@fuzz(0.2, path=st.sampled_from(shipped()), choice=st.data())
def test_networks_of_recipes(within: Path, path: Path, choice: st.DataObject) -> None:
    from tokcli.recipe.yaml import read_yaml

    with room(within, out="r.yaml") as root, told():
        (root / "r.yaml").write_text(json.dumps(choice.draw(forged(read_yaml(path)))))
        command("recipes", "--check", root / "r.yaml")


KEYS = [
    "optim.lr",
    "optim.betas",
    "data.size",
    "encoder",
    "quantizer.name",
    "loss",
    "train.steps",
    "seed",
    "stage",
    "data",
    "a.b",
    "loss.l1",
]
SCALARS = [
    "2020-13-45",
    "9" * 5000,
    "0b" + "1" * 20000,
    "[" * 2000,
    "{1: 2}",
    "{[]: 1}",
    "!!binary x",
    "!!timestamp 1",
    "'\\ud800'",
    '"\\ud800"',
    "&a [*a]",
    "1:99:99",
    "{2020-01-01: 1}",
    "{null: 1}",
    "? ",
    "\udcff",
    ".nan",
    "1e999",
    "-0",
    "[1, 2",
]


@fuzz(
    2,
    key=st.sampled_from(KEYS) | st.text(max_size=8),
    value=st.sampled_from(SCALARS) | st.text(max_size=20) | st.sampled_from(VALUES).map(repr),
)
def test_set(within: Path, key: str, value: str) -> None:
    with room(within, out="") as root, told():
        words = ["--recipe", "toy/tokenizer-vqgan", "--data", root / "none", "--workspace", root / "w", "--dry-run"]
        command("train-tokenizer", "--method", "vqgan", *words, "--set", f"{key}={value}")
        assert not list(root.iterdir())
