"""`tok show` and `tok verify`: what an artifact is, where it comes from, whether it is whole."""

import json
from pathlib import Path
from typing import Any

from tokcli.artifact.manifest import OLDER, RESTORE, read_manifest
from tokcli.artifact.opening import Artifact, open_artifact, scan
from tokcli.errors import TokError
from tokcli.files import sha256
from tokcli.progress import passing
from tokcli.terminal import as_json, printable
from tokcli.training.finite import show_evidence


def manifest(path: Path) -> dict[str, Any]:
    """The manifest of an artifact, complete or running."""
    return read_manifest(path, str(path))


def listing(workspace: Path, json_wanted: bool) -> str:
    """The complete artifacts of a workspace, one a line: id, then folder."""
    found = scan(workspace)
    if json_wanted:
        return as_json([{"id": a.id, "kind": a.kind, "path": str(a.path)} for a in found])
    if not found:
        raise TokError(
            f"--workspace {workspace}", "holds no complete artifacts", next="Run tok train-tokenizer to make the first"
        )
    width = max(len(a.id) for a in found)
    return "\n".join(printable(f"{a.id:<{width}}  {a.path}") for a in found)


def describe(path: Path) -> str:
    """Facts, metrics and lineage of one artifact as text."""
    found = manifest(path)
    lines = [printable(f"{found.get('id', found['kind'])}  {found['status']}  {path}"), ""]
    if found["schema"] == OLDER:
        lines.insert(1, "of the older kind: its id does not cover the recipe")
    lines += _section("facts", found.get("facts", {})) + _section("metrics", found.get("metrics", {}))
    lines += [
        "made from",
        *(printable(f"  {role:<12}{entry['id']}  {entry['path']}") for role, entry in found["inputs"].items()),
        "",
    ]
    lines += show_evidence(path)
    made = found["provenance"]
    lines += [
        "made by",
        printable(f"  {' '.join(made.get('command', ['?']))}"),
        printable(f"  {made.get('started', '?')}, {made.get('seconds', '?')} s, {made.get('device', '?')}"),
    ]
    if isinstance(preset := made.get("preset"), dict):
        lines.append(printable(f"  preset {preset.get('name')}: {preset.get('why')}"))
    return "\n".join(lines)


def _section(title: str, values: dict[str, Any]) -> list[str]:
    if not values:
        return []
    rows = []
    width = max(28, *(len(printable(key)) + 2 for key in values))
    for key, value in values.items():
        text = f"{value:.5g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
        rows.append(f"  {printable(key):<{width}}{text if len(text) <= 90 else text[:87] + '...'}")
    return [title, *rows, ""]


def verify(path: Path) -> str:
    """Recompute all hashes of an artifact.

    Raises:
        TokError: naming the files that are damaged or missing.
    """
    artifact = open_artifact(path)
    expected = {name: entry["sha256"] for name, entry in artifact.manifest["files"].items()}
    damaged = _differing(artifact, expected)
    for name in [name for name in expected if name.endswith(".sha256") and name not in damaged]:
        listed = artifact.listed(name)
        expected |= listed
        damaged += _differing(artifact, listed)
    if damaged:
        shown = ", ".join(damaged[:5]) + (", ..." if len(damaged) > 5 else "")
        raise TokError(
            str(path), f"{len(damaged)} of {len(expected)} files are damaged or missing", got=shown, next=RESTORE
        )
    if artifact.older:
        return f"{artifact.id}: {len(expected)} files are whole; of the older kind: nothing covers its metrics and provenance"
    return f"{artifact.id}: manifest and {len(expected)} files are whole"


def _differing(artifact: Artifact, expected: dict[str, str]) -> list[str]:
    listed = passing(expected.items(), len(expected), unit="file", desc="verify")
    return [n for n, d in listed if not (artifact.path / n).is_file() or sha256(artifact.path / n) != d]
