"""The token store: indices of a data set in shards, written whole or not at all, of which rows are read when they are needed."""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tokcli.artifact.manifest import RESTORE
from tokcli.data.npy import NpyError, NpyRows, read_npy
from tokcli.errors import TokError
from tokcli.files import atomic_write, write_text
from tokcli.limits import parse_json

LINE = 16 << 20  # bytes that a line of keys or captions does not have
_SHARD = re.compile(r"indices-(\d{5,})\.npy")


def _shard(folder: Path, number: int) -> Path:
    return folder / f"indices-{number:05d}.npy"


def _sidecar(folder: Path, number: int) -> Path:
    return folder / f"rows-{number:05d}.json"


def write_shard(
    folder: Path,
    number: int,
    indices: Int[Tensor, "rows views n"] | np.ndarray,
    labels: Sequence[int],
    keys: Sequence[str],
    captions: Sequence[list[str]],
    skipped: Sequence[tuple[str, str]] = (),
    *,
    codebook_size: int,
) -> Path:
    """Write shard `number`; the indices come last, so that a shard which is `present` is complete.

    Labels, keys, captions (one list a row) and what was skipped wait in `rows-XXXXX.json` until `merge`.

    Raises:
        ValueError: rows that do not match, or an index outside [0, codebook_size).
        TokError: the disk is full or the folder cannot be written.
    """
    array = np.asarray(indices)
    if not (array.ndim == 3 and len(array) == len(labels) == len(keys) == len(captions)):
        raise ValueError(f"{array.shape} indices, {len(labels)} labels, {len(keys)} keys, {len(captions)} captions")
    if array.size and (array.min() < 0 or array.max() >= codebook_size):
        raise ValueError(f"indices from {array.min()} to {array.max()}, outside a codebook of {codebook_size}")
    rows = {"labels": list(map(int, labels)), "keys": list(keys), "captions": list(captions), "skipped": list(skipped)}
    stored = np.ascontiguousarray(array, dtype=np.uint16 if codebook_size <= 1 << 16 else np.uint32)
    digest = {"sha256": hashlib.sha256(stored.tobytes()).hexdigest()}
    write_text(_sidecar(folder, number), json.dumps(rows | digest, ensure_ascii=False) + "\n")
    _save(_shard(folder, number), stored)
    return _shard(folder, number)


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_write(path) as tmp, open(tmp, "wb") as file:
        np.save(file, array, allow_pickle=False)


def present(folder: Path) -> set[int]:
    """The numbers of the shards that are complete."""
    return {int(match[1]) for path in folder.glob("indices-*.npy") if (match := _SHARD.fullmatch(path.name))}


def skipped(folder: Path) -> int:
    """How many images were left out of the shards that are complete and not merged yet."""
    waiting = [number for number in present(folder) if _sidecar(folder, number).exists()]
    return sum(len(_rows(folder, number)["skipped"]) for number in waiting)


def _rows(folder: Path, number: int) -> dict[str, Any]:
    """What waits for `merge` beside a shard.

    Raises:
        FileNotFoundError: nothing: it is merged.
        TokError: it is not what was written.
    """
    path = _sidecar(folder, number)
    try:
        rows: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        labels = np.array(rows["labels"], dtype=np.int32)
        if labels.shape != (len(rows["keys"]),) or len(labels) != len(rows["captions"]):
            raise ValueError("of several lengths")
        _ = [(key, why) for key, why in rows["skipped"]]
    except (ValueError, KeyError, TypeError, OverflowError):
        raise _damaged(folder, number, path) from None
    return rows


def _damaged(folder: Path, number: int, path: Path) -> TokError:
    both = f"{_shard(folder, number).name} and {_sidecar(folder, number).name}"
    how = f"Delete {both} in {folder} and repeat the command: it makes that shard again"
    return TokError(str(path), "is damaged", next=how)


