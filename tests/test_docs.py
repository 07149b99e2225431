"""The documentation against the code: commands, flags, recipes, links, variables and the manifest of every page."""

import importlib.util
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
from tokcli.recipe.check import InvalidRecipe
from tokcli.recipe.yaml import find_recipe, override, parse_set, read_yaml

ROOT = Path(__file__).parent.parent
PAGES = {str(f.relative_to(ROOT)): f.read_text(encoding="utf-8") for f in sorted((ROOT / "docs").rglob("*.md"))}
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = {"README.md": README, **PAGES}  # what a user reads to use tok
DOCS = GUIDES | {name: (ROOT / name).read_text(encoding="utf-8") for name in ("CONTRIBUTING.md", "CHANGELOG.md")}
PIPELINE = (ROOT / "scripts" / "pipeline.sh").read_text(encoding="utf-8")
COMMANDS: dict[str, click.Command] = dict(cli.commands)
LEAVES = {  # every command that does something, those of groups by two words
    name: command
    for one, group in COMMANDS.items()
    for name, command in (
        {f"{one} {n}": c for n, c in group.commands.items()} if isinstance(group, click.Group) else {one: group}
    ).items()
}
OTHERS_FLAGS = {
    *("--suite", "--toy", "--mini", "--markdown", "--minutes", "--compare"),  # of scripts
    *("--nproc-per-node", "--nnodes", "--standalone", "--max-restarts", "--master-port"),  # of torchrun
    *("--rdzv-backend", "--rdzv-id", "--rdzv-endpoint"),
    *("--nodes", "--ntasks-per-node", "--gpus-per-node", "--requeue", "--signal", "--kill-on-bad-exit"),  # of SLURM
}
FLAGS = {
    flag
    for command in LEAVES.values()
    for p in command.params
    for flag in (*p.opts, *p.secondary_opts)
    if flag[:2] == "--"
}
STAGES = {  # command -> the recipe it reads by default
    "train-tokenizer": "tokenizer-vqkd",
    "train-decoder": "decoder-conv",
    "tokenize": "tokens",
    "train-proposal": "proposal-{mode}",
    "sample": "sample-{mode}",
    "eval": "eval",
    "viz-codebook": "viz",
}
OPENMOJI = "creativecommons.org/licenses/by-sa/4.0/"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its rank or above."""
    rank = len(heading) - len(heading.lstrip("#"))
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{rank}}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def prose(text: str) -> str:
    """A page without its code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors that a page's headings have on GitHub."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


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


def test_the_readme_has_at_most_10_kilobytes() -> None:
    assert len(README.encode()) <= 10_000


@pytest.mark.parametrize("words", [w for w in USED if w[0] in COMMANDS], ids=" ".join)
def test_every_command_line_in_the_docs_parses(words: list[str]) -> None:
    depth = 1 if words[0] in LEAVES else 2
    LEAVES[" ".join(words[:depth])].make_context(words[0], list(words[depth:]))


def test_command_lines_were_found_and_name_known_commands() -> None:
    assert {words[0] for words in USED} == {*STAGES, "data", "recipes", "import", "--help"}


def test_every_command_has_a_row_in_the_readme() -> None:
    rows = re.findall(r"^\| `tok ([\w-]+)` \|", README, re.MULTILINE)
    assert rows == list(cli.commands)


@pytest.mark.parametrize("name", DOCS)
def test_commands_and_flags_named_in_prose_exist(name: str) -> None:
    text = DOCS[name]
    assert set(re.findall(r"`tok ([a-z][\w-]*)", text)) <= set(COMMANDS)
    assert set(re.findall(r"`tok (data [a-z][\w-]*)", text)) <= set(LEAVES)
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text)) - OTHERS_FLAGS <= FLAGS | {"--help"}


def test_every_flag_is_in_the_docs() -> None:
    own = {
        p.opts[-1]
        for c in LEAVES.values()
        for p in c.params
        if isinstance(p, click.Option) and p.opts[-1].startswith("--")
    }
    assert own - set(re.findall(r"--[a-z][\w-]+", "\n".join(GUIDES.values()))) <= {"--number"}, "said as -n"


@pytest.mark.parametrize("command", LEAVES)
def test_every_flag_has_a_help_text(command: str) -> None:
    options = [p for p in LEAVES[command].params if isinstance(p, click.Option)]
    assert [p.name for p in options if not p.help and p.name != "workspace"] == []


def default_recipe(command: str, values: dict[str, Any]) -> Path:
    name = STAGES[command].format(mode=values.get("mode") or "ar")
    return find_recipe(values["recipe"], preset="openmoji", name=name)


@pytest.mark.parametrize("words", [w for w in USED if "--set" in w], ids=" ".join)
def test_every_recipe_key_that_the_docs_set_is_accepted(words: list[str], tmp_path: Path) -> None:
    values = COMMANDS[words[0]].make_context(words[0], list(words[1:])).params
    tree = read_yaml(default_recipe(words[0], values))
    override(tree, parse_set(values["sets"]))
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
    recipes.check_file(tmp_path / "recipe.yaml")


def test_a_recipe_key_that_does_not_exist_would_be_found(tmp_path: Path) -> None:
    tree = read_yaml(find_recipe("openmoji/tokens", preset="openmoji", name=""))
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree | {"tokens": {"crop": 2}}))
    with pytest.raises(InvalidRecipe, match="tokens.crop: unknown key"):
        recipes.check_file(tmp_path / "recipe.yaml")


