"""The manifest of an artifact: what it must hold, and the id that follows from it."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokcli.errors import TokError

SCHEMA = 1


MANIFEST = "manifest.json"


RESTORE = "Restore it from a copy, or delete the folder and repeat the command that made it"


KINDS = ("tokenizer", "decoder", "tokens", "proposal", "samples", "statistics", "report", "viz")


def canonical_hash(value: Any) -> str:
    """SHA-256 of a JSON-like value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


TOLERANCES = ("max_bad",)  # keys that say when a command stops, and change nothing that it makes

ADDED = {"optim": {"name": "adamw", "muon_lr": None}}  # keys that came later, with values for what was done before them


def identity(recipe: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """A resolved recipe without what changes no result, and without what says that all is as before."""
    same = ADDED.get(section, {})
    return {
        key: identity(value, key) if isinstance(value, Mapping) else value
        for key, value in recipe.items()
        if key not in TOLERANCES and not (key in same and value == same[key])
    }


def content_id(manifest: Mapping[str, Any]) -> str:
    """`<kind>-<12 hex>` over kind, facts, inputs' ids and the payload's hashes."""
    content = {
        "kind": manifest["kind"],
        "facts": manifest["facts"],
        "inputs": {role: entry["id"] for role, entry in manifest["inputs"].items()},
        "payload": {name: entry["sha256"] for name, entry in manifest["files"].items() if entry["payload"]},
    }
    return f"{manifest['kind']}-{canonical_hash(content)[:12]}"


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


FORMS: dict[str, Callable[[Any], bool]] = {  # of facts that commands build upon, where an artifact has them
    **dict.fromkeys(("codebook_size", "code_dim", "train_size", "use_size"), _is_count),
    "name": lambda v: isinstance(v, str),
    "has_decoder": lambda v: isinstance(v, bool),
    "grid": lambda v: isinstance(v, list) and len(v) == 2 and all(map(_is_count, v)),
    "classes": lambda v: isinstance(v, list) and all(isinstance(name, str) for name in v),
    "teacher": lambda v: v is None or isinstance(v, dict),
}


# Sections of recipes that commands build upon.
SECTIONS = ("condition", "decoder", "encoder", "gan", "loss", "proposal", "quantizer", "sample", "teacher")


def _damaged_key(manifest: Any) -> str | None:
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema"), int):
        return "schema"
    if manifest["schema"] != SCHEMA:
        return None  # its other keys are not for us to judge
    wanted = {"kind": str, "status": str, "recipe": dict, "inputs": dict, "provenance": dict}
    if manifest.get("status") == "complete":
        wanted |= {"id": str, "facts": dict, "files": dict, "metrics": dict}
    entries: dict[str, dict[str, type]] = {
        "inputs": {"id": str, "path": str},
        "files": {"sha256": str, "bytes": int, "payload": bool},
    }
    for key, kind in wanted.items():
        if not isinstance(manifest.get(key), kind):
            return key
        for entry in manifest[key].values() if key in entries else ():
            if not isinstance(entry, dict) or not all(isinstance(entry.get(k), t) for k, t in entries[key].items()):
                return key
    for key in SECTIONS:
        if not isinstance(manifest["recipe"].get(key), dict | None):
            return f"recipe.{key}"
    command = manifest["provenance"].get("command", [])
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        return "provenance.command"
    facts = manifest.get("facts", {})
    return next((f"facts.{key}" for key, fits in FORMS.items() if key in facts and not fits(facts[key])), None)


def read_manifest(path: Path, where: str) -> dict[str, Any]:
    """The manifest in a folder, checked for form.

    Raises:
        TokError: no such folder, no manifest, a damaged one, or one of another schema.
    """
    file = path / MANIFEST
    if not path.is_dir():
        raise TokError(where, "no such folder")
    if not file.is_file():
        raise TokError(where, "is not an artifact (it holds no manifest.json)", next="Run tok show to list artifacts")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise TokError(
            str(file), "is damaged", why=str(error), next="Restore it, or repeat with another --out"
        ) from None
    damaged = _damaged_key(manifest)
    if damaged:
        raise TokError(str(file), f"is damaged: key '{damaged}' is missing or of a wrong type")
    if manifest["schema"] != SCHEMA:
        raise TokError(
            str(file), f"is not of schema {SCHEMA}, which this tok reads", got=f"schema {manifest['schema']}"
        )
    return manifest
