"""Artifacts: folders with a manifest, named by their content, whole or marked as running.

A reader sees complete artifacts only. A writer holds a `Draft`: it locks the folder, marks it as running, and completes it
by replacing the manifest in one atomic step. Repeating the command finds the draft again and resumes it.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tokcli.errors import TokError
from tokcli.weights import disk_error, sha256, write_text

SCHEMA = 1
MANIFEST = "manifest.json"
KINDS = ("tokenizer", "decoder", "tokens", "proposal", "samples", "report", "viz")


def canonical_hash(value: Any) -> str:
    """SHA-256 of a JSON-like value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Artifact:
    """A complete artifact on disk: its folder and its manifest."""

    path: Path
    manifest: Mapping[str, Any]
    _verified: set[str] = field(default_factory=set, compare=False, repr=False)

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return str(self.manifest["kind"])

    @property
    def id(self) -> str:
        """`<kind>-<12 hex>`, a hash of kind, facts, inputs' ids and payload."""
        return str(self.manifest["id"])

    @property
    def facts(self) -> Mapping[str, Any]:
        """What consumers may rely on: codebook size, grid, data set, ..."""
        facts: Mapping[str, Any] = self.manifest["facts"]
        return facts

    @property
    def inputs(self) -> Mapping[str, Mapping[str, str]]:
        """role -> {id, path}; the path is a hint."""
        inputs: Mapping[str, Mapping[str, str]] = self.manifest["inputs"]
        return inputs

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The resolved recipe that made it."""
        recipe: Mapping[str, Any] = self.manifest["recipe"]
        return recipe

    def input_id(self, role: str) -> str | None:
        """The id of the input in that role, or of the artifact itself where the role is its own kind."""
        if role == self.kind:
            return self.id
        return self.inputs[role]["id"] if role in self.inputs else None

    def file(self, name: str) -> Path:
        """The path of a file of this artifact, its SHA-256 checked once per process.

        Raises:
            TokError: the file is not listed, missing, or not the one that was written.
        """
        path = self.path / name
        entry = self.manifest["files"].get(name)
        if entry is None:
            raise TokError(str(path), "is not part of this artifact", got=f"kind {self.kind}")
        if name not in self._verified:
            if not path.is_file() or path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
                raise TokError(
                    str(path),
                    "is damaged: its SHA-256 is not the one in the manifest",
                    next="restore it from a copy, or delete the folder and repeat the command that made it",
                )
            self._verified.add(name)
        return path


def _damaged_key(manifest: Any) -> str | None:
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema"), int):
        return "schema"
    if manifest["schema"] != SCHEMA:
        return None  # its other keys are not for us to judge
    wanted = {"kind": str, "status": str, "recipe": dict, "inputs": dict, "provenance": dict}
    if manifest.get("status") == "complete":
        wanted |= {"id": str, "facts": dict, "files": dict}
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
    return None


def read_manifest(path: Path, where: str) -> dict[str, Any]:
    """The manifest in a folder, checked for form.

    Raises:
        TokError: no such folder, no manifest, a damaged one, or one of another schema.
    """
    file = path / MANIFEST
    if not path.is_dir():
        raise TokError(where, "no such folder")
    if not file.is_file():
        raise TokError(where, "is not an artifact (it holds no manifest.json)", next="tok show lists artifacts")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise TokError(
            str(file), "is damaged", got=str(error), next="restore it, or repeat with another --out"
        ) from None
    damaged = _damaged_key(manifest)
    if damaged:
        raise TokError(str(file), f"is damaged: key '{damaged}' is missing or of a wrong type")
    if manifest["schema"] != SCHEMA:
        raise TokError(str(file), f"was written in schema {manifest['schema']}", got=f"this tok reads schema {SCHEMA}")
    return manifest


def open_artifact(path: str | Path, flag: str = "", kinds: Iterable[str] = KINDS) -> Artifact:
    """Open a complete artifact.

    Args:
        path: its folder.
        flag: the flag that named it, for messages.
        kinds: which kinds are wanted there.

    Raises:
        TokError: missing, damaged, still running, or of another kind.
    """
    path, kinds = Path(path), tuple(kinds)
    where = f"{flag} {path}".strip()
    manifest = read_manifest(path, where)
    if manifest["kind"] not in kinds:
        raise TokError(where, f"is a {manifest['kind']}", got=f"wanted: a {' or a '.join(kinds)}")
    if manifest["status"] != "complete":
        command = " ".join(manifest.get("provenance", {}).get("command", []))
        raise TokError(where, "is not complete yet", next=f"repeat the command that makes it: {command}")
    if content_id(manifest) != manifest["id"]:
        raise TokError(
            str(path / MANIFEST), "facts or inputs were changed: the id does not match", got=manifest["id"],
            next="restore it from a copy, or delete the folder and repeat the command that made it",
        )  # fmt: skip
    return Artifact(path, manifest)


def scan(workspace: Path) -> list[Artifact]:
    """All complete artifacts in a workspace, sorted by folder name; anything else there is passed over."""
    found = []
    for file in sorted(workspace.glob(f"*/{MANIFEST}")):
        with contextlib.suppress(TokError):
            found.append(open_artifact(file.parent))
    return found


def locate(wanted: str, hint: str | None, near: Path) -> Artifact:
    """Find an input by its id: at the recorded path, else among the folders beside `near`.

    Raises:
        TokError: no complete artifact of that id is there.
    """
    for path in [Path(hint)] if hint else []:
        with contextlib.suppress(TokError):
            artifact = open_artifact(path)
            if artifact.id == wanted:
                return artifact
    for artifact in scan(near):
        if artifact.id == wanted:
            return artifact
    raise TokError(
        wanted,
        f"this input is not at {hint or 'its recorded path'} nor in {near}",
        next="bring it back, or name it by its flag",
    )


def check_lineage(a: Artifact, flag_a: str, b: Artifact, flag_b: str, role: str = "tokenizer") -> None:
    """Refuse two artifacts that come from different ones in `role`.

    Raises:
        TokError: naming both.
    """
    left, right = a.input_id(role), b.input_id(role)
    if left != right:
        raise TokError(
            f"{flag_a} {a.path}",
            f"made for {left}, but {flag_b} {b.path} speaks {right}",
            next=f"use two that share a {role}",
        )


class Draft:
    """A folder being written. Only one process writes it; readers do not see it."""

    def __init__(self, path: Path, manifest: dict[str, Any], lock: IO[str] | None, resumed: bool) -> None:
        self.path, self.manifest, self.resumed, self._lock = path, manifest, resumed, lock

    def finish(
        self,
        facts: Mapping[str, Any],
        *,
        payload: Iterable[str],
        extras: Iterable[str] = (),
        metrics: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Complete the artifact: hash its files, give it its id, replace the manifest.

        Args:
            facts: what consumers rely on; part of the id.
            payload: files whose content is part of the id.
            extras: files listed with their hashes that stay out of the id (logs, pictures).
            metrics: numbers measured on the way, outside the id.
            provenance: how it was made, outside the id.
        """
        payload = sorted(payload)
        files = {
            name: {
                "sha256": sha256(self.path / name),
                "bytes": (self.path / name).stat().st_size,
                "payload": name in payload,
            }
            for name in [*payload, *sorted(extras)]
        }
        self.manifest |= {"facts": json.loads(json.dumps(facts)), "files": files, "status": "complete"}
        self.manifest["metrics"] = dict(metrics or {})
        self.manifest["provenance"] |= dict(provenance or {})
        self.manifest["id"] = content_id(self.manifest)
        write_manifest(self.path, self.manifest)
        self.close()
        return Artifact(self.path, self.manifest)

    def close(self) -> None:
        """Release the lock; the folder stays as it is."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def write_listing(folder: Path, name: str, files: Iterable[str]) -> None:
    """Write `name`, a sha256sum list of many files, so that the manifest need not name each."""
    lines = [f"{sha256(folder / file)}  {file}" for file in sorted(files)]
    write_text(folder / name, "".join(line + "\n" for line in lines))


def content_id(manifest: Mapping[str, Any]) -> str:
    """`<kind>-<12 hex>` over kind, facts, inputs' ids and the payload's hashes."""
    content = {
        "kind": manifest["kind"],
        "facts": manifest["facts"],
        "inputs": {role: entry["id"] for role, entry in manifest["inputs"].items()},
        "payload": {name: entry["sha256"] for name, entry in manifest["files"].items() if entry["payload"]},
    }
    return f"{manifest['kind']}-{canonical_hash(content)[:12]}"


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Replace a folder's manifest atomically."""
    order = ["schema", "kind", "id", "status", "facts", "metrics", "inputs", "files", "recipe", "provenance"]
    ordered = {key: manifest[key] for key in order if key in manifest}
    write_text(path / MANIFEST, json.dumps(ordered, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def locked(path: Path, name: str = ".lock") -> Iterator[bool]:
    """Try to hold a lock file in a folder; yields whether it was got. The kernel drops it with the process."""
    with open(path / name, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def _take_lock(path: Path) -> IO[str]:
    file = open(path / ".lock", "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise TokError(
            str(path), f"is being written by {holder}", next="wait for it, or choose another --out"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}")
    file.flush()
    return file


def begin(
    path: Path,
    kind: str,
    recipe: Mapping[str, Any],
    inputs: Mapping[str, Mapping[str, str]],
    provenance: Mapping[str, Any],
    *,
    exclusive: bool = True,
) -> Draft | Artifact:
    """Start, resume or find an artifact.

    Args:
        path: the folder (`--out`).
        kind: what will be written.
        recipe: the resolved recipe.
        inputs: role -> {id, path}.
        provenance: how it is made.
        exclusive: hold the folder's lock; bulk commands lock shard by shard instead.

    Returns:
        The complete artifact where the same command finished here before, else a draft (`resumed` says which).

    Raises:
        TokError: the folder holds something else, was started by another recipe or inputs, is locked, or cannot be written.
    """
    where = f"--out {path}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        occupied = any(not entry.name.startswith(".") for entry in path.iterdir())
        if occupied and not (path / MANIFEST).exists():
            raise TokError(where, "is not empty and not an artifact", next="choose another folder")
        # the lock comes before the manifest is read: whoever holds it may be about to replace it
        lock = _take_lock(path) if exclusive and os.access(path, os.W_OK) else None
    except OSError as error:
        raise disk_error(path, error) from None
    try:
        if (path / MANIFEST).exists():
            manifest = read_manifest(path, where)
            _refuse_changes(where, manifest, kind, recipe, inputs)
            if manifest["status"] == "complete":
                if lock:
                    lock.close()
                return open_artifact(path)
            _remove_stale(path, exclusive)
            return Draft(path, manifest, lock, resumed=True)
        manifest = {
            "schema": SCHEMA, "kind": kind, "status": "running", "inputs": {r: dict(i) for r, i in inputs.items()},
            "recipe": dict(recipe), "provenance": dict(provenance),
        }  # fmt: skip
        write_manifest(path, manifest)
        return Draft(path, manifest, lock, resumed=False)
    except BaseException:
        if lock:
            lock.close()
        raise


def _remove_stale(path: Path, exclusive: bool) -> None:
    if exclusive:  # nobody else writes here, so temporary files are those of a killed process
        for tmp in path.glob(".*.tmp"):
            tmp.unlink(missing_ok=True)


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


def _refuse_changes(
    where: str,
    manifest: Mapping[str, Any],
    kind: str,
    recipe: Mapping[str, Any],
    inputs: Mapping[str, Mapping[str, str]],
) -> None:
    if manifest["kind"] != kind:
        raise TokError(
            where, f"holds a {manifest['kind']}", got=f"this command writes a {kind}", next="choose another --out"
        )
    changed = differing_keys(manifest["recipe"], recipe)
    old = {role: entry["id"] for role, entry in manifest["inputs"].items()}
    new = {role: entry["id"] for role, entry in inputs.items()}
    changed += differing_keys(old, new, "inputs.")
    if changed:
        raise TokError(
            where,
            "was made by another recipe or other inputs",
            got="; ".join(changed),
            next="choose another --out, or leave it out",
        )
