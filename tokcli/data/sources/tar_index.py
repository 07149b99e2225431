"""Where each sample of a webdataset tar lies: headers are read once, nothing is extracted or unpickled."""

import errno
import hashlib
import json
import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from tokcli.data.sources.listing import bad_name, captions_of
from tokcli.errors import NotFound, TokError
from tokcli.files import cache_dir, write_text

IMAGES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("cls", "txt", "json")
MOST_TEXT = 1 << 20  # bytes of a label, caption or JSON member that are read
VERSION = 1
BLOCK = 512


@dataclass
class TarIndex:
    """One tar's samples: keys, (offset, bytes) of images, class names, (extension, offset, bytes) of texts.

    `ignored` counts members by extension, or as "link" or "device"; `problems` are (key, why).
    """

    keys: list[str] = field(default_factory=list)
    images: list[tuple[int, int]] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    texts: list[list[tuple[str, int, int]]] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)


def index_tar(path: Path) -> TarIndex:
    """The index of a tar, from the cache when the file has not changed since.

    Raises:
        TokError: no such file, compressed, or not a tar at all. A tar that is cut short is indexed as far as
            it goes and says so in `problems`.
    """
    try:
        state = path.stat()
    except OSError:
        raise NotFound(f"--data {path}", "no such file") from None
    identity = f"{VERSION} {path.resolve()} {state.st_size} {state.st_mtime_ns}"
    cached = cache_dir() / "tar-index" / f"{hashlib.blake2b(identity.encode(), digest_size=12).hexdigest()}.json"
    try:
        return TarIndex(**json.loads(cached.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        index = _build(path)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_text(cached, json.dumps(vars(index)))
    except (OSError, TokError):
        pass  # a cache that cannot be written costs time and nothing else
    return index


def _build(path: Path) -> TarIndex:
    index = TarIndex()
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    with open(path, "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                _members(tar, path, samples, index)
                _end(tar, path, index)
        except (tarfile.TarError, ValueError, OverflowError) as error:  # numbers in a header that are none
            raise TokError(
                f"--data {path}",
                "not a plain tar",
                got=str(error),
                next="Decompress it: samples are read in place",
            ) from None
        for key, parts in samples.items():
            _add(index, path, file.fileno(), key, parts)
    return index


def _members(tar: tarfile.TarFile, path: Path, samples: dict[str, dict[str, tuple[int, int]]], index: TarIndex) -> None:
    bytes_there = path.stat().st_size
    while True:
        try:
            member = tar.next()
        except (tarfile.TarError, ValueError, OverflowError) as error:
            index.problems.append(
                (path.name, f"cut short or damaged at byte {tar.offset}: what followed is lost ({error})")
            )
            return
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return  # Python 3.10 seeks before the start of an archive that is empty
        if member is None:
            return
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header in memory
        folder, _, file_name = member.name.rpartition("/")
        stem, _, extension = file_name.partition(".")
        if member.isdir():
            continue
        if not member.isfile() or member.issparse() or extension.lower() not in (*IMAGES, *TEXTS):
            kind = _kind(member, extension)
            index.ignored[kind] = index.ignored.get(kind, 0) + 1
            continue
        key = (f"{folder}/{stem}" if folder else stem).removeprefix("./")
        if member.offset_data + member.size > bytes_there:
            index.problems.append((f"{path.name}/{key}", f"the tar ends inside {member.name}"))
            continue
        parts = samples.setdefault(key, {})
        if extension.lower() in parts:
            index.problems.append((f"{path.name}/{key}", f"a second {member.name} is not read"))
        else:
            parts[extension.lower()] = (member.offset_data, member.size)


def _kind(member: tarfile.TarInfo, extension: str) -> str:
    if member.issym() or member.islnk():
        return "link"
    if not member.isfile():
        return "device"
    if member.issparse():
        return "sparse file"  # its bytes do not lie in one piece
    return f".{extension.lower()}" if extension else "without extension"


def _end(tar: tarfile.TarFile, path: Path, index: TarIndex) -> None:
    """A tar ends in blocks of zeros. None: it was cut between members. Data behind them: a hole inside."""
    if any(key == path.name for key, _ in index.problems):
        return
    with open(path, "rb") as file:
        file.seek(tar.offset)
        if file.read(BLOCK) != bytes(BLOCK):
            index.problems.append((path.name, f"cut short at byte {tar.offset}: no end mark, what followed is lost"))
            return
        while block := file.read(1 << 20):
            if block.strip(b"\x00"):
                index.problems.append((path.name, f"zeros at byte {tar.offset}, then data that no reader reaches"))
                return


def _add(index: TarIndex, path: Path, fd: int, key: str, parts: dict[str, tuple[int, int]]) -> None:
    image = next((parts[extension] for extension in IMAGES if extension in parts), None)
    name = f"{path.name}/{key}"
    if why := bad_name(key) or ("" if image else "no image beside its texts"):
        index.problems.append((name, why))
        return
    assert image is not None
    index.keys.append(key)
    index.images.append(image)
    index.texts.append([(extension, *parts[extension]) for extension in ("txt", "json") if extension in parts])
    index.names.append(_class_name(fd, parts))


def _class_name(fd: int, parts: dict[str, tuple[int, int]]) -> str | None:
    if "cls" in parts:
        return read_member(fd, *parts["cls"]).decode("utf-8", "replace").strip() or None
    row = parse_json(read_member(fd, *parts["json"])) if "json" in parts else {}
    found = row.get("cls", row.get("label"))
    return str(found) if isinstance(found, int | str) and not isinstance(found, bool) else None


def read_member(fd: int, offset: int, size: int) -> bytes:
    """At most MOST_TEXT bytes of a member."""
    return os.pread(fd, min(size, MOST_TEXT), offset)


def parse_json(data: bytes) -> dict[str, object]:
    """A JSON object, or {} for anything else."""
    try:
        row = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def texts_of(extension: str, data: bytes) -> list[str]:
    """The captions in a .txt member (one a line) or a .json one ("captions", "caption" or "text")."""
    if extension == "json":
        return captions_of(parse_json(data)) or []
    return [" ".join(line.split()) for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
