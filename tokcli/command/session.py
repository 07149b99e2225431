"""A command's session: device, threads, ranks, limits of the process, and the folder that it begins."""

import contextlib
import logging
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from tokcli import __version__, distributed
from tokcli.artifact import draft
from tokcli.artifact.draft import Draft, removed_if_refused, replaced
from tokcli.artifact.manifest import canonical_hash, identity, read_manifest
from tokcli.artifact.opening import Artifact, open_artifact
from tokcli.command.options import Options
from tokcli.data import reading
from tokcli.device import float32_proper, usual_device
from tokcli.errors import Misuse, TokError

MANY_FILES = 65536  # open at once


def device_of(options: Options) -> torch.device:
    """The device to run on: `--device`, else this rank's GPU, else the CPU.

    Raises:
        TokError: an unknown device, or a GPU where there is none.
    """
    device = device_named(options.device or usual_device().type, "--device")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def device_named(name: str, flag: str) -> torch.device:
    """A device by its name; `cuda` is this rank's GPU.

    Raises:
        TokError: an unknown device, or a GPU where there is none.
    """
    where = f"{flag} {name}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise TokError(where, "no such device", next="Choose cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise TokError(where, "no CUDA device is available", next="Choose cpu")
        device = torch.device("cuda", distributed.local_rank() if device.index is None else device.index)
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise TokError(where, f"there are {count} CUDA devices", next=f"Choose a number below {count}")
    elif device.type != "cpu":  # float64, which draws are made in, is not to be had everywhere
        raise TokError(where, "this device is not supported", next="Choose cpu, cuda or cuda:N")
    return device


def _allow_many_files() -> None:
    """Raise the limit of open files as far as the system lets us: each shard of tokens that is mapped counts as one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, MANY_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def share_of(share: tuple[int, int] | None) -> tuple[int, int]:
    """Which part of the shards this process writes, and of how many: as `--shard-index` says, else by rank.

    Raises:
        Misuse: both.
    """
    if share and distributed.world_size() > 1:
        raise Misuse("--shard-index", "torchrun's ranks share the work already", next="Use one of the two")
    return share or (distributed.rank(), distributed.world_size())


@contextlib.contextmanager
def session(options: Options) -> Iterator[torch.device]:
    """Threads, reading processes, device and process group of one command, in float32 proper but where `tensor_cores` says otherwise."""
    if options.threads:
        torch.set_num_threads(options.threads)
    _allow_many_files()
    device = device_of(options)
    with distributed.joined(device), float32_proper(), reading.processes(options.workers), removed_if_refused():
        yield device


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
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "world_size": distributed.world_size(),
        "seed": seed,
        "preset": options.preset._asdict() if options.preset else None,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    # what rounding depends on, and the type of Muon's products
    instructions = f" ({torch.backends.cpu.get_cpu_capability()})" if device.type == "cpu" else ""
    return (platform.processor() or device.type) + instructions


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
