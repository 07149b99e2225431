"""The result pages against the recipes: published figures are those of the eval recipe, rows are those of the suite."""

import re
from pathlib import Path

import pytest

from tokcli.evaluation.aims import PAPER, TABLES
from tokcli.recipe.yaml import read_yaml

ROOT = Path(__file__).parent.parent
COLUMNS = {suite: [column.what.name for column in PAPER if suite in column.tables] for suite in TABLES}


@pytest.mark.parametrize("suite", COLUMNS)
def test_published_figures_of_the_page_are_those_of_the_recipe(suite: str) -> None:
    text = (ROOT / "docs" / "results" / f"{suite}.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w -]+) \| published \|(.*)\|$", text, re.MULTILINE)
    found = {}
    for name, cells in rows:
        values = [float(cell) for cell in cells.split("|") if cell.strip()]
        found[name.lower().replace("vq-kd ", "vqkd-")] = dict(
            zip(COLUMNS[suite], [values[0] / 100, *values[1:]], strict=True)
        )
    published = read_yaml(ROOT / "recipes" / suite / "eval.yaml")["eval"]["published"]["rows"]
    assert {name: pytest.approx(row) for name, row in published.items()} == found


@pytest.mark.parametrize("suite", COLUMNS)
def test_every_variable_of_the_page_is_one_of_the_script(suite: str) -> None:
    text = (ROOT / "docs" / "results" / f"{suite}.md").read_text(encoding="utf-8")
    script = (ROOT / "scripts" / "benchmark.sh").read_text(encoding="utf-8")
    named = set(re.findall(r"\bTOK_[A-Z_]+\b", text))
    assert named and named <= set(re.findall(r"\bTOK_[A-Z_]+\b", script))


@pytest.mark.parametrize("suite", COLUMNS)
def test_the_page_says_what_each_row_costs(suite: str) -> None:
    text = (ROOT / "docs" / "results" / f"{suite}.md").read_text(encoding="utf-8").split("## What it costs")[1]
    methods = {"vqgan", "fsq", *(f"{m}-{t}" for m in ("vqkd", "cluster") for t in ("clip", "vit", "dino", "mae"))}
    rows = dict(re.findall(r"^\| ([\w-]+) \|(.*)\|$", text, re.MULTILINE))
    for name in methods:
        *parts, whole = (float(cell) for cell in rows[name].split("|")[:7] if cell.strip() != "-")
        assert sum(parts) == pytest.approx(whole, abs=0.1)
