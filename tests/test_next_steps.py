"""What an error tells the user to type exists: commands, flags, keys of recipes, extras, scripts."""

import ast
import configparser
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_docs import COMMANDS, FLAGS, LEAVES, ROOT
from test_errors import FILES, texts

from tokcli.cli import cli

OTHERS = {"--save-stats", "--force-reinstall", "--toy"}  # of pytorch_fid, of pip, of a script
BUILT = configparser.ConfigParser()
BUILT.read(ROOT / "setup.cfg", encoding="utf-8")
EXTRAS = dict(BUILT["options.extras_require"])
REQUIRED = "\n".join([BUILT["options"]["install_requires"], *EXTRAS.values()])
# requirements, and what is no requirement: peers and reference code
PACKAGES = {*re.findall(r"^[\w-]+", REQUIRED, re.MULTILINE), "lpips", "prdc", "vector-quantize-pytorch"}


def recipe_keys() -> dict[str, set[str]]:
    """Keys by section, of all components that the section may name: `quantizer` has those of `quantizer.vq` and `quantizer.fsq`."""
    found: dict[str, set[str]] = {}
    for heading, key in re.findall(r"^#+ ([a-z0-9_.-]+)$|^\| `(\w+)` \|", PAGE, re.MULTILINE):
        if heading:
            parts = heading.split(".")
            here = found.setdefault(parts[0], {"name"})
            here |= set(parts[1:2])
        else:
            here.add(key)
    return found


PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
KEYS = recipe_keys()


def wrong(text: str) -> Iterator[str]:
    """What a text names that is not there."""
    for one, two in re.findall(r"\btok ([a-z][a-z-]+)(?: ([a-z]+))?", text):
        if one not in COMMANDS and one not in ("command", "that") and f"{one} {two}" not in LEAVES:
            yield f"tok {one}"
        elif one == "data" and f"data {two}" not in LEAVES:
            yield f"tok data {two}"
        known = {flag for param in LEAVES.get(one, cli).params for flag in param.opts}
        for flag in re.findall(rf"\btok {one} (--[a-z][\w-]+)", text):
            if flag not in known:
                yield f"tok {one} {flag}"
    yield from set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text)) - FLAGS - OTHERS
    for section, key in re.findall(r"(?<![\w./])([a-z_]+)\.(?:[a-z_]+\.)*([a-z_]+)\b", text):
        if section in KEYS and key not in KEYS[section] | {"yaml"}:
            yield f"{section}.{key}"
    for package, extra in re.findall(r"""\bpip install (?:--[\w-]+ )?['"]?([\w.-]+)(?:\[(\w+)\])?""", text):
        if not (package in PACKAGES if not extra else package == "tokcli" and extra in EXTRAS):
            yield f"{package}[{extra}]" if extra else package
    for script in re.findall(r"\bscripts/[\w.]+\w", text):
        if not (ROOT / script).is_file():
            yield script


def steps(file: Path) -> Iterator[str]:
    """The next steps of a file's errors, and every text that names a package or a script."""
    module = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(module):
        if isinstance(node, ast.keyword) and node.arg == "next":
            yield from (text for text, _ in texts(node.value, module))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"pip install (?:--\S+ )?\S+|scripts/\S+\.\w+", node.value)


def test_what_errors_tell_to_type_is_there() -> None:
    told = {str(file.relative_to(ROOT)): {one for text in steps(file) for one in wrong(text)} for file in FILES}
    assert {file: found for file, found in told.items() if found} == {}
    assert sum(len(list(steps(file))) for file in FILES) > 300


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Run tok recepies to list them", ["tok recepies"]),
        ("Run tok data verify", ["tok data verify"]),
        ("Give --promts FILE", ["--promts"]),
        ("Set data.max_worse to 1", ["data.max_worse"]),
        ("Run tok eval --prompts FILE", ["tok eval --prompts"]),
        ("Set gan.batch_size", ["gan.batch_size"]),
        ("Run pip install 'tok[stores]'", ["tok[stores]"]),
        ('Run pip install "tok[stores]"', ["tok[stores]"]),
        ("Run pip install tok", ["tok"]),
        ("Run pip install 'tokcli[shops]'", ["tokcli[shops]"]),
        ("Run python scripts/fetch.py vits14", ["scripts/fetch.py"]),
        ("Run tok data check, or set gan.discriminator.depth; pip install 'tokcli[demo]'", []),
    ],
)
def test_what_is_not_there_would_be_found(text: str, found: list[str]) -> None:
    assert list(wrong(text)) == found
