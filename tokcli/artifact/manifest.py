"""The manifest of an artifact: what it must hold, the id that follows from it, and the hash that seals it.

Schema 2 records a hash of the manifest itself, and its id covers the parts of the recipe that networks are built from. Schema 1
did neither; it is read, and said to be older.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tokcli.errors import TokError
from tokcli.limits import read_json

SCHEMA = 2


OLDER = 1  # the other schema that is read


SEAL = "sha256"  # key of the hash of all others


MANIFEST = "manifest.json"


RESTORE = "Restore it from a copy, or delete the folder and repeat the command that made it"


KINDS = ("tokenizer", "decoder", "tokens", "proposal", "samples", "statistics", "report", "viz")


def canonical_hash(value: Any) -> str:
    """SHA-256 of a JSON-like value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def seal(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its own hash, as 64 hexadecimal digits."""
    return canonical_hash({key: value for key, value in manifest.items() if key != SEAL})


NO_PART = (
    "max_bad",
    "workers",
    "keep",
)  # keys that say when a command stops, how it reads or what it keeps meanwhile, and change nothing that it makes

# Keys that came later, by their section, with values for what was done before them.
ADDED: Mapping[str, Mapping[str, Any]] = {
    "": {"drawn": None},
    "optim": {"name": "adamw", "muon_lr": None},
    "tokens": {"precision": "float32"},
    "train": {"parallel": "ddp", "eval_extractors": []},
}


def identity(recipe: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """A resolved recipe without what changes no result, and without what says that all is as before."""
    same = ADDED.get(section, {})
    return {
        key: identity(value, key) if isinstance(value, Mapping) else value
        for key, value in recipe.items()
        if key not in NO_PART and not (key in same and value == same[key])
    }


# Sections of recipes that commands build upon.
SECTIONS = tuple(
    "condition decoder encoder feature_decoder gan loss objective proposal quantizer sample teacher".split()
)


# What decides, beside these, what a network is; and keys of samples that change no image.
BUILT = ("method", "grid")
UNSEEN = ("batch_size", "compile", "neighbours", "grid", "shard_size", "format")


def built_from(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a resolved recipe that other commands build upon."""
    found = {key: recipe[key] for key in (*BUILT, *SECTIONS) if key in recipe}
    if isinstance(found.get("sample"), Mapping):
        found["sample"] = {key: value for key, value in found["sample"].items() if key not in UNSEEN}
    if isinstance(recipe.get("data"), Mapping) and "size" in recipe["data"]:
        found["data.size"] = recipe["data"]["size"]
    return found


def content_id(manifest: Mapping[str, Any]) -> str:
    """`<kind>-<12 hex>` over kind, facts, inputs' ids, the payload's hashes and, from schema 2 on, `built_from` the recipe."""
    content = {
        "kind": manifest["kind"],
        "facts": manifest["facts"],
        "inputs": {role: entry["id"] for role, entry in manifest["inputs"].items()},
        "payload": {name: entry["sha256"] for name, entry in manifest["files"].items() if entry["payload"]},
    }
    if manifest["schema"] != OLDER:
        content["recipe"] = built_from(manifest["recipe"])
    return f"{manifest['kind']}-{canonical_hash(content)[:12]}"


def differing_keys(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where two resolved recipes differ, as `optim.lr: 0.001, not 0.002` (a's value, not b's)."""
    found = []
    for key in dict.fromkeys([*a, *b]):
        left, right = a.get(key), b.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += differing_keys(left, right, f"{prefix}{key}.")
        elif left != right:
            found.append(f"{prefix}{key}: {left!r}, not {right!r}")
    return found


def is_inside(name: str) -> bool:
    """Whether a name of a file stays within the folder that it is joined to."""
    return bool(name) and "\0" not in name and not name.startswith("/") and ".." not in name.split("/")


def _damaged_key(manifest: Any) -> str | None:
    if not isinstance(manifest, dict) or type(manifest.get("schema")) is not int:
        return "schema"
    if manifest["schema"] not in (OLDER, SCHEMA):
        return None  # its other keys are not for us to judge
    wanted = {"kind": str, "status": str, "recipe": dict, "inputs": dict, "provenance": dict}
    wanted |= {SEAL: str} if manifest["schema"] == SCHEMA else {}
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
    if not all(map(is_inside, manifest.get("files", {}))):
        return "files"
    fact = wrong_fact(manifest["kind"], manifest.get("facts", {}))
    return fact and f"facts.{fact}"


def read_manifest(path: Path, where: str) -> dict[str, Any]:
    """The manifest in a folder, checked for form and against the hash that it records.

    Raises:
        TokError: no such folder, no manifest, a damaged one, one of another schema, or one that was changed.
    """
    file = path / MANIFEST
    try:
        there = path.is_dir()
    except OSError as error:  # within a folder of somebody else's, or a name that no disk takes
        why = error.strerror or str(error)
        raise TokError(where, "cannot be looked at", why=why, next="Check the path and its permissions") from None
    if not there:
        raise TokError(where, "no such folder", next="Give the path that the command which made the artifact printed")
    if not file.is_file():
        raise TokError(where, "is not an artifact (it holds no manifest.json)", next="Run tok show to list artifacts")
    try:
        manifest = read_json(file)
    except (ValueError, OSError) as error:
        raise TokError(
            str(file), "is damaged", why=str(error), next="Restore it, or repeat with another --out"
        ) from None
    damaged = _damaged_key(manifest)
    if damaged:
        raise TokError(
            str(file), f"is damaged: key '{damaged}' is missing, of a wrong type or out of range", next=RESTORE
        )
    if manifest["schema"] not in (OLDER, SCHEMA):
        raise TokError(
            str(file),
            f"is not of schema {SCHEMA}, which this tok reads",
            got=f"schema {manifest['schema']}",
            next="Read it with the version of tok that made it, or make it again",
        )
    if manifest["schema"] == SCHEMA and seal(manifest) != manifest[SEAL]:
        raise TokError(str(file), "was changed since it was written: its SHA-256 is not the one in it", next=RESTORE)
    return manifest


LARGEST = {"codebook_size": 1 << 32, "code_dim": 1 << 20, "train_size": 1 << 15, "use_size": 1 << 15}
SIDE, MANY = 1 << 12, 1 << 40  # of a grid; of images, rows and the like
NAME = re.compile(r"[^\W_.-][^/\\]*")  # of a tokenizer and of what descends from it: part of folders' names
DIGEST = re.compile(r"[0-9a-f]{64}|random")
NAMED = ("tokenizer", "decoder", "tokens", "proposal", "samples")  # kinds whose name others inherit


def _count(value: Any, most: int, least: int = 1) -> bool:
    return type(value) is int and least <= value <= most


def _all(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(fits, value))


def _name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value.encode()) <= 160 and bool(NAME.fullmatch(value))


def _digest(value: Any) -> bool:
    return value is None or (isinstance(value, str) and DIGEST.fullmatch(value) is not None)


def _teacher(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and _digest(value.get("sha256"))
        and _count(value.get("feature_dim"), LARGEST["code_dim"])
    )


FORMS: dict[str, Callable[[Any], bool]] = {  # of facts that commands build upon, where an artifact has them
    **{key: partial(_count, most=most) for key, most in LARGEST.items()},
    **dict.fromkeys(("number", "per_file", "shards"), lambda v: _count(v, MANY)),
    "rows": lambda v: _count(v, MANY, 0),
    "images": lambda v: v is None or _count(v, MANY, 0),
    **dict.fromkeys(("size", "extractor_size"), lambda v: v is None or _count(v, LARGEST["use_size"])),
    "extractor_sha256": lambda v: v is None or isinstance(v, str),
    "name": lambda v: isinstance(v, str),
    "mode": lambda v: v is None or isinstance(v, str),
    "format": lambda v: v in ("png", "shards"),
    "has_decoder": lambda v: isinstance(v, bool),
    "padding": lambda v: v in ("white", "edge"),
    "grid": lambda v: isinstance(v, list) and len(v) == 2 and all(_count(side, SIDE) for side in v),
    "classes": lambda v: _all(v, lambda name: isinstance(name, str)),
    "class_counts": lambda v: v is None or _all(v, lambda n: _count(n, MANY, 0)),
    "labels": lambda v: _all(v, lambda n: _count(n, MANY, -1)),
    "views": lambda v: bool(v) and _all(v, lambda name: isinstance(name, str)),
    "edit": lambda v: v is None or isinstance(v, dict),
    "text_sha256": _digest,
    "extractor": lambda v: isinstance(v, str),
    "teacher": _teacher,
}


def _lengths(facts: Mapping[str, Any]) -> str | None:
    """The fact whose length or values are not what another one says."""
    classes, labels, counts = facts.get("classes"), facts.get("labels"), facts.get("class_counts")
    if labels is not None and len(labels) != facts.get("number", len(labels)):
        return "labels"
    if labels and classes is not None and max(labels) >= max(1, len(classes)):
        return "labels"
    return "class_counts" if counts is not None and classes is not None and len(counts) != len(classes) else None


def wrong_fact(kind: str, facts: Mapping[str, Any]) -> str | None:
    """The first fact of a manifest that is of a wrong type, out of its range, or not what another one says; None: none."""
    for key, fits in FORMS.items():
        if key in facts and not fits(facts[key]):
            return key
    if kind in NAMED and "name" in facts and not _name(facts["name"]):
        return "name"
    return _lengths(facts)
