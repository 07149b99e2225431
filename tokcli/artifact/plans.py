"""Plans: what a dry run says, and what the dry runs after it read where a run reads an artifact.

A plan is one JSON document. It has kind, facts, inputs and recipe, as the manifest of the finished artifact would have them,
but no files; a fact that only the run finds out is null.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokcli.artifact.manifest import FORMS, KINDS, canonical_hash
from tokcli.artifact.opening import Artifact
from tokcli.errors import TokError
from tokcli.limits import read_json

SCHEMA = 1
AGAIN = "Make it again: the command with --dry-run --json"


@dataclass(frozen=True)
class Plan:
    """What a dry run says.

    Args:
        document: for later dry runs and scripts; see `plan_document`.
        text: the same for people, made when it is asked for, for it may time a step.
    """

    document: dict[str, Any]
    text: Callable[[], str]


class _Facts(dict[str, Any]):
    """The facts of a plan; one that it does not have was not known to the dry run that made it."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise TokError(str(self._path), f"the plan does not say '{key}'", next="Plan it from its own inputs")


@dataclass(frozen=True)
class Planned(Artifact):
    """An artifact that a dry run described: the path is the plan's file, and there are no others."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """As of an artifact; None where only the run finds it out."""
        return _Facts(self.path, self.manifest["facts"])

    @property
    def class_count(self) -> int | None:
        """How many classes there are; None where nobody knows."""
        classes = self.facts["classes"]
        return len(classes) if isinstance(classes, list) else classes

    def file(self, name: str) -> Path:
        """There is none.

        Raises:
            TokError: always.
        """
        raise TokError(
            str(self.path),
            f"is a plan and holds no {name}",
            next="Run the command without --dry-run, and give what it prints",
        )


def plan_id(document: Mapping[str, Any]) -> str:
    """`<kind>-plan-<12 hex>` over kind, facts, recipe and inputs' ids."""
    inputs = {role: entry["id"] for role, entry in document["inputs"].items()}
    content = [document["kind"], document["facts"], document["recipe"], inputs]
    return f"{document['kind']}-plan-{canonical_hash(content)[:12]}"


def plan_document(
    kind: str, facts: Mapping[str, Any], recipe: Mapping[str, Any], inputs: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """A plan as plain JSON values, with its id; the arguments are those of the manifest."""
    content = {"kind": kind, "facts": dict(facts), "recipe": dict(recipe), "inputs": dict(inputs)}
    document: dict[str, Any] = {"plan": SCHEMA, **json.loads(json.dumps(content))}
    return {"plan": SCHEMA, "kind": kind, "id": plan_id(document), **document}


def _fits(key: str, value: Any) -> bool:
    return value is None or FORMS[key](value) or (key == "classes" and type(value) is int and value >= 0)


def read_plan(path: Path, flag: str, kinds: Iterable[str] = KINDS) -> Planned | None:
    """The plan in a file; None where it is something else.

    Args:
        path: of the file.
        flag: that named it, for messages.
        kinds: which kinds are wanted there.

    Raises:
        TokError: of another kind or schema, damaged or changed.
    """
    where, kinds = f"{flag} {path}".strip(), tuple(kinds)
    try:
        document = read_json(path)
    except ValueError:
        return None
    if not isinstance(document, dict) or "plan" not in document:
        return None
    if document["plan"] != SCHEMA:
        raise TokError(
            where,
            f"is not a plan of schema {SCHEMA}, which this tok reads",
            got=f"schema {document['plan']}",
            next=AGAIN,
        )
    wanted = {"kind": str, "id": str, "facts": dict, "recipe": dict, "inputs": dict}
    damaged = [key for key, kind in wanted.items() if not isinstance(document.get(key), kind)]
    if not damaged:
        entries = document["inputs"].values()
        damaged += ["inputs"] * any(not isinstance(e, dict) or not {"id", "path"} <= e.keys() for e in entries)
        damaged += [f"facts.{k}" for k in FORMS if k in document["facts"] and not _fits(k, document["facts"][k])]
    if damaged:
        raise TokError(where, f"is a damaged plan: key '{damaged[0]}' is missing or of a wrong type", next=AGAIN)
    if document["kind"] not in kinds:
        raise TokError(
            where, f"is not of kind {' or '.join(kinds)}", got=document["kind"], next="Give the plan of another command"
        )
    if plan_id(document) != document["id"]:
        raise TokError(where, "the plan was changed: its id does not match", got=document["id"], next=AGAIN)
    return Planned(path, document)


def open_planned(path: Path, flag: str, kinds: Iterable[str], *, dry_run: bool) -> Planned | None:
    """The plan that a flag names, for a dry run; None where the flag names something else.

    Raises:
        TokError: see `read_plan`; or this is no dry run.
    """
    if path.is_dir() or not path.exists():
        return None
    found = read_plan(path, flag, kinds)
    if found is not None and not dry_run:
        raise TokError(
            f"{flag} {path}".strip(),
            "is a plan, which only dry runs read",
            next="Name the artifact's folder, or add --dry-run",
        )
    return found
