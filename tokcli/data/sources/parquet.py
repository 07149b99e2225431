"""Images in Parquet files, as Hugging Face keeps data sets: local files, read by row group."""

import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from tokcli.data.decode import BadImage, check_bytes, decode
from tokcli.data.sources.caption_files import captions_of, faults_of, usable
from tokcli.data.sources.classes import class_name, class_numbers
from tokcli.data.sources.contents import State, digest_of, state_of
from tokcli.data.sources.folder import read_encoded
from tokcli.data.sources.listing import MOST_FAULTS, data_id, is_url, refuse_labels, without_columns
from tokcli.data.sources.parquet_columns import choose_columns
from tokcli.data.sources.parquet_files import files_of, names_parquet, roles_of
from tokcli.data.sources.parquet_rows import Damaged, Rows
from tokcli.data.sources.tars import shard_names
from tokcli.errors import TokError
from tokcli.recipe import MAX_PIXELS
from tokcli.terminal import printable


class Parquet:
    """The rows that have an image, in the order of files and within them; keys are `file/row`.

    Images are bytes, or files by their path relative to the Parquet file's folder. A row without an image, an image that is
    not there or not in that folder, a label that is not understood and a caption that cannot be used are `problems`. `columns`
    says which columns are read and which are not.

    Raises:
        TokError: no such file, damaged files or such with different columns, no column of images or several to choose from.
    """

    max_pixels = MAX_PIXELS

    def __init__(self, spec: str) -> None:
        bare, given = without_columns(spec)
        where = f"--data {bare}"
        self.name, paths = files_of(bare)
        self.name += f":{given}" if given else ""
        self._rows = Rows(paths)
        roles = roles_of(given)
        self._columns = choose_columns(self._rows.schema, roles, where)
        self._rows.require(self._columns.read())
        try:
            if "label" not in roles and not self._are_classes(self._columns.label):
                self._columns = self._columns._replace(label="")
        except Damaged as error:
            raise TokError(where, "is damaged", why=str(error), next="Copy or download it again") from None
        unread = [name for name in self._rows.schema.names if name not in self._columns.read()]
        self.columns = self._columns.described() + (
            f" (not read: {', '.join(map(printable, unread))})" if unread else ""
        )
        self._files = shard_names(paths)
        self.problems: list[tuple[str, str]] = []
        self._paths: dict[int, Path] = {}
        self._parts = self._columns.parts(self._rows.schema)
        try:
            there, states = self._images()
            if not there.any():
                why = f" ({self.problems[0][0]}: {self.problems[0][1]})" if self.problems else ""
                raise TokError(where, f"no images found{why}", next="Name the column of images: --columns image=NAME")
            labels, self.classes = self._labels(where)
            self._look_through_captions(there)
        except Damaged as error:
            raise TokError(where, "is damaged", why=str(error), next="Copy or download it again") from None
        self._numbers = np.flatnonzero(there)  # the row of each sample
        self.labels = labels[there]
        files = digest_of(paths, [state_of(path.stat()) for path in paths], self.name)
        beside = digest_of(list(self._paths.values()), states, f"{self.name} beside") if states else b""
        keys = (self.key(i) for i in range(len(self)))
        self.id = data_id("parquet", "1", keys, self.labels, files + beside, self._columns.described())

    @classmethod
    def claims(cls, spec: str) -> bool:
        """Files and patterns that end in .parquet, folders that hold some, and splits of these."""
        return names_parquet(without_columns(spec)[0])

    @classmethod
    def open(cls, spec: str, *, size: int, labels: Path | None = None) -> "Parquet":
        """The images of all files; raises TokError as the class does, and with labels."""
        refuse_labels(labels, spec)
        return cls(spec)

    def __len__(self) -> int:
        return len(self._numbers)

    def key(self, i: int) -> str:
        """Sample i as `file/row`."""
        return self._key(int(self._numbers[i]))

    def _key(self, row: int) -> str:
        file, number = self._rows.file(row)
        return f"{self._files[file]}/{number:06d}"

    def label(self, i: int) -> int:
        """The class of sample i, -1 for none."""
        return int(self.labels[i])

    def captions(self, i: int) -> list[str]:
        """The captions of sample i, [] for none."""
        return usable(self._texts(int(self._numbers[i])))

    def image(self, i: int) -> UInt8[Tensor, "3 h w"]:
        """RGB pixels of sample i; raises BadImage."""
        row, key = int(self._numbers[i]), self.key(i)
        return decode(self._paths.get(row) or self._bytes(row, key), key, most=self.max_pixels)

    def encoded(self, i: int) -> tuple[str, bytes]:
        """The extension of the file ("" for bytes) and the bytes of sample i; raises BadImage."""
        row, key = int(self._numbers[i]), self.key(i)
        if row in self._paths:
            return read_encoded(self._paths[row], key, self.max_pixels)
        return "", self._bytes(row, key)

    def _bytes(self, row: int, key: str) -> bytes:
        try:
            value = self._rows.value(row, self._columns.image)
        except (Damaged, OSError) as error:
            raise BadImage(key, f"cannot be read: {error}") from None
        value = value if self._parts["bytes"] == self._columns.image else value["bytes"]
        check_bytes(_length(value), key, self.max_pixels)
        return _raw(value)

    def _images(self) -> tuple[np.ndarray, list[State]]:
        """Which rows have an image, bool (rows,); for those that name a file, where it lies, and its state."""
        without = np.full(len(self._rows), "bytes" not in self._parts)
        for start, nulls in self._rows.nulls(self._parts["bytes"]) if "bytes" in self._parts else ():
            without[start : start + len(nulls)] = nulls
        there, images, states = ~without, int((~without).sum()), []
        for row in np.flatnonzero(without).tolist():
            path, why = self._beside(row)
            try:
                state = state_of(path.stat()) if not why and path.is_file() else None
            except (OSError, ValueError):
                state = None
            if state is None:
                if len(self.problems) - images > MOST_FAULTS:
                    how = "Write the rows that have one into another file"
                    raise TokError(f"--data {self.name}", f"more than {MOST_FAULTS:,} rows have no image", next=how)
                listed = self._rows.paths[self._rows.file(row)[0]].name
                self.problems.append((self._key(row), why or f"in {listed}, but no such image"))
                continue
            there[row], self._paths[row] = True, path
            states.append(state)
        return there, states

    def _beside(self, row: int) -> tuple[Path, str]:
        """The file that a row names, and why it is not read; "" where it may be."""
        value = self._rows.value(row, self._parts["path"]) if "path" in self._parts else None
        text = _raw(value if value is None or self._parts["path"] == self._columns.image else value["path"])
        folder = self._rows.paths[self._rows.file(row)[0]].parent
        name = os.fsdecode(text)
        path = Path(os.path.normpath(folder / name))
        if not name:
            return path, "no image in this row"
        if is_url(name):
            return path, "names an address instead of an image"
        return path, "" if path.is_relative_to(folder) else "leads out of the folder"

    def _are_classes(self, column: str) -> bool:
        """Whether numbers of a column that is not named by hand are classes: none is 0.5."""
        if not column or not re.match("halffloat|float|double|decimal", str(self._rows.schema.field(column).type)):
            return True
        values = (value for _, piece in self._rows.column(column) for value in piece.to_pylist())
        return all(value is None or value != value or value == value // 1 for value in values)

    def _labels(self, where: str) -> tuple[np.ndarray, list[str]]:
        """Labels int32 (rows,) and the list of classes."""
        names = np.full(len(self._rows), None, dtype=object)
        for start, piece in self._rows.column(self._columns.label) if self._columns.label else ():
            coded = piece if str(piece.type).startswith("dictionary<") else piece.dictionary_encode()
            codes = coded.indices.fill_null(-1).to_numpy(False)
            for code, value in enumerate(coded.dictionary):
                rows = start + np.flatnonzero(codes == code)
                try:
                    names[rows] = self._class(value)
                except ValueError as error:
                    self.problems += [(self._key(row), str(error)) for row in rows.tolist()]
        if not self._columns.names:
            return class_numbers(names.tolist(), f"{where}: column {self._columns.label}")
        numbers: dict[str | None, int] = {name: i for i, name in enumerate(self._columns.names)}
        return np.array([numbers.get(name, -1) for name in names], np.int32), list(self._columns.names)

    def _class(self, value: Any) -> str | None:
        """The class that a label names; raises ValueError."""
        said = _text(value) if hasattr(value, "as_buffer") else value.as_py()
        if isinstance(said, Decimal | float):
            said = (
                None if said != said else int(said) if said == said // 1 else float(said)
            )  # not a number: pandas' null
        if not self._columns.names:
            return class_name(said)
        known = self._columns.names
        if isinstance(said, int) and 0 <= said < len(known):
            return known[said]
        name = class_name(said)
        if name is not None and name not in known:
            raise ValueError(f"its label is none of the {len(known)} classes: {said}"[:100])
        return name

    def _look_through_captions(self, there: np.ndarray) -> None:
        """Captions that cannot be used are problems; each text is looked at once, however many rows repeat it."""
        for column in self._columns.captions:
            for start, piece in self._rows.column(column):
                parents, texts = np.arange(len(piece)), piece
                if "list<" in str(piece.type):
                    parents, texts = piece.value_parent_indices().to_numpy(False), piece.flatten()
                codes = texts.indices.fill_null(-1).to_numpy(False)
                for code, text in enumerate(texts.dictionary):
                    for fault in faults_of([_text(text)]):
                        rows = start + np.unique(parents[codes == code])
                        self.problems += [(self._key(row), fault) for row in rows[there[rows]].tolist()]

    def _texts(self, row: int) -> list[str]:
        found: list[str] = []
        for column in self._columns.captions:
            value = self._rows.value(row, column)
            if value.is_valid:
                listed = value.values if hasattr(value, "values") else [value]
                found += captions_of({"captions": [_text(text) for text in listed if text.is_valid]}) or []
        return found


def _raw(value: Any) -> bytes:
    """The bytes of an Arrow scalar of bytes or text; b"" of null."""
    buffer = _buffer(value)
    return b"" if buffer is None else bytes(buffer)


def _length(value: Any) -> int:
    return len(_buffer(value) or b"")


def _buffer(value: Any) -> Any:
    value = value.value if hasattr(value, "dictionary") else value
    return value.as_buffer() if value is not None and value.is_valid else None


def _text(value: Any) -> str:
    return _raw(value).decode("utf-8", "replace")
