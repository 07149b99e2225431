"""The footers of Parquet files, read by a process of its own (a damaged one can end it), and kept until a file changes."""

import base64
import contextlib
import hashlib
import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokcli.data.sources.contents import RACY, State, state_of
from tokcli.errors import NotFound, TokError
from tokcli.files import cache_dir, write_text

VERSION = 1


def footers(paths: list[Path]) -> list[dict[str, Any]]:
    """What each file says of itself, see `parquet_probe.footer`; its `schema` is an Arrow schema.

    Raises:
        TokError: a file is missing, damaged or not Parquet; or pyarrow is not installed.
    """
    if find_spec("pyarrow") is None:
        next = "Run pip install 'tokcli[parquet]'"
        raise TokError(f"--data {paths[0]}", "Parquet is read by pyarrow, which is not installed", next=next)
    import pyarrow

    states = {path: _state(path) for path in paths}
    found = {path: kept for path, state in states.items() if (kept := _kept(path, state)) is not None}
    for path, said in _ask([path for path in paths if path not in found]):
        if "error" in said:
            raise TokError(
                f"--data {path}", "is damaged or not Parquet", why=said["error"], next="Copy or download it again"
            )
        found[path] = said
        _keep(path, states[path], said)
    buffers = [pyarrow.py_buffer(base64.b64decode(found[path]["schema"])) for path in paths]
    return [
        found[path] | {"schema": pyarrow.ipc.read_schema(buffer)} for path, buffer in zip(paths, buffers, strict=True)
    ]


def _ask(paths: list[Path]) -> list[tuple[Path, dict[str, Any]]]:
    if not paths:
        return []
    script = Path(__file__).with_name("parquet_probe.py")
    asked = json.dumps([str(path) for path in paths])
    done = subprocess.run([sys.executable, str(script)], input=asked, capture_output=True, text=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    ended = (
        []
        if len(answers) == len(paths)
        else [{"error": (done.stderr.splitlines() or ["its footer cannot be read"])[-1]}]
    )
    return list(zip(paths, answers + ended, strict=False))


def _state(path: Path) -> State:
    try:
        return state_of(path.stat())
    except FileNotFoundError:
        raise NotFound(f"--data {path}", "no such file", next="Check the path") from None


def _file(path: Path, state: State) -> Path:
    identity = f"{VERSION} {path.absolute()} {state}".encode("utf-8", "surrogateescape")
    return cache_dir() / "parquet-footers" / f"{hashlib.blake2b(identity, digest_size=12).hexdigest()}.json"


def _kept(path: Path, state: State) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        said = json.loads(_file(path, state).read_text(encoding="utf-8"))
        if isinstance(said, dict) and said.keys() == {"schema", "rows", "bytes", "leaves", "nulls"}:
            return said
    return None


def _keep(path: Path, state: State, said: dict[str, Any]) -> None:
    if time.time_ns() - max(state[1:3]) < RACY:
        return
    with contextlib.suppress(OSError, TokError):  # a cache that cannot be written costs time and nothing else
        _file(path, state).parent.mkdir(parents=True, exist_ok=True)
        write_text(_file(path, state), json.dumps(said))
