"""More hostile files of `hostile_files.py`: parts of foreign artifacts, indexes and lists of tars, Parquet
files, word pieces; and images that lie in other ways."""

import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hostile_makers import GB, good_png, kind, member, png, saved, sparse

BRACKETS = 40_000_000
TOKENS = {
    "name": "x",
    "rows": 4,
    "shards": 1,
    "views": ["center"],
    "grid": [2, 2],
    "codebook_size": 8,
    "classes": ["a", "b"],
    "use_size": 64,
}
SAMPLES = {"name": "x", "number": 1, "per_file": 1, "labels": [-1], "classes": [], "use_size": 64, "format": "png"}


def artifact(folder: Path, kind: str, facts: Mapping[str, Any], write: Callable[[Path], Any]) -> None:
    """An artifact whose manifest fits the files that `write` makes, whatever they are."""
    from tokcli.artifact.draft import Draft, begin

    shutil.rmtree(folder, ignore_errors=True)
    draft = begin(folder, kind, {"stage": kind, "seed": 0}, {}, {"command": ["tok"]})
    assert isinstance(draft, Draft)
    write(folder)
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix in SUFFIXES]
    draft.finish(facts, payload=sorted(name for name in names if not name.startswith("images/")))


SUFFIXES = (".npy", ".txt", ".jsonl", ".sha256", ".png")


def tokens(folder: Path) -> None:
    """What an artifact of four tokenized images holds."""
    np.save(folder / "indices-00000.npy", np.zeros((4, 1, 4), np.uint16))
    np.save(folder / "labels.npy", np.zeros(4, np.int32))
    (folder / "keys.txt").write_text("a\nb\nc\nd\n")
    (folder / "captions.jsonl").write_text('{"captions": []}\n' * 4)


def samples(folder: Path, listed: bool = True) -> None:
    """What an artifact of one sample holds."""
    (folder / "images").mkdir()
    (folder / "images" / "000000.png").write_bytes(good_png())
    np.save(folder / "indices-00000.npy", np.zeros((1, 4), np.uint16))
    if listed:
        list_images(folder)


def list_images(folder: Path) -> None:
    """The listing of its hashes."""
    from tokcli.artifact.draft import write_listing

    write_listing(folder, "images.sha256", ["images/000000.png"])


def tokens_kind(name: str) -> Callable[[Callable[[Path], Any]], None]:
    """Register a maker of one bad file among tokens."""

    def register(spoil: Callable[[Path], Any]) -> None:
        def write(folder: Path) -> None:
            tokens(folder)
            spoil(folder)

        kind(f"tokens, {name}", "tokens")(lambda root: artifact(root / "a", "tokens", TOKENS, write))

    return register


tokens_kind("keys.txt of 2 GiB, holes")(lambda folder: sparse(folder / "keys.txt", 2 * GB, b"a\n"))
tokens_kind("captions.jsonl of 2 GiB in one line")(
    lambda folder: sparse(folder / "captions.jsonl", 2 * GB, b'{"captions": ["')
)
tokens_kind("captions.jsonl, 4 lines of 4 million brackets")(
    lambda folder: (folder / "captions.jsonl").write_text(('{"captions":[' + "[]," * 4_000_000 + "[]]}\n") * 4)
)
tokens_kind("captions.jsonl, 3 million lines for 4 images")(
    lambda folder: (folder / "captions.jsonl").write_text('{"captions": ["a"]}\n' * 3_000_000)
)


@tokens_kind("labels.npy whose header claims 8 GB")
def _(folder: Path) -> None:
    with open(folder / "labels.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i4", "fortran_order": False, "shape": (1 << 31,)})


@kind("samples, a listing of 2 GiB, holes", "samples")
def _(root: Path) -> None:
    def write(folder: Path) -> None:
        samples(folder, listed=False)
        sparse(folder / "images.sha256", 2 * GB)

    artifact(root / "a", "samples", SAMPLES, write)


