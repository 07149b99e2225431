"""Where each sample of a webdataset tar lies: headers are read once, nothing is extracted or unpickled."""

import contextlib
import errno
import hashlib
import json
import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tokcli import limits
from tokcli.data.shard_writer import CLASSES
from tokcli.data.sources.caption_files import faults_beside, parse_json
from tokcli.data.sources.classes import class_name
from tokcli.data.sources.contents import CHUNK, state_of
from tokcli.data.sources.kept import keep, recall
from tokcli.data.sources.listing import IMAGE_EXTENSIONS, OTHER_IMAGES, bad_name
from tokcli.errors import NotFound, TokError
from tokcli.files import write_text

IMAGES = ("jpg", *(end[1:] for end in IMAGE_EXTENSIONS if end != ".jpg"))  # the first that a sample has is its image
TEXTS = ("cls", "txt", "json")
MOST_TEXT = 1 << 20  # bytes of a label, caption or JSON member that are read
HIDDEN = "file whose name begins with a dot"
MOST_LIST = 64 << 20  # bytes of the list of classes
VERSION = 4  # of an index beside a shard
KEPT = "tar-index-6"  # in the cache, with the version of what is in it
BLOCK = 512
MOST_HEADER = 1 << 20  # bytes of a member's name and what else stands in its header


@dataclass
class TarIndex:
    """One tar's samples: keys, (offset, bytes) of images, class names, (extension, offset, bytes) of texts.

    `ignored` counts members by extension, or as "link" or "device"; `problems` are (key, why). `contents` is a digest of
    what is read, "" where nobody asked for one. `ends` are the images' extensions, `classes` all that the shard lists ([]: no list).
    `stale` says that an index lies beside the shard which is not of this shard.
    """

    keys: list[str] = field(default_factory=list)
    images: list[tuple[int, int]] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    texts: list[list[tuple[str, int, int]]] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    contents: str = ""
    ends: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    stale: bool = False


def index_tar(path: Path, *, contents: bool = False, where: str = "") -> TarIndex:
    """The index of a tar, from the cache when the file has not changed since.

    Args:
        path: of the tar.
        contents: read every image once, for the digest of the whole.
        where: what it is called in messages.

    Raises:
        TokError: no such file, compressed, or not a tar at all. A tar that is cut short is indexed as far as
            it goes and says so in `problems`.
    """
    where = where or f"--data {path}"
    try:
        state = path.stat()
    except OSError:
        raise NotFound(where, "no such file", next="Check the path") from None
    with contextlib.suppress(OSError, limits.TooLarge):
        packed = parse_index(
            limits.read_bytes(packed_index(path), max(limits.MOST_JSON, state.st_size)),
            state.st_size,
            int(state.st_mtime),
        )
        if packed is not None:
            return packed
    beside = packed_index(path).exists()
    index = _indexed(path, state, contents or beside, where)
    index.stale = beside
    return index


def _indexed(path: Path, state: os.stat_result, contents: bool, where: str) -> TarIndex:
    with contextlib.suppress(ValueError, TypeError):
        index = TarIndex(**recall(KEPT, path, state_of(state)))
        index.problems = [(key, why) for key, why in index.problems]
        if index.contents or not contents:
            return index
    index = _build(path, contents, where)
    keep(KEPT, path, state_of(state), vars(index))
    return index


def packed_index(path: Path) -> Path:
    """Where the index of a shard lies that `tok data pack` wrote."""
    return path.with_suffix(".index.json")


def contents_of(path: Path) -> str:
    """The digest of what is read of a shard."""
    return _build(path, True, f"--data {path}").contents


def write_index(path: Path) -> None:
    """Index a shard beside it, for starts that then read no headers."""
    index = _build(path, True, f"--data {path}")
    state = path.stat()
    said = {"version": VERSION, "bytes": state.st_size, "time": int(state.st_mtime), "index": vars(index)}
    write_text(packed_index(path), json.dumps(said))


def parse_index(data: bytes, size: int, time: int | None) -> TarIndex | None:
    """The index that lies beside a shard; None where it is damaged, or of a shard of another size or time of change.

    Args:
        size: of the shard, in bytes.
        time: of its last change, in seconds; None where nobody knows.
    """
    try:
        said = limits.parse_json(data, max(limits.MOST_JSON, size))
        if (said["version"], said["bytes"]) != (VERSION, size) or time not in (None, said["time"]):
            return None
        index = TarIndex(**said["index"])
        index.problems = [(key, why) for key, why in index.problems]
        each = (index.images, index.names, index.texts, index.ends)
        fits = all(len(part) == len(index.keys) for part in each) and not any(bad_name(key) for key in index.keys)
        return index if fits and _well_formed(index) else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _well_formed(index: TarIndex) -> bool:
    """Whether all parts are of their types: an index is a file like any other, and may come from anywhere."""

    def place(found: Any) -> bool:
        return len(found) == 2 and all(type(number) is int and 0 <= number < 1 << 62 for number in found)

    def text(found: Any) -> bool:
        return found[0] in TEXTS and place(found[1:])

    return (
        all(name is None or isinstance(name, str) for name in index.names)
        and all(isinstance(name, str) for name in (index.contents, *index.classes))
        and all(end in IMAGES for end in index.ends)
        and all(map(place, index.images))
        and all(text(one) for texts in index.texts for one in texts)
        and all(isinstance(kind, str) and type(count) is int for kind, count in index.ignored.items())
    )


@dataclass(slots=True)
class _Parts:
    """The members of one sample: by extension those that are read, and the names of images that are not."""

    read: dict[str, tuple[int, int]] = field(default_factory=dict)
    unread: tuple[tuple[str, str], ...] = ()  # (name, extension)


