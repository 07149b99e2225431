"""docs/fidelity.md against the code: every test it names exists, and every member of the families that it covers has a line."""

import ast
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from test_docs import COMMANDS, blocks, invocations

from tokcli.cli import recipes
from tokcli.metrics import METRICS
from tokcli.pretrained.teacher import TEACHERS
from tokcli.proposals import PROPOSALS
from tokcli.quantizers import QUANTIZERS
from tokcli.recipe.yaml import find_recipe, override, parse_set, read_yaml

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/fidelity.md").read_text(encoding="utf-8")
FAMILIES = {
    "Quantizers": QUANTIZERS, "Teachers": TEACHERS, "Proposal networks and sampling": PROPOSALS, "Metrics": METRICS,
}  # fmt: skip


def rows(page: str) -> Iterator[tuple[str, list[str]]]:
    """(section, cells) of each line that names a test."""
    section = ""
    for line in page.splitlines():
        section = line.removeprefix("## ") if line.startswith("## ") else section
        if line.startswith("|") and "::" in line:
            yield section, [cell.strip() for cell in line.strip("|").split(" | ")]


def functions(file: Path) -> set[str]:
    return {n.name for n in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef)}


ROWS = list(rows(PAGE))
COMPARED = [cells for section, cells in ROWS if section != "Faults that others' code had"]
NAMED = {found for _, cells in ROWS for cell in cells for found in re.findall(r"`(test_\w+\.py)::(test_\w+)`", cell)}


def unlisted(members: Iterable[str], section: str) -> list[str]:
    told = {name for where, cells in ROWS if where == section for name in re.findall(r"`([^`]+)`", cells[0])}
    return [name for name in members if name not in told]


def test_every_line_has_a_source_a_second_formulation_a_test_and_a_tolerance() -> None:
    assert len(COMPARED) > 60 and [cells for cells in COMPARED if len(cells) != 5 or not all(cells)] == []
    assert [cells for cells in COMPARED if "::" not in cells[3]] == []


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_every_test_named_exists(file: str) -> None:
    assert {test for named, test in NAMED if named == file} - functions(ROOT / "tests" / file) == set()


def test_every_fidelity_test_is_named() -> None:
    written = {
        (file.name, name)
        for file in (ROOT / "tests").glob("test_fidelity_*.py")
        for name in functions(file)
        if name.startswith("test_")
    }
    assert written - NAMED == set()


@pytest.mark.parametrize("section", FAMILIES)
def test_every_member_of_a_family_has_a_line(section: str) -> None:
    assert unlisted(FAMILIES[section], section) == []


def test_a_member_without_a_line_would_be_found() -> None:
    assert unlisted(["fsq", "fsqq"], "Quantizers") == ["fsqq"]


COMMAND_LINES = [words for shell in blocks(PAGE, "sh") for words in invocations(shell)]


@pytest.mark.parametrize("words", COMMAND_LINES, ids=lambda words: " ".join(words[:2]))
def test_every_command_line_parses_and_what_it_sets_is_accepted(words: list[str], tmp_path: Path) -> None:
    values = COMMANDS[words[0]].make_context(words[0], list(words[1:])).params
    if values["recipe"]:
        tree = read_yaml(find_recipe(values["recipe"], preset="imagenet", name=""))
        override(tree, parse_set(values["sets"]))
        (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
        recipes.check_file(tmp_path / "recipe.yaml")


def test_command_lines_were_found() -> None:
    assert [words[0] for words in COMMAND_LINES] == ["import", "eval", "import", "eval"]


def test_scripts_named_exist() -> None:
    assert [name for name in re.findall(r"\bscripts/\w+\.py", PAGE) if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_the_page_is_linked(name: str) -> None:
    assert "](docs/fidelity.md)" in (ROOT / name).read_text(encoding="utf-8")