@kind("samples, a PNG of 3 GiB, holes behind its header", "samples")
def _(root: Path) -> None:
    def write(folder: Path) -> None:
        samples(folder, listed=False)
        sparse(folder / "images" / "000000.png", 3 * GB, good_png()[:40])
        list_images(folder)

    artifact(root / "a", "samples", SAMPLES, write)


@kind("samples, a PNG of 178 megapixels", "samples")
def _(root: Path) -> None:
    def write(folder: Path) -> None:
        samples(folder, listed=False)
        (folder / "images" / "000000.png").write_bytes(png(13370, 13370, 8, 6))
        list_images(folder)

    artifact(root / "a", "samples", SAMPLES, write)


@kind("nonfinite.json of 40 million brackets", "evidence")
def _(root: Path) -> None:
    (root / "a" / "nonfinite.json").write_text('{"step": 1, "samples": [' + "[]," * BRACKETS + "[]]}")


@kind("metrics.json of 40 million brackets", "report")
def _(root: Path) -> None:
    write = lambda folder: (folder / "metrics.json").write_text("[" + "[]," * BRACKETS + "[]]")  # noqa: E731
    report(root, write)


def report(root: Path, write: Callable[[Path], Any]) -> None:
    """An artifact of kind report."""
    from tokcli.artifact.draft import Draft, begin

    shutil.rmtree(root / "a", ignore_errors=True)
    draft = begin(root / "a", "report", {"stage": "eval", "seed": 0}, {}, {"command": ["tok"]})
    assert isinstance(draft, Draft)
    write(root / "a")
    draft.finish({"name": "x", "protocol": {}}, payload=["metrics.json"])


@kind("a plan of 40 million brackets", "plan")
def _(root: Path) -> None:
    (root / "plan.json").write_text('{"plan": 1, "facts": [' + "[]," * BRACKETS + "[]]}")


@kind("word pieces of 2 GiB, holes", "words")
def _(root: Path) -> None:
    sparse(root / "tokenizer.json", 2 * GB, b'{"version": "')


@kind("word pieces of 5 million brackets", "words")
def _(root: Path) -> None:
    (root / "tokenizer.json").write_text('{"version": [' + "[]," * 5_000_000 + "[]]}")