def test_the_discriminators_section_is_one_of_a_recipe(tmp_path: Path) -> None:
    (text,) = blocks(PAGES["docs/tokenizers.md"], "yaml")
    tree = read_yaml(find_recipe("openmoji/decoder-conv", preset="openmoji", name=""))
    (tmp_path / "gan.yaml").write_text(text)
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree | read_yaml(tmp_path / "gan.yaml")))
    recipes.check_file(tmp_path / "recipe.yaml")


def test_every_recipe_folder_recipe_and_script_named_exists() -> None:
    everything = "\n".join(GUIDES.values())
    folders = set(re.findall(r"\brecipes/([\w-]+)(?![\w.])", everything))
    assert folders >= {"openmoji", "toy", "folder"}
    assert [f for f in folders if not list((ROOT / "recipes" / f).rglob("*.yaml"))] == []
    named = {n for n in re.findall(r"`((?:imagenet|coco|openmoji|toy)/[a-z][\w-]*-[\w-]+)`", everything)}
    assert len(named) >= 8 and [n for n in named if not (ROOT / "recipes" / f"{n}.yaml").is_file()] == []
    scripts = {file for text in DOCS.values() for file in re.findall(r"\bscripts/[\w.]+\.(?:sh|py)", text)}
    assert [file for file in scripts if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize("name", DOCS)
def test_relative_links_anchors_and_pictures_exist(name: str) -> None:
    for target in (t for t in re.findall(r"\]\(([^)\s]+)\)", prose(DOCS[name])) if "://" not in t):
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target


def test_every_page_is_on_the_readmes_map() -> None:
    assert [name for name in PAGES if f"]({name})" not in section(README, "## Documentation")] == []


@pytest.mark.parametrize("name", GUIDES)
def test_pictures_of_emoji_carry_their_licence(name: str) -> None:
    paragraphs = GUIDES[name].split("\n\n")
    shown = [i for i, text in enumerate(paragraphs) if re.search(r"!\[[^\]]*\]\(\S*openmoji/[\w-]+\.png\)", text)]
    assert [paragraphs[i] for i in shown if OPENMOJI not in paragraphs[i + 1]] == []


def test_defaults_and_numbers_in_the_text_are_those_of_the_code() -> None:
    text = " ".join(PAGES["docs/artifacts.md"].split())
    assert f"exit with {Interrupted.exit_code}" in text and f"| {Interrupted.exit_code} | interrupted" in text
    assert read_yaml(ROOT / "recipes/openmoji/tokenizer-vqkd.yaml")["teacher"]["name"] == "efflite0"
    assert "| `efflite0` (default) |" in PAGES["docs/tokenizers.md"]


def test_every_variable_named_is_read_and_every_one_of_the_package_is_named() -> None:
    package = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tokcli").rglob("*.py"))
    scripts = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "scripts").glob("*.*"))
    named = set(re.findall(r"\bTOK_[A-Z_]+\b", "\n".join(DOCS.values())))
    assert named >= set(re.findall(r"\bTOK_[A-Z_]+\b", package))
    assert named <= set(re.findall(r"\bTOK_[A-Z_]+\b", package + scripts))


def test_every_member_of_a_family_is_on_its_page() -> None:
    from tokcli.losses import LOSSES
    from tokcli.methods import METHODS
    from tokcli.metrics import METRICS
    from tokcli.pretrained.teacher import TEACHERS
    from tokcli.proposals import PROPOSALS
    from tokcli.quantizers import QUANTIZERS

    reported = set(METRICS) - {"entropy_bits"}  # the same number as codebook_perplexity on another scale
    reported |= {metric.known_as.name for metric in METRICS.values() if metric.known_as}
    pages = {
        "docs/tokenizers.md": [*METHODS, *TEACHERS, *QUANTIZERS, *LOSSES],
        "docs/proposals.md": PROPOSALS,
        "docs/evaluation.md": reported,
    }
    assert [n for page, names in pages.items() for n in names if f"`{n}`" not in prose(PAGES[page])] == []


def test_the_page_of_keys_is_what_the_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.page() == module.PAGE.read_text(encoding="utf-8"), "run python scripts/reference.py"


def test_every_type_of_image_that_folders_read_is_named() -> None:
    from tokcli.data.sources.listing import IMAGE_EXTENSIONS

    assert [e for e in IMAGE_EXTENSIONS if not re.search(rf"[`\s]\{e}[`\s]", PAGES["docs/data.md"])] == []


def test_the_manifest_is_a_real_one(tmp_path: Path) -> None:
    (text,) = blocks(PAGES["docs/artifacts.md"], "json")
    (tmp_path / "manifest.json").write_text(text)
    manifest = read_manifest(tmp_path, "docs/artifacts.md")
    assert manifest["status"] == "complete"
    assert content_id(manifest) == manifest["id"]  # a changed fact, input or hash has another id


def test_every_room_is_in_contributing() -> None:
    rooms = {p.name + "/" * p.is_dir() for p in (ROOT / "tokcli").iterdir() if p.name[:2] not in ("__", "py")}
    said = set(re.findall(r"`([\w.]+/?)`", "".join(re.findall(r"^\| `.*", DOCS["CONTRIBUTING.md"], re.MULTILINE))))
    assert rooms - said == set()
