"""The documentation against the code: commands, flags, recipes, links, the manifest and the quantizer in the README."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from tokcli.artifact.manifest import content_id, read_manifest
from tokcli.cli import cli, recipes
from tokcli.errors import Interrupted
from tokcli.recipe.check import InvalidRecipe, check, resolved
from tokcli.recipe.overrides import override, parse_set
from tokcli.recipe.yaml import find_recipe, read_yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")}
PIPELINE = (ROOT / "scripts" / "pipeline.sh").read_text(encoding="utf-8")
COMMANDS: dict[str, click.Command] = dict(cli.commands)
OTHERS_FLAGS = {"--nproc-per-node", "--suite", "--toy", "--mini"}  # of torchrun, of scripts/benchmark.sh
FLAGS = {
    flag
    for command in COMMANDS.values()
    for p in command.params
    for flag in (*p.opts, *p.secondary_opts)
    if flag[:2] == "--"
}
STAGES = {  # command -> the recipe it reads by default
    "train-tokenizer": "tokenizer-vqkd", "train-decoder": "decoder-conv", "tokenize": "tokens", "train-proposal": "proposal-{mode}",
    "sample": "sample-{mode}", "eval": "eval", "viz-codebook": "viz",
}  # fmt: skip


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def invocations(shell: str) -> Iterator[list[str]]:
    """The words of each `tok ...` and `python -m tokcli ...` in shell code, every $variable replaced by 1."""
    for line in shell.replace("\\\n", " ").splitlines():
        found = re.search(r"(?:^|\(|\s)(?:tok|-m tokcli)\s+(.*)", line.strip())
        if found and not line.strip().startswith("#"):
            code = re.sub(r'"\$\{\w+\[@\]\}"', "", found[1])  # flags that may be none
            code = re.sub(r"\$\w+", "1", code)
            code = code.split(")")[0] if "$(tok" in line else code
            code = re.sub(r"\s+\d?>\s*\S+|\s+&$", "", code)  # redirections are the shell's
            yield shlex.split(code, comments=True)


USED = [
    words
    for text in (*DOCS.values(), "```sh\n" + PIPELINE + "```\n")
    for shell in blocks(text, "sh")
    for words in invocations(shell)
]
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("words", [w for w in USED if w[0] in COMMANDS], ids=" ".join)
def test_every_command_line_in_the_docs_parses(words: list[str]) -> None:
    COMMANDS[words[0]].make_context(words[0], list(words[1:]))


def test_command_lines_were_found_and_name_known_commands() -> None:
    assert {words[0] for words in USED} == {*STAGES, "recipes", "--help"}


def test_every_command_has_a_row_in_the_pipeline_table() -> None:
    rows = re.findall(r"^\| `tok ([\w-]+)` \|", README, re.MULTILINE)
    assert rows == list(cli.commands)


@pytest.mark.parametrize("name", DOCS)
def test_commands_and_flags_named_in_prose_exist(name: str) -> None:
    text = DOCS[name]
    assert set(re.findall(r"`tok ([a-z][\w-]*)", text)) <= set(COMMANDS)
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text)) - OTHERS_FLAGS <= FLAGS | {"--help"}


def test_flags_of_one_command_alone_are_in_the_readme() -> None:
    own = {
        p.opts[-1]
        for c in COMMANDS.values()
        for p in c.params
        if isinstance(p, click.Option) and p.opts[-1].startswith("--")
    }
    unsaid = own - set(re.findall(r"--[a-z][\w-]+", README))
    assert unsaid <= {"--number", "--method"}, "said as -n, and of one value so far"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_has_a_help_text(command: str) -> None:
    options = [p for p in COMMANDS[command].params if isinstance(p, click.Option)]
    assert [p.name for p in options if not p.help and p.name != "workspace"] == []


def default_recipe(command: str, values: dict[str, Any]) -> Path:
    name = STAGES[command].format(mode=values.get("mode") or "ar")
    return find_recipe(values["recipe"], folder="openmoji", name=name)


@pytest.mark.parametrize("words", [w for w in USED if "--set" in w], ids=" ".join)
def test_every_recipe_key_that_the_docs_set_is_accepted(words: list[str], tmp_path: Path) -> None:
    values = COMMANDS[words[0]].make_context(words[0], list(words[1:])).params
    tree = read_yaml(default_recipe(words[0], values))
    override(tree, parse_set(values["sets"]))
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
    recipes.check_file(tmp_path / "recipe.yaml")


def test_a_recipe_key_that_does_not_exist_would_be_found(tmp_path: Path) -> None:
    tree = read_yaml(find_recipe("openmoji/tokens", folder="openmoji", name=""))
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree | {"tokens": {"crop": 2}}))
    with pytest.raises(InvalidRecipe, match="tokens.crop: unknown key"):
        recipes.check_file(tmp_path / "recipe.yaml")


def test_every_recipe_folder_and_script_named_exists() -> None:
    folders = set(re.findall(r"\brecipes/([\w-]+)", README))
    assert folders >= {"openmoji", "toy", "folder"}
    assert [f for f in folders if not list((ROOT / "recipes" / f).glob("*.yaml"))] == []
    scripts = {file for text in DOCS.values() for file in re.findall(r"\bscripts/[\w.]+\.(?:sh|py)", text)}
    assert [file for file in scripts if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize("name", DOCS)
def test_relative_links_and_pictures_exist(name: str) -> None:
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", DOCS[name]) if "://" not in t]
    assert [t for t in targets if not (ROOT / t.split("#")[0]).exists()] == []


def test_defaults_and_numbers_in_the_text_are_those_of_the_code() -> None:
    assert f"exit with {Interrupted.exit_code}" in " ".join(README.split())
    assert read_yaml(ROOT / "recipes/openmoji/tokenizer-vqkd.yaml")["teacher"]["name"] == "efflite0"
    assert "| `efflite0` (default) |" in README


def test_every_variable_named_is_read_by_the_code() -> None:
    source = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tokcli").rglob("*.py"))
    variables = set(re.findall(r"\bTOK_[A-Z]+\b", README))
    assert variables == set(re.findall(r"\bTOK_[A-Z]+\b", source))


def test_teachers_and_metrics_are_all_in_the_readme() -> None:
    from tokcli.metrics import METRICS
    from tokcli.pretrained.teachers import TEACHERS

    reported = set(METRICS) - {"entropy_bits"}  # the same number as codebook_perplexity on another scale
    assert [name for name in (*TEACHERS, *reported) if f"`{name}`" not in PROSE] == []


def test_the_manifest_is_a_real_one(tmp_path: Path) -> None:
    (text,) = blocks(README, "json")
    (tmp_path / "manifest.json").write_text(text)
    manifest = read_manifest(tmp_path, "README.md")
    assert manifest["status"] == "complete"
    assert content_id(manifest) == manifest["id"]  # a changed fact, input or hash has another id


@pytest.fixture
def bits(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The README's quantizer, built through the recipe check as `--set` would."""
    from tokcli.build import component
    from tokcli.methods.distillation import Distillation, DistillationRecipe
    from tokcli.quantizers import QUANTIZERS

    monkeypatch.setitem(QUANTIZERS, "bits", None)  # type: ignore[arg-type]  so that it is taken out again
    code = "\n".join(blocks(README, "python"))
    exec(code, {"QUANTIZERS": QUANTIZERS, "__name__": "bits"})
    tree = read_yaml(ROOT / "recipes/toy/tokenizer-vqkd.yaml")
    (setting,) = re.findall(r"`--set '(quantizer=[^']+)'`", README)
    override(tree, parse_set((setting,)))
    checked = check(DistillationRecipe, tree, "README.md", Distillation.families)
    with pytest.raises(InvalidRecipe, match=r"quantizer\.codedim: unknown key. Did you mean 'code_dim'"):
        check(
            DistillationRecipe, tree | {"quantizer": {"name": "bits", "codedim": 9}}, "README.md", Distillation.families
        )
    return component("quantizer", QUANTIZERS, resolved(checked)["quantizer"])


def test_the_quantizer_of_the_readme_keeps_the_contract(bits: Any) -> None:
    import torch

    z_e = torch.randn(4, 6, bits.code_dim, generator=torch.Generator().manual_seed(0), requires_grad=True)
    bits.initialise(z_e)
    z_q, indices, losses = bits(z_e)
    assert torch.equal(bits.codes(indices), z_q)
    assert bits.codebook_size == 512 and indices.min() >= 0 and indices.max() < 512
    (z_q.sin().sum() + sum(losses.values())).backward()
    assert z_e.grad is not None and z_e.grad.abs().min() > 0
    bits.after_step(0)
    assert bits.health()["codebook_usage"] == len(indices.unique()) / 512
