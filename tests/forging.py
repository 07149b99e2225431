"""Artifacts as somebody would forge them: whatever is changed in a manifest, its id and its hash fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokcli.artifact.draft import write_manifest
from tokcli.artifact.manifest import MANIFEST, OLDER, SEAL, content_id


def forge(folder: Path, change: Callable[[dict[str, Any]], Any], *, fitting: bool = True) -> Path:
    """Change a manifest in place.

    Args:
        fitting: whether the id follows.
    """
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    change(manifest)
    if fitting:
        manifest["id"] = content_id(manifest)
    write_manifest(folder, manifest)
    return folder


def age(folder: Path) -> Path:
    """Turn an artifact into one of the older kind."""

    def older(manifest: dict[str, Any]) -> None:
        manifest["schema"] = OLDER
        del manifest[SEAL]

    return forge(folder, older)
