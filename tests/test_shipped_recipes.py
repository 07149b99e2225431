"""Every shipped recipe is run, not only parsed: two steps or a few images, at the sizes of `scripts/mini.py`.

Networks have the true architecture and random weights, found in a cache of this test's own; images are made.
"""

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_faults import logged

from tokcli.cli import cli
from tokcli.recipe.yaml import read_yaml, recipe_files, recipe_name, recipes_root

SHIPPED = [recipe_name(path) for path in recipe_files()]
PROPOSALS = {  # whose samples a recipe of stage sample draws, where its name does not say it
    "imagenet/sample-ar": "imagenet/proposal-ar-medium", "coco/sample-ar": "coco/proposal-ar-medium",
    "imagenet/sample-ar-llamagen": "imagenet/proposal-ar-llamagen-b", "coco/sample-ar-llamagen": "coco/proposal-ar-medium",
    "coco/sample-nar": "coco/proposal-nar-t2i",
}  # fmt: skip


def _mini() -> Any:
    file = Path(__file__).parent.parent / "scripts" / "mini.py"
    spec = importlib.util.spec_from_file_location("mini", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mini = _mini()


class Workshop:
    """Makes what a recipe needs by the recipes before it, each once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        mini.make_imagenet(root / "imagenet")
        mini.make_coco(root / "coco")
        (root / "prompts.txt").write_text("a red disc\none square in blue\n")
        self.make = cache(self._make)

    def _make(self, recipe: str, data: str, *inputs: str) -> Path:
        tree = read_yaml(recipes_root() / f"{recipe}.yaml")
        commands = {
            "tokenizer": ["train-tokenizer", "--data", data], "decoder": ["train-decoder"], "tokens": ["tokenize", "--data", data],
            "proposal": ["train-proposal"], "sample": ["sample"], "eval": ["eval"], "viz": ["viz-codebook"],
        }  # fmt: skip
        sets = [f"--set={key}={json.dumps(value)}" for key, value in mini.sets(tree)]
        arguments = [
            *commands[tree["stage"]],
            "--recipe",
            recipe,
            "--workspace",
            str(self.root / "made"),
            *sets,
            *inputs,
        ]
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, f"{result.stderr[-2000:]}{result.exception!r}"
        return Path(result.stdout.strip().splitlines()[-1])

    def of(self, recipe: str) -> Path:
        """The artifact of a recipe, and before it those that it reads."""
        folder, _, name = recipe.rpartition("/")
        stage = name.split("-")[0]
        return getattr(self, stage)(recipe, folder)  # type: ignore[no-any-return]

    def _data(self, captions: bool) -> str:
        return str(self.root / ("coco/train2014" if captions else "imagenet/train"))

    def tokenizer(self, recipe: str, folder: str) -> Path:
        return self.make(recipe, self._data(folder == "coco"))

    def usual(self, folder: str) -> str:
        """The recipe of the tokenizer that a folder's other recipes are tried with."""
        return f"{folder}/tokenizer-{'joint' if folder == 'claims' else 'vqkd'}"

    def decoder(self, recipe: str, folder: str) -> Path:
        given = ["--tokenizer", str(self.of(self.usual(folder)))]
        if "drawn" in read_yaml(recipes_root() / f"{recipe}.yaml"):
            start, network = (str(self.of(f"{folder}/{name}")) for name in ("decoder-conv", "proposal-ar"))
            given += ["--init", start, "--proposal", network]
        return self.make(recipe, "", *given)

    def tokens(self, recipe: str, folder: str, tokenizer: str = "", captions: bool = False) -> Path:
        made_by = self.of(f"{folder}/tokenizer-{tokenizer}" if tokenizer else self.usual(folder))
        return self.make(recipe, self._data(captions or folder == "coco"), "--tokenizer", str(made_by))

    def proposal(self, recipe: str, folder: str) -> Path:
        tree = read_yaml(recipes_root() / f"{recipe}.yaml")
        by_caption = tree.get("condition", {}).get("name") == "text"
        tokenizer = "llamagen" if tree.get("expects", {}).get("codebook_size") == 16384 else ""
        return self.make(recipe, "", "--tokens", str(self.tokens(f"{folder}/tokens", folder, tokenizer, by_caption)))

    def sample(self, recipe: str, folder: str) -> Path:
        by = PROPOSALS.get(recipe, recipe.replace("/sample-", "/proposal-"))
        own = self.of(f"{folder}/tokenizer-llamagen") if "llamagen" in by else self.of(f"{folder}/decoder-conv")
        prompts = ["--prompts", str(self.root / "prompts.txt")] if by.endswith("t2i") else []
        return self.make(recipe, "", "--proposal", str(self.of(by)), "--decoder", str(own), "-n", "12", *prompts)

    def eval(self, recipe: str, folder: str) -> Path:
        held_out = str(self.root / ("coco/val2014" if folder == "coco" else "imagenet/val"))
        made = [self.usual(folder), f"{folder}/decoder-conv", f"{folder}/sample-nar"]
        made.insert(2, PROPOSALS.get(f"{folder}/sample-ar", f"{folder}/proposal-ar"))
        return self.make(recipe, "", *(str(self.of(one)) for one in made), "--data", held_out)

    def viz(self, recipe: str, folder: str) -> Path:
        return self.make(recipe, "", "--tokenizer", str(self.of(f"{folder}/tokenizer-vqkd")))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, random_weights: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOK_CACHE", str(random_weights))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield Workshop(tmp_path_factory.mktemp("recipes"))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", SHIPPED)
def test_the_recipe_runs(recipe: str, workshop: Workshop) -> None:
    made = workshop.of(recipe)
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    if "train" in manifest["recipe"]:
        steps = [line.get("step") for line in logged(made)]
        assert manifest["recipe"]["train"]["steps"] == max(s for s in steps if s is not None) >= 2


SIZES = {
    "data": {"workers", "size", "use_size"}, "encoder": {"widths", "width", "depth", "heads", "blocks", "channels", "image_size"},
    "decoder": {"widths", "width", "depth", "heads", "blocks", "channels"}, "teacher": {"grid", "image_size"},
    "quantizer": {"init_after"}, "init_batches": {""}, "gan": {"discriminator.width", "start", "warmup", "ramp"},
    "optim": {"warmup_steps"}, "train": {"precision", "steps", "batch_size", "log_every", "save_every", "eval_images"},
    "proposal": {"width", "depth", "heads", "mlp_width"}, "expects": {"grid", "classes"}, "tokens": {"crops"},
    "eval": {"extractors", "bootstrap", "worst"}, "sample": {"precision", "steps", "number"},
    "viz": {"images", "points", "perplexity"},
}  # fmt: skip


@pytest.mark.parametrize("recipe", SHIPPED)
def test_sizes_alone_differ_from_the_shipped_recipe(recipe: str) -> None:
    changed = [key.partition(".") for key, _ in mini.sets(read_yaml(recipes_root() / f"{recipe}.yaml"))]
    assert [key for section, _, key in changed if key not in SIZES[section]] == []
