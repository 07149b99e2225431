"""Drafts: artifacts being written.

A writer holds a `Draft`: it locks the folder, marks it as running, and completes it by replacing the manifest in one atomic
step. Repeating the command finds the draft again and resumes it.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from tokcli.artifact.manifest import MANIFEST, SCHEMA, SEAL, content_id, differing_keys, identity, read_manifest, seal
from tokcli.artifact.opening import Artifact, open_artifact
from tokcli.errors import Interrupted, TokError
from tokcli.files import disk_error, locked, sha256, write_text
from tokcli.progress import passing

log = logging.getLogger("tok")


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
        for tmp in self.path.glob("**/.*.tmp"):  # of a killed process
            tmp.unlink(missing_ok=True)
        payload = sorted(payload)
        files = {
            name: {
                "sha256": sha256(self.path / name),
                "bytes": (self.path / name).stat().st_size,
                "payload": name in payload,
            }
            for name in [*payload, *sorted(extras)]
        }
        self.manifest |= {
            "schema": SCHEMA,
            "facts": json.loads(json.dumps(facts)),
            "files": files,
            "status": "complete",
        }
        self.manifest["metrics"] = dict(metrics or {})
        self.manifest["provenance"] |= dict(provenance or {})
        self.manifest["id"] = content_id(self.manifest)
        self.manifest = write_manifest(self.path, self.manifest)
        self.close()
        return Artifact(self.path, self.manifest)

    def close(self) -> None:
        """Release the lock; the folder stays as it is."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        _begun.discard(self)


_begun: weakref.WeakSet[Draft] = weakref.WeakSet()  # that this process locks, and nobody waits for


@contextlib.contextmanager
def removed_if_refused() -> Iterator[None]:
    """Release the folders that were begun within, whatever ends it; remove those in which nothing was made, where that is a refusal."""
    before = set(_begun)
    try:
        yield
    except BaseException as error:
        for draft in set(_begun) - before:
            if isinstance(error, TokError) and not isinstance(error, Interrupted):
                remove_untouched(draft.path)
            draft.close()
        raise


def remove_untouched(path: Path) -> None:
    """Remove a folder in which nothing was made since it was begun."""
    log_file = path / "log.jsonl"
    if _untouched(path) and not (log_file.exists() and log_file.stat().st_size):
        shutil.rmtree(path, ignore_errors=True)


def write_listing(folder: Path, name: str, files: Iterable[str]) -> None:
    """Write `name`, a sha256sum list of many files, so that the manifest need not name each."""
    files = sorted(files)
    hashed = passing(files, len(files), unit="file", desc="hashes")
    lines = [f"{sha256(folder / file)}  {file}" for file in hashed]
    write_text(folder / name, "".join(line + "\n" for line in lines))


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Replace a folder's manifest atomically, with the hash that seals it; returns what was written."""
    order = ["schema", "kind", "id", "status", "facts", "metrics", "inputs", "files", "recipe", "provenance"]
    written: dict[str, Any] = json.loads(json.dumps({key: manifest[key] for key in order if key in manifest}))
    if written["schema"] == SCHEMA:
        written[SEAL] = seal(written)
    text = json.dumps(written, indent=2, ensure_ascii=False)
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        text = json.dumps(written, indent=2)  # a path that is not UTF-8: escapes bring it back whole
    write_text(path / MANIFEST, text + "\n")
    return written


