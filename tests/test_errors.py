"""Every error in the package has one form: `where: what. Got X. Next step.`"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokcli import errors
from tokcli.errors import TokError

PACKAGE = Path(errors.__file__).parent
FILES = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "scripts").glob("*.py")]
CLASSES = {"TokError", "Misuse", "NotFound", "Interrupted", "NpyError"}
NO_VERBS = "A|An|All|Each|For|How|It|Its|Known|Often|Only|Settings|The|There|They|This|Those|What|Which|With"
QUESTION = re.compile(r"^(Did|Is|Are|Was) ")
STEP = re.compile(rf"^(?!({NO_VERBS})\b)[A-Z][a-z]+\b")


def texts(node: ast.expr, module: ast.Module) -> Iterator[tuple[str, bool]]:
    """The literal beginnings that an argument may have, and whether each is the whole text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value, True
    elif isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
        yield "".join(map(str, parts)), True
    elif isinstance(node, ast.BinOp):
        for text, _ in texts(node.left, module):
            yield text, False
    elif isinstance(node, ast.IfExp):
        yield from texts(node.body, module)
        yield from texts(node.orelse, module)
    elif isinstance(node, ast.Name):
        for other in ast.walk(module):
            if isinstance(other, ast.Assign) and ast.unparse(other.targets[0]) == node.id:
                yield from texts(other.value, module)


def faults(source: str) -> list[str]:
    """What is wrong with the errors of a module, with their lines."""
    module, found = ast.parse(source), []
    for call in (node for node in ast.walk(module) if isinstance(node, ast.Call)):
        given = {key.arg: key.value for key in call.keywords}
        if getattr(call.func, "id", getattr(call.func, "attr", "")) in CLASSES:
            arguments = {"what": call.args[1] if len(call.args) > 1 else given.get("what"), "got": given.get("got")}
            if {"next", None}.isdisjoint(given) and getattr(call.func, "id", "") != "NpyError":  # which has one
                found.append(f"{call.lineno}: no next step")
            for name, node in arguments.items():
                for text, whole in texts(node, module) if node else ():
                    if re.search(r"\b[Gg]ot\b", text):
                        found.append(f"{call.lineno}: {name} says got: {text}")
                    if whole and name == "what" and re.search(r"\.($| [A-Z])", text):
                        found.append(f"{call.lineno}: what is more than a clause: {text}")
        for text, _ in texts(given["next"], module) if "next" in given else ():
            if not text.startswith("{}") and not STEP.match(text) and not QUESTION.match(text):
                found.append(f"{call.lineno}: next is no step: {text}")
    return found


@pytest.mark.parametrize("file", sorted(FILES), ids=lambda f: str(f.relative_to(PACKAGE.parent)))
def test_errors_have_one_form(file: Path) -> None:
    assert faults(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        ('TokError("x", "must be 1", got=f"Got {n}", next="Leave it out")', "got says got"),
        ('TokError("x", "must be 1, got 2", next="Leave it out")', "what says got"),
        ('TokError("x", "must be 1.", next="Leave it out")', "what is more than a clause"),
        ('TokError("x", "must be 1", got="2")', "no next step"),
        ('TokError("x", "must be 1", next="")', "next is no step"),
        ('Misuse("x", "must be 1", next="leave it out")', "next is no step"),
        ('NotFound("x", "is none", next=a if b else "--data DIR")', "next is no step"),
        ('hint = "Known: a"\nTokError("x", "is none", next=hint)', "next is no step"),
    ],
)
def test_another_form_would_be_found(call: str, wrong: str) -> None:
    (found,) = faults(call)
    assert wrong in found


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"next": "Set it"}, "x: must be 1. Set it."),
        ({"why": "disk full", "next": "Free some"}, "x: must be 1: disk full. Free some."),
        ({"got": "2", "next": "Did you mean 'y'?"}, "x: must be 1. Got 2. Did you mean 'y'?"),
        ({"got": "a\nb", "next": "Set it"}, "x: must be 1. Got a\\nb. Set it."),
    ],
)
def test_an_error_is_one_line_of_sentences(keys: dict[str, str], text: str) -> None:
    assert str(TokError("x", "must be 1", **keys)) == text