def _check_shard(folder: Path, number: int, rows: Mapping[str, Any]) -> None:
    """Compare a shard with what waits beside it, before the artifact's hashes vouch for it.

    Raises:
        TokError: it is not the one that was written.
    """
    try:
        stored, digest = NpyRows(_shard(folder, number)), hashlib.sha256()
        for block in stored.blocks():
            digest.update(block.tobytes())
    except NpyError:
        raise _damaged(folder, number, _shard(folder, number)) from None
    known = rows.get("sha256", digest.hexdigest())  # shards that earlier versions began have none
    if len(stored) != len(rows["keys"]) or digest.hexdigest() != known:
        raise _damaged(folder, number, _shard(folder, number))


class Counts(NamedTuple):
    """How many rows a finished store has, and how many images were skipped."""

    rows: int
    skipped: int


def merge(folder: Path, shards: int) -> Counts:
    """Join the shards' rows into labels.npy, keys.txt, captions.jsonl (if there are any) and skipped.jsonl.

    Several processes may do so at once, and again: they write the same bytes.

    Raises:
        TokError: a shard is missing or damaged.
    """
    if missing := sorted(set(range(shards)) - present(folder)):
        raise TokError(
            str(folder),
            f"{len(missing)} of {shards} shards are missing, the first {missing[0]}",
            next="Repeat tok tokenize: it completes the folder",
        )
    try:
        parts = [_rows(folder, i) for i in range(shards)]
    except FileNotFoundError:
        return _merged(folder)
    for number, part in enumerate(parts):
        _check_shard(folder, number, part)
    whole = {name: [x for part in parts for x in part[name]] for name in ("labels", "keys", "captions", "skipped")}
    _save(folder / "labels.npy", np.array(whole["labels"], dtype=np.int32))
    write_text(folder / "keys.txt", "".join(f"{key}\n" for key in whole["keys"]))
    if any(whole["captions"]):
        rows = zip(whole["keys"], whole["captions"], strict=True)
        write_text(folder / "captions.jsonl", _lines({"key": key, "captions": texts} for key, texts in rows))
    # Written last, and always: with it the merge is done, and the parts can go.
    write_text(folder / "skipped.jsonl", _lines({"key": key, "why": why} for key, why in whole["skipped"]))
    for i in range(shards):
        _sidecar(folder, i).unlink(missing_ok=True)
    return Counts(len(whole["keys"]), len(whole["skipped"]))


def _merged(folder: Path) -> Counts:
    try:
        skipped = (folder / "skipped.jsonl").read_text(encoding="utf-8").count("\n")
        return Counts(len(read_npy(folder / "labels.npy")), skipped)
    except FileNotFoundError:
        raise TokError(str(folder), "the rows of a shard are missing", next="Delete its indices and repeat") from None