def _take_lock(path: Path, wait: bool) -> IO[str]:
    file = open(path / ".lock", "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        if not wait:
            file.close()
            raise TokError(
                str(path), f"is being written by {holder}", next="Wait for it, or choose another --out"
            ) from None
        log.info("%s is being written by %s: waiting for it", path, holder)
        fcntl.flock(file, fcntl.LOCK_EX)
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
    wait: bool = False,
    settled: Mapping[str, Any] | None = None,
) -> Draft | Artifact:
    """Start, resume or find an artifact.

    Args:
        path: the folder (`--out`).
        kind: what will be written.
        recipe: the resolved recipe.
        inputs: role -> {id, path}.
        provenance: how it is made.
        exclusive: hold the folder's lock; bulk commands lock shard by shard instead.
        wait: for another process that holds the lock, since it makes the very same; else that is an error.
        settled: dotted keys of the recipe, with their values, for which earlier versions recorded null.

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
            raise TokError(where, "is not empty and not an artifact", next="Choose another folder")
        # the lock comes before the manifest is read: whoever holds it may be about to replace it
        lock = _take_lock(path, wait) if exclusive and os.access(path, os.W_OK) else None
    except OSError as error:
        raise disk_error(path, error) from None
    started: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": kind,
        "status": "running",
        "inputs": {r: dict(i) for r, i in inputs.items()},
        "recipe": dict(recipe),
        "provenance": dict(provenance),
    }
    try:
        with contextlib.nullcontext() if exclusive or not os.access(path, os.W_OK) else _one_after_another(path):
            if (path / MANIFEST).exists():
                manifest = read_manifest(path, where)
                if lock and manifest["kind"] == kind and manifest["status"] == "running" and _untouched(path):
                    manifest = started
                    write_manifest(path, manifest)  # a command that failed at its start holds nothing to protect
                _refuse_changes(where, manifest, kind, recipe, inputs, settled or {})
                if manifest["status"] == "complete":
                    if lock:
                        lock.close()
                    return open_artifact(path)
                _remove_stale(path, exclusive)
                if identity(manifest["recipe"]) == identity(recipe):
                    manifest["recipe"] = dict(recipe)  # a tolerance that was raised is what it ends with
                draft = Draft(path, manifest, lock, resumed=True)
            else:
                write_manifest(path, started)
                draft = Draft(path, started, lock, resumed=False)
        if lock and not wait:
            _begun.add(draft)
        return draft
    except BaseException:
        if lock:
            lock.close()
        raise


@contextlib.contextmanager
def _one_after_another(path: Path) -> Iterator[None]:
    """Of bulk commands that begin a folder at once the first writes its manifest, and the others compare theirs with it."""
    while True:
        with locked(path, ".begin.lock", remove=True) as got:
            if got:
                yield
                return
        time.sleep(0.01)


def _untouched(path: Path) -> bool:
    """Whether a folder holds a manifest and nothing else that a command took time to make."""
    return all(child.name in (MANIFEST, ".lock", "log.jsonl", "tensorboard") for child in path.iterdir())


def _remove_stale(path: Path, exclusive: bool) -> None:
    if exclusive:  # nobody else writes here, so temporary files are those of a killed process
        for tmp in path.glob(".*.tmp"):
            tmp.unlink(missing_ok=True)


def replaced(recipe: Mapping[str, Any], values: Mapping[str, Any], *, nulls_only: bool = False) -> dict[str, Any]:
    """A copy of a recipe with other values at those of the dotted keys that it has; with `nulls_only`, that are null there."""
    copied: dict[str, Any] = json.loads(json.dumps(recipe))
    for dotted, value in values.items():
        *sections, last = dotted.split(".")
        node: Any = copied
        for section in sections:
            node = node.get(section) if isinstance(node, dict) else None
        if isinstance(node, dict) and last in node and (node[last] is None or not nulls_only):
            node[last] = value
    return copied


def _refuse_changes(
    where: str,
    manifest: Mapping[str, Any],
    kind: str,
    recipe: Mapping[str, Any],
    inputs: Mapping[str, Mapping[str, str]],
    settled: Mapping[str, Any],
) -> None:
    if manifest["kind"] != kind:
        raise TokError(
            where,
            f"is not of kind {kind}, which this command writes",
            got=manifest["kind"],
            next="Choose another --out",
        )
    older = replaced(manifest["recipe"], settled, nulls_only=True)
    changed = differing_keys(identity(older), identity(recipe))
    old = {role: entry["id"] for role, entry in manifest["inputs"].items()}
    new = {role: entry["id"] for role, entry in inputs.items()}
    changed += differing_keys(old, new, "inputs.")
    if changed:
        raise TokError(
            where,
            "was made by another recipe or other inputs",
            got="; ".join(changed),
            next="Choose another --out, or leave it out",
        )
