"""Artifacts that are read: opened by path, found by id, checked for kind and lineage."""

import contextlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokcli.artifact.manifest import (
    KINDS,
    MANIFEST,
    OLDER,
    RESTORE,
    content_id,
    differing_keys,
    identity,
    is_inside,
    read_manifest,
)
from tokcli.errors import TokError
from tokcli.files import sha256
from tokcli.limits import text_lines

log = logging.getLogger("tok")
RECIPE = "recipe.yaml"
_said: set[Path] = set()  # folders of older artifacts of which this process has spoken


class _Running(TokError):
    """The artifact is still being written."""


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
    _listed: dict[str, dict[str, str]] = field(default_factory=dict, compare=False, repr=False)

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

    @property
    def older(self) -> bool:
        """Whether its id covers no recipe, and its manifest has no hash of its own."""
        return bool(self.manifest["schema"] == OLDER)

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
            raise TokError(str(path), f"is not part of this artifact of kind {self.kind}", next=RESTORE)
        if name not in self._verified:
            if not path.is_file() or path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
                raise TokError(str(path), "is damaged: its SHA-256 is not the one in the manifest", next=RESTORE)
            self._verified.add(name)
        return path

    def listed(self, name: str) -> dict[str, str]:
        """The SHA-256 of each file that a listing of this artifact names, `images.sha256` or the like.

        Raises:
            TokError: see `file`; or it is no listing.
        """
        if name in self._listed:
            return self._listed[name]
        path = self.file(name)
        lines = text_lines(path, str(path))
        found = {file: digest for digest, _, file in (line.partition("  ") for line in lines)}
        if not all(re.fullmatch("[0-9a-f]{64}", digest) and is_inside(file) for file, digest in found.items()):
            raise TokError(str(path), "is no list of hashes", next=RESTORE)
        self._listed[name] = found
        return found


def open_artifact(path: str | Path, flag: str = "", kinds: Iterable[str] = KINDS) -> Artifact:
    """Open a complete artifact.

    Args:
        path: its folder.
        flag: the flag that named it, for messages.
        kinds: which kinds are wanted there.

    Raises:
        TokError: missing, damaged, changed, still running, or of another kind.
    """
    return examined(_read(Path(path), flag, tuple(kinds)))


def _read(path: Path, flag: str = "", kinds: tuple[str, ...] = KINDS) -> Artifact:
    where = f"{flag} {path}".strip()
    manifest = read_manifest(path, where)
    if manifest["kind"] not in kinds:
        raise TokError(
            where,
            f"is not of kind {' or '.join(kinds)}",
            got=manifest["kind"],
            next="Name another: tok show says of which kind one is",
        )
    if manifest["status"] != "complete":
        command = " ".join(manifest.get("provenance", {}).get("command", []))
        raise _Running(where, "is not complete yet", next=f"Repeat the command that makes it: {command}")
    if content_id(manifest) != manifest["id"]:
        raise TokError(
            str(path / MANIFEST),
            "facts or inputs were changed: the id does not match",
            got=manifest["id"],
            next=RESTORE,
        )
    return Artifact(path, manifest)


def examined(artifact: Artifact) -> Artifact:
    """An artifact that is used, not only listed: of an older one it is said so, and its recipe is compared with its file of it.

    Raises:
        TokError: they differ.
    """
    if not artifact.older:
        return artifact
    known = RECIPE in artifact.manifest["files"]
    if known:
        _compare(artifact)
    if artifact.path not in _said:
        _said.add(artifact.path)
        besides = f"; {RECIPE} says the same as the manifest" if known else ""
        log.info("%s: of the older kind, whose id does not cover the recipe%s", artifact.path, besides)
    return artifact


def _compare(artifact: Artifact) -> None:
    path = artifact.file(RECIPE)
    from tokcli.recipe.yaml import read_yaml  # takes long to import, and few artifacts are older

    stored = read_yaml(path)
    ours = identity(artifact.recipe)
    # null in the manifest of a training that a still earlier version began: what stood for null was recorded later
    differing = [text for text in differing_keys(ours, identity(stored)) if ": None, not " not in text]
    if differing:
        raise TokError(
            str(artifact.path / MANIFEST),
            f"its recipe was changed: it is not that of {RECIPE}",
            got="; ".join(differing),
            next=RESTORE,
        )


def scan(workspace: Path) -> list[Artifact]:
    """All complete artifacts in a workspace, sorted by folder name; what is running is passed over, what is damaged named."""
    return list(_scanned(workspace, log.warning))


def _scanned(workspace: Path, say: Callable[[str, TokError], None]) -> Iterator[Artifact]:
    for file in sorted(workspace.glob(f"*/{MANIFEST}")):
        try:
            yield _read(file.parent)
        except _Running:
            pass
        except TokError as error:
            say("passed over: %s", error)


def locate(wanted: str, hint: str | None, near: Path) -> Artifact:
    """Find an input by its id: at the recorded path, else among the folders beside `near`.

    Raises:
        TokError: no complete artifact of that id is there.
    """
    for path in [Path(hint)] if hint else []:
        with contextlib.suppress(TokError):
            artifact = _read(path)
            if artifact.id == wanted:
                return examined(artifact)
    for artifact in _scanned(near, log.debug):
        if artifact.id == wanted:
            return examined(artifact)
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
