"""Artifacts that are read: opened by path, found by id, checked for kind and lineage."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokcli.artifact.manifest import KINDS, MANIFEST, RESTORE, content_id, read_manifest
from tokcli.errors import TokError
from tokcli.files import sha256


class _Known(dict[str, Any]):
    """A part of a manifest whose missing keys are a fault of the file, not of who asks."""

    def __init__(self, file: Path, part: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._where = str(file), part

    def __missing__(self, key: str) -> Any:
        raise TokError(self._where[0], f"{self._where[1]} '{key}' is missing", next=RESTORE)


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
        return _Known(self.path / MANIFEST, "fact", self.manifest["facts"])

    @property
    def inputs(self) -> Mapping[str, Mapping[str, str]]:
        """role -> {id, path}; the path is a hint."""
        return _Known(self.path / MANIFEST, "input", self.manifest["inputs"])

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The resolved recipe that made it."""
        recipe: Mapping[str, Any] = self.manifest["recipe"]
        return recipe

    @property
    def class_count(self) -> int | None:
        """How many classes its images have, 0 for none; None where a plan does not know."""
        return len(self.facts["classes"])

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
            raise TokError(
                str(path),
                f"is not part of this artifact of kind {self.kind}",
            )
        if name not in self._verified:
            if not path.is_file() or path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
                raise TokError(
                    str(path),
                    "is damaged: its SHA-256 is not the one in the manifest",
                    next=RESTORE,
                )
            self._verified.add(name)
        return path


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
        raise TokError(where, f"is not of kind {' or '.join(kinds)}", got=manifest["kind"])
    if manifest["status"] != "complete":
        command = " ".join(manifest.get("provenance", {}).get("command", []))
        raise TokError(where, "is not complete yet", next=f"Repeat the command that makes it: {command}")
    if content_id(manifest) != manifest["id"]:
        raise TokError(
            str(path / MANIFEST),
            "facts or inputs were changed: the id does not match",
            got=manifest["id"],
            next=RESTORE,
        )
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
        next="Bring it back, or name it by its flag",
    )


def check_lineage(a: Artifact, flag_a: str, b: Artifact, flag_b: str) -> None:
    """Refuse two artifacts that come from different tokenizers.

    Raises:
        TokError: naming both.
    """
    left, right = a.input_id("tokenizer"), b.input_id("tokenizer")
    if left != right:
        raise TokError(
            f"{flag_a} {a.path}",
            f"made for {left}, but {flag_b} {b.path} speaks {right}",
            next="Use two that share a tokenizer",
        )