def _build(path: Path, contents: bool, where: str) -> TarIndex:
    index = TarIndex()
    samples: dict[str, _Parts] = {}
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        try:
            headers = _Headers(file)
            with tarfile.open(fileobj=headers, mode="r:") as tar:  # type: ignore[call-overload]
                _members(tar, headers, path, samples, index)
                _end(tar, path, index)
        except (tarfile.TarError, ValueError, OverflowError) as error:  # numbers in a header that are none
            raise TokError(
                where, "not a plain tar", why=str(error), next="Decompress it: samples are read in place"
            ) from None
        for key in list(samples):
            parts = samples.pop(key)  # millions of them take more than the index does
            _add(index, path, file.fileno(), key, parts)
            for end, (offset, size) in parts.read.items() if contents else ():
                digest.update(f"{key}.{end} {size}\n".encode("utf-8", "surrogateescape"))
                for start in range(offset, offset + size, CHUNK):
                    digest.update(os.pread(file.fileno(), min(CHUNK, offset + size - start), start))
    index.contents = digest.hexdigest() if contents else ""
    return index


class _Headers:
    """A tar as `tarfile` reads it: its headers, of which none may be longer than any name or map that is needed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.left = file, MOST_HEADER

    def read(self, size: int) -> bytes:
        if size > self.left:
            raise tarfile.ReadError(f"a header of more than {MOST_HEADER:,} bytes")
        self.left -= size
        return self._file.read(size)

    def seek(self, offset: int) -> int:
        return self._file.seek(offset)

    def tell(self) -> int:
        return self._file.tell()


def _members(tar: tarfile.TarFile, headers: _Headers, path: Path, samples: dict[str, _Parts], index: TarIndex) -> None:
    bytes_there = path.stat().st_size
    while True:
        headers.left = MOST_HEADER
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
        if member.name.removeprefix("./") == CLASSES and member.isfile() and not member.issparse():
            index.classes = _classes(path, member, index)
            continue
        key = (f"{folder}/{stem}" if folder else stem).removeprefix("./")
        if not stem and member.isfile():  # as macOS puts ._1.jpg beside 1.jpg
            index.ignored[HIDDEN] = index.ignored.get(HIDDEN, 0) + 1
            continue
        if not member.isfile() or member.issparse() or extension.lower() not in (*IMAGES, *TEXTS):
            if (
                member.isfile()
                and not member.issparse()
                and os.path.splitext(file_name)[1].lower() in (*IMAGE_EXTENSIONS, *OTHER_IMAGES)
            ):
                samples.setdefault(key, _Parts()).unread += ((member.name, extension.lower()),)
                continue
            kind = _kind(member, extension)
            index.ignored[kind] = index.ignored.get(kind, 0) + 1
            continue
        if member.offset_data + member.size > bytes_there:
            index.problems.append((f"{path.name}/{key}", f"the tar ends inside {member.name}"))
            continue
        parts = samples.setdefault(key, _Parts()).read
        if extension.lower() in parts:
            index.problems.append((f"{path.name}/{key}", f"a second {member.name} is not read"))
        else:
            parts[extension.lower()] = (member.offset_data, member.size)


def _classes(path: Path, member: tarfile.TarInfo, index: TarIndex) -> list[str]:
    """The classes that a shard lists in their order; [] where the list is damaged, which is a problem."""
    with open(path, "rb") as file:
        file.seek(member.offset_data)
        data = file.read(min(member.size, MOST_LIST))
    try:
        listed = limits.parse_json(data)
        if isinstance(listed, list) and all(isinstance(name, str) for name in listed) and len({*listed}) == len(listed):
            return listed
    except ValueError:
        pass
    index.problems.append((f"{path.name}/{CLASSES}", "is not a list of classes, or too long"))
    return []


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


def _add(index: TarIndex, path: Path, fd: int, key: str, sample: _Parts) -> None:
    parts, name = sample.read, f"{path.name}/{key}"
    end = next((extension for extension in IMAGES if extension in parts), "")
    image = parts.get(end)
    for member, extension in sample.unread:
        if image is not None:  # another picture of the sample, such as a mask
            index.ignored[f".{extension}"] = index.ignored.get(f".{extension}", 0) + 1
        else:
            why = f"images of type .{extension} are not read"
            if "." in extension:
                why = f"a key ends at the first dot: .{extension} is no image's extension"
            index.problems.append((f"{path.name}/{member}", why))
    if not parts:
        return
    if why := bad_name(key) or ("" if image else "no image beside its texts"):
        index.problems.append((name, why))
        return
    assert image is not None
    text, row = (read_member(fd, *parts[end]) if end in parts else b"" for end in ("txt", "json"))
    index.keys.append(key)
    index.images.append(image)
    index.ends.append(end)
    index.texts.append([(end, *parts[end]) for end in ("txt", "json") if end in parts])
    try:
        index.names.append(_class_name(fd, parts, row))
    except ValueError as error:
        index.names.append(None)
        index.problems.append((name, str(error)))
    index.problems += [(name, fault) for fault in faults_beside(text, row)]


def _class_name(fd: int, parts: dict[str, tuple[int, int]], row: bytes) -> str | None:
    if "cls" in parts:
        return class_name(read_member(fd, *parts["cls"]).decode("utf-8", "replace"))
    said = parse_json(row)
    return class_name(said.get("cls", said.get("label")))


def read_member(fd: int, offset: int, size: int) -> bytes:
    """At most MOST_TEXT bytes of a member."""
    return os.pread(fd, min(size, MOST_TEXT), offset)