def with_member(name: str, size: int, start: bytes = b"") -> Callable[[Path], None]:
    """A tar of one good image and a member of holes."""

    def make(root: Path) -> None:
        good = member(b"good.png", len(good_png())) + good_png().ljust(-(-len(good_png()) // 512) * 512, b"\0")
        rounded = -(-size // 512) * 512
        sparse(root / "a.tar", len(good) + 512 + rounded + 1024, good + member(name.encode(), size) + start)

    return make


for end, start in (("cls", b"7"), ("txt", b"a"), ("json", b'{"caption": "')):
    kind(f"tar, a member .{end} of 2 GiB, holes", "tar")(with_member(f"good.{end}", 2 * GB, start))
kind("tar, a list of classes of 2 GiB, holes", "tar")(with_member(".classes.json", 2 * GB, b'["'))


@kind("tar, a list of classes of 20 million brackets", "tar")
def _(root: Path) -> None:
    text = b"[" + b"[]," * 20_000_000 + b"[]]"
    with_member(".classes.json", len(text), text)(root)


@kind("tar, the index beside it of 2 GiB, holes", "tar")
def _(root: Path) -> None:
    sparse(root / "a.index.json", 2 * GB, b'{"version": 4, "index": "')


@kind("tar, the index beside it of 40 million brackets", "tar")
def _(root: Path) -> None:
    (root / "a.index.json").write_text('{"version": 4, "index": [' + "[]," * BRACKETS + "[]]}")


@kind("tar, 250,000 samples of no bytes", "tar")
def _(root: Path) -> None:
    with open(root / "a.tar", "wb") as file:
        info = tarfile.TarInfo("x")
        for number in range(250_000):  # a true gigabyte holds 2 million, and their index takes 1.2 KB each
            info.name = f"{number}.png"
            file.write(info.tobuf(tarfile.USTAR_FORMAT))
        file.write(bytes(1024))


@kind("tiff, a tile that claims 60000x60000 in an image of 64x64", "folder")
def _(root: Path) -> None:
    tags = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: 60_000, 323: 60_000, 324: 200, 325: 16}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    (root / "bad.tiff").write_bytes(head.ljust(200, b"\0") + zlib.compress(bytes(64)))


@kind("gif, a frame of 65535x65535 on a screen of 64x64", "folder")
def _(root: Path) -> None:
    head = b"GIF89a" + struct.pack("<HHBBB", 64, 64, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\2\2\x4c\1\0;"
    (root / "bad.gif").write_bytes(head + frame)


@kind("bmp, packed by runs, 64 megapixels", "folder")
def _(root: Path) -> None:
    rows = (b"\xff\0" * 31 + b"\x5f\0\0\0") * 8000 + b"\0\1"  # 31 * 255 + 95 = 8000
    size = struct.pack("<IiiHHIIiiII", 40, 8000, 8000, 1, 8, 1, len(rows), 0, 0, 256, 0)
    head = b"BM" + struct.pack("<IHHI", 54 + 1024 + len(rows), 0, 0, 54 + 1024) + size + bytes(1024)
    (root / "bad.bmp").write_bytes(head + rows)


@kind("jpeg, progressive, its last scan 2,000 times, 49 megapixels", "folder")
def _(root: Path) -> None:
    data = saved("L", 7000, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    (root / "bad.jpg").write_bytes(data[:last] + data[last:-2] * 2000 + b"\xff\xd9")


def parquet(path: Path, value: bytes, rows: int, **options: Any) -> None:
    """A Parquet file with an image column that repeats one value, which is stored once."""
    import pyarrow
    import pyarrow.parquet

    column = pyarrow.DictionaryArray.from_arrays(np.zeros(rows, np.int32), pyarrow.array([value], pyarrow.binary()))
    pyarrow.parquet.write_table(pyarrow.table({"image": column}), path, compression="zstd", **options)


@kind("parquet, 60 rows of one value of 64 MB", "parquet")
def _(root: Path) -> None:
    parquet(root / "a.parquet", good_png() + bytes(64 << 20), 60)


@kind("parquet, one value of 800 MB", "parquet")
def _(root: Path) -> None:
    parquet(root / "a.parquet", good_png() + bytes(800 << 20), 1)


def varint(number: int, length: int = 0) -> bytes:
    """A number as Thrift's compact form writes it, in so many bytes at least."""
    number, found = number << 1, b""
    while number > 127 or len(found) < length - 1:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


@kind("parquet, one value of 800 MB that its footer says nothing of", "parquet")
def _(root: Path) -> None:
    parquet(root / "a.parquet", good_png() + bytes(800 << 20), 1)
    data = (root / "a.parquet").read_bytes()
    import pyarrow.parquet

    group = pyarrow.parquet.ParquetFile(root / "a.parquet").metadata.row_group(0)
    size = varint(group.total_byte_size)
    at = len(data) - 8 - struct.unpack("<I", data[-8:-4])[0]
    assert size in data[at:]
    (root / "a.parquet").write_bytes(data[:at] + data[at:].replace(size, varint(1000, len(size))))


@kind("parquet, a footer that claims 3 GiB", "parquet")
def _(root: Path) -> None:
    end = struct.pack("<I", (3 << 30) & 0xFFFFFFFF) + b"PAR1"
    sparse(root / "a.parquet", 3 * GB + 4096, b"PAR1", 3 * GB + 4096 - 8, end)


@kind("parquet, a footer with 2 GiB of text", "parquet")
def _(root: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"image": [good_png()]}).replace_schema_metadata(
        {"huggingface": "[" + "[]," * 20_000_000 + "[]]"}
    )
    pyarrow.parquet.write_table(table, root / "a.parquet")
