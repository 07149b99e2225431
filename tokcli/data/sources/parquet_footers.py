"""The footers of Parquet files, read by a process of its own (a damaged one can end it), and kept until a file changes."""

import base64
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokcli.data.sources.contents import State, state_of
from tokcli.data.sources.kept import keep, recall
from tokcli.errors import NotFound, TokError

KEPT = "parquet-footers-1"  # in the cache, with the version of what is in it


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
    found = {path: kept for path, state in states.items() if (kept := _known(path, state)) is not None}
    for path, said in _ask([path for path in paths if path not in found]):
        if "error" in said:
            raise TokError(
                f"--data {path}", "is damaged or not Parquet", why=said["error"], next="Copy or download it again"
            )
        found[path] = said
        keep(KEPT, path, states[path], said)
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


def _known(path: Path, state: State) -> dict[str, Any] | None:
    said = recall(KEPT, path, state)
    fits = isinstance(said, dict) and said.keys() == {"schema", "rows", "bytes", "leaves", "nulls"}
    return said if fits else None
