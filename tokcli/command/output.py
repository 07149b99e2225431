"""What a command writes: the folder it begins, and where the result comes from."""

import contextlib
import logging
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from tokcli import __version__, distributed
from tokcli.artifact import draft
from tokcli.artifact.draft import Draft, replaced
from tokcli.artifact.manifest import canonical_hash, identity, read_manifest
from tokcli.artifact.opening import Artifact, open_artifact
from tokcli.command.options import Options
from tokcli.errors import TokError

log = logging.getLogger("tok")


VERSIONS = ("torch", "torchvision", "timm", "open_clip_torch", "safetensors", "numpy", "pillow", "faiss-cpu")


def reference(a: Artifact) -> dict[str, str]:
    """An input's entry in a manifest."""
    return {"id": a.id, "path": str(a.path.resolve())}


def tokenizer_reference(a: Artifact) -> dict[str, str]:
    """The entry of the tokenizer that an artifact descends from, copied down so that lineage needs one look."""
    return reference(a) if a.kind == "tokenizer" else dict(a.inputs["tokenizer"])


def provenance(options: Options, device: torch.device, seed: int) -> dict[str, Any]:
    """Who made it how: command, versions, commit, device, threads, seed, start."""
    versions = {"tok": __version__, "python": platform.python_version()}
    for name in VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "command": ["tok", *sys.argv[1:]],
        "versions": versions,
        "commit": _commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or device.type,
        "threads": torch.get_num_threads(),
        "world_size": distributed.world_size(),
        "seed": seed,
        "preset": options.preset._asdict() if options.preset else None,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _commit() -> str | None:
    folder = Path(__file__).parent.parent.parent
    if not (folder / ".git").exists():
        return None  # installed from a wheel
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def begin(
    options: Options,
    kind: str,
    name: str,
    resolved: Mapping[str, Any],
    inputs: Mapping[str, Mapping[str, str]],
    device: torch.device,
    *,
    exclusive: bool = True,
    wait: bool = False,
    settled: Mapping[str, Any] | None = None,
) -> Draft | Artifact:
    """Open the output folder: `--out`, or `<workspace>/<kind>-<name>-<6 hex>` of recipe and inputs; the last are `draft.begin`'s.

    A folder that an earlier version began under the hash of the recipe with null for `settled` keys is gone on with.

    With several ranks, rank 0 holds the lock and the others write nothing; all get the same answer, or all stop.
    """
    ids = {role: entry["id"] for role, entry in inputs.items()}
    forms = [identity(resolved), dict(resolved), replaced(resolved, dict.fromkeys(settled or {}))]
    paths = [options.workspace / f"{kind}-{name}-{canonical_hash([form, ids])[:6]}" for form in forms]
    if any(path.parent != options.workspace for path in paths):  # whoever gave the name
        raise TokError(f"--workspace {options.workspace}", "a name leads out of it", got=name, next="Give --out")
    path = options.out or next((p for p in paths if p.is_dir()), paths[0])
    facts = provenance(options, device, int(resolved.get("seed", 0)))
    answer: Draft | Artifact | None = None
    refused: TokError | None = None
    if distributed.is_main() or not exclusive:
        try:
            answer = draft.begin(path, kind, resolved, inputs, facts, exclusive=exclusive, wait=wait, settled=settled)
        except TokError as error:
            refused = error
    if distributed.any_rank(refused is not None):
        raise refused or SystemExit(TokError.exit_code)  # the rank that knows why says so
    if answer is None:
        manifest = read_manifest(path, f"--out {path}")
        done = manifest["status"] == "complete"
        answer = open_artifact(path) if done else Draft(path, manifest, None, resumed=True)
    if isinstance(answer, Artifact):
        log.info("%s is complete already", path)
    elif answer.resumed:
        log.info("%s was started before: resuming", path)
    return answer