def _lines(rows: Iterator[dict[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _texts(record: Any) -> list[str]:
    """The captions of a line of `captions.jsonl`; raises ValueError, KeyError or TypeError where it holds anything else."""
    found = record["captions"]
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError
    return found


class TokenStore:
    """The tokens in a folder: `rows` images, `views` of each, `n` tokens a view. Opening reads headers only.

    Raises:
        TokError: no shards, one missing, cut short or unlike the others, or labels or keys that do not match
            them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        numbers = sorted(present(folder))
        if not numbers or numbers != list(range(len(numbers))):
            raise TokError(
                str(folder),
                "token shards are missing",
                got=f"{len(numbers)}",
                next="Repeat tok tokenize: it completes the folder",
            )
        try:
            self._shards = [NpyRows(_shard(folder, number)) for number in numbers]
            self.labels: np.ndarray = read_npy(folder / "labels.npy")
        except FileNotFoundError:
            raise TokError(
                str(folder), "labels.npy is missing", next="Repeat tok tokenize: it completes the folder"
            ) from None
        self.dtype = self._shards[0].dtype
        for number, shard in zip(numbers, self._shards, strict=True):
            like_first = (
                len(shard.shape) == 3 and shard.shape[1:] == self._shards[0].shape[1:] and shard.dtype == self.dtype
            )
            if not like_first or shard.dtype not in (np.uint16, np.uint32):
                raise NpyError(str(_shard(folder, number)), "no token shard", got=f"{shard.dtype} {shard.shape}")
        self.views, self.n = self._shards[0].shape[1:]
        self._ends = list(itertools.accumulate(len(shard) for shard in self._shards))
        self.rows = self._ends[-1]
        if self.labels.shape != (self.rows,) or self.labels.dtype != np.int32:
            raise NpyError(str(folder / "labels.npy"), f"not {self.rows} labels", got=f"{self.labels.shape}")

    def check(self, facts: Mapping[str, Any]) -> None:
        """Compare what is stored with what is said of it.

        Args:
            facts: of the artifact: `rows`, `views`, `grid`, `codebook_size`, `classes`.

        Raises:
            TokError: other numbers, codes outside of the codebook, or labels of no class.
        """
        said = {
            "rows": (facts["rows"], self.rows),
            "views": (len(facts["views"]), self.views),
            "grid": (math.prod(facts["grid"]), self.n),
        }
        wrong = [f"{name}: {fact}, not {held}" for name, (fact, held) in said.items() if fact != held]
        if wrong:
            raise TokError(
                str(self.folder), "its shards are not what its facts say", got="; ".join(wrong), next=RESTORE
            )
        for name, arrays, least, most in (
            ("codes", (block for shard in self._shards for block in shard.blocks()), 0, facts["codebook_size"]),
            ("labels", iter([self.labels]), -1, len(facts["classes"])),
        ):
            for array in arrays:
                low, high = (int(array.min()), int(array.max())) if array.size else (least, least)
                if low < least or high >= most:
                    what = f"holds {name} outside of {least} to {most - 1}, which its facts allow"
                    raise TokError(str(self.folder), what, got=f"{low} to {high}", next=RESTORE)

    @cached_property
    def keys(self) -> list[str]:
        """The key of each row.

        Raises:
            TokError: missing, or of another number.
        """
        return self._checked("keys.txt", self._lines("keys.txt"))

    @cached_property
    def captions(self) -> list[list[str]]:
        """The captions of each row, [] where it has none.

        Raises:
            TokError: damaged, or of another number.
        """
        if not (self.folder / "captions.jsonl").exists():
            return [[] for _ in range(self.rows)]
        try:
            found = [_texts(parse_json(line.encode())) for line in self._lines("captions.jsonl")]
        except (ValueError, KeyError, TypeError):
            raise TokError(str(self.folder / "captions.jsonl"), "is damaged", next=RESTORE) from None
        return self._checked("captions.jsonl", found)

    @cached_property
    def caption_ends(self) -> np.ndarray:
        """Row i's captions are numbers caption_ends[i] to caption_ends[i + 1] - 1 of all captions, int64 (rows + 1,)."""
        return np.cumsum([0, *(len(texts) for texts in self.captions)], dtype=np.int64)

    def _lines(self, name: str) -> list[str]:
        """At most one line more than there are rows."""
        found: list[str] = []
        try:
            with open(self.folder / name, "rb") as file:
                while len(found) <= self.rows and (line := file.readline(LINE)):
                    if len(line) == LINE:
                        raise TokError(str(self.folder / name), f"has a line of {LINE:,} bytes or more", next=RESTORE)
                    found.append(line.removesuffix(b"\n").decode("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise TokError(str(self.folder / name), "cannot be read", why=str(error), next=RESTORE) from None
        return found

    def _checked(self, name: str, found: list) -> list:  # type: ignore[type-arg]
        if len(found) != self.rows:
            raise TokError(
                str(self.folder / name), f"not one line for each of {self.rows} rows", got=str(len(found)), next=RESTORE
            )
        return found

    def batch(self, rows: Int[Tensor, " b"] | np.ndarray, views: Int[Tensor, " b"] | np.ndarray) -> Int[Tensor, "b n"]:
        """Tokens of one view of each row, as int64."""
        rows, views = np.asarray(rows), np.asarray(views)
        tokens = np.empty((len(rows), self.n), dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.rows):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {self.rows}")
        numbers = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(numbers).tolist():
            here = numbers == number
            start = self._ends[number - 1] if number else 0
            tokens[here] = self._shards[number].pick((rows[here] - start).tolist(), views[here].tolist())
        return torch.from_numpy(tokens)
