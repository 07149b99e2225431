"""The hostile files of `hostile_files.py`: each claims more than it holds."""

import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GB = 1 << 30
KINDS: dict[str, tuple[str, Callable[[Path], Any]]] = {}


def kind(name: str, command: str) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    """Register a maker of a hostile file, and the key of COMMANDS that reads it."""

    def register(make: Callable[[Path], Any]) -> Callable[[Path], Any]:
        KINDS[name] = (command, make)
        return make

    return register


def good_png() -> bytes:
    """A small PNG."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 10, 90)).save(file, "PNG")
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour: int, *more: bytes, pixels: bool = True) -> bytes:
    """A PNG of zeros; without pixels it only claims them."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row, packer, packed = bytes(1 + (width * channels * depth + 7) // 8), zlib.compressobj(9), []
    packed = [packer.compress(row) for _ in range(height if pixels else 0)] + [packer.flush()]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", b"".join(packed)) + chunk(b"IEND", b"")


def sparse(path: Path, size: int, start: bytes = b"", at: int = 0, end: bytes = b"") -> None:
    """A file of holes: `start` at its beginning, `end` at byte `at`."""
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(size)
        if end:
            file.seek(at)
            file.write(end)


def saved(mode: str, side: int, form: str, **options: Any) -> bytes:
    """A picture of one colour, as Pillow writes it."""
    file = io.BytesIO()
    Image.new(mode, (side, side)).save(file, form, **options)
    return file.getvalue()


SIDE, MOST = 8000, 13370  # 64 million pixels, the default of data.max_pixels; what Pillow itself lets pass


def _made(root: Path, make: Callable[[], bytes], file: str) -> None:
    (root / file).write_bytes(make())


def _images() -> None:
    zeros = zlib.compress(bytes(64 << 20), 9)
    makers: dict[str, Callable[[], bytes]] = {
        "png, 69 bytes that claim 178 megapixels": lambda: png(MOST, MOST, 16, 0, pixels=False),
        "png, grey of 16 bits, 178 megapixels": lambda: png(MOST, MOST, 16, 0),
        "png, RGBA, 178 megapixels": lambda: png(MOST, MOST, 8, 6),
        "png, RGB, 64 megapixels": lambda: png(SIDE, SIDE, 8, 2),
        "png, RGBA, 64 megapixels": lambda: png(SIDE, SIDE, 8, 6),
        "png, RGBA of 16 bits, 64 megapixels": lambda: png(SIDE, SIDE, 16, 6),
        "png, grey of 16 bits, 64 megapixels": lambda: png(SIDE, SIDE, 16, 0),
        "png, palette with a transparent colour, 64 megapixels": lambda: png(
            SIDE, SIDE, 8, 3, chunk(b"PLTE", bytes(768)), chunk(b"tRNS", bytes(256))
        ),
        "png, zTXt of 64 MB": lambda: png(64, 64, 8, 2, chunk(b"zTXt", b"a\0\0" + zeros)),
        "png, 40 zTXt of 64 MB": lambda: png(64, 64, 8, 2, *[chunk(b"zTXt", b"a\0\0" + zeros)] * 40),
        "png, iTXt of 64 MB": lambda: png(64, 64, 8, 2, chunk(b"iTXt", b"a\0\1\0\0\0" + zeros)),
        "png, iCCP of 64 MB": lambda: png(64, 64, 8, 2, chunk(b"iCCP", b"a\0\0" + zeros)),
        "tiff, deflated in one strip, 178 megapixels": lambda: saved("RGB", MOST, "TIFF", compression="tiff_deflate"),
        "tiff, deflated, RGBA, 64 megapixels": lambda: saved("RGBA", SIDE, "TIFF", compression="tiff_deflate"),
        "tiff, grey of 16 bits, 64 megapixels": lambda: saved("I;16", SIDE, "TIFF", compression="tiff_deflate"),
        "gif, 178 megapixels": lambda: saved("P", MOST, "GIF"),
        "gif, transparent, 64 megapixels": lambda: saved("P", SIDE, "GIF", transparency=0),
        "webp, lossless, 178 megapixels": lambda: saved("RGB", MOST, "WEBP", lossless=True, method=0, quality=0),
        "webp, lossless, RGBA, 64 megapixels": lambda: saved("RGBA", SIDE, "WEBP", lossless=True, method=0, quality=0),
        "webp, 64 megapixels": lambda: saved("RGB", SIDE, "WEBP", method=0),
        "jpeg, progressive, 178 megapixels": lambda: saved("RGB", MOST, "JPEG", progressive=True),
        "jpeg, progressive 4:4:4, 64 megapixels": lambda: saved("RGB", SIDE, "JPEG", progressive=True, subsampling=0),
        "jpeg, CMYK, 64 megapixels": lambda: saved("CMYK", SIDE, "JPEG"),
        "avif, 178 megapixels": lambda: saved("RGB", MOST, "AVIF", speed=10),
        "avif, 64 megapixels": lambda: saved("RGB", SIDE, "AVIF", speed=10),
    }
    for name, make in makers.items():
        end = name.split(",")[0]
        kind(name, "folder")(partial(_made, make=make, file=f"bad.{end}"))


_images()


for end in ("png", "webp"):

    @kind(f"{end}, a file of 4 GiB, holes behind its header", "folder")
    def _(root: Path, end: str = end) -> None:
        sparse(root / f"bad.{end}", 4 * GB, saved("RGB", 64, end.upper())[:40])


HOLES = {  # file and what it begins with, before holes
    "a caption's .txt of 2 GiB": ("folder", "good.txt", 2 * GB, b""),
    "a caption's .json of 2 GiB": ("folder", "good.json", 2 * GB, b'{"caption": "'),
    "captions.jsonl of 2 GiB in one line": ("folder", "captions.jsonl", 2 * GB, b'{"key": "good.png", "caption": "'),
    "metadata.csv of 2 GiB in one field": ("folder", "metadata.csv", 2 * GB, b'file_name,text\ngood.png,"'),
    "a labels file of 2 GiB": ("labels", "labels.tsv", 2 * GB, b"good.png\ta\n"),
    "COCO's captions of 2 GiB, holes": ("coco", "annotations/captions_train.json", 2 * GB, b'{"images": "'),
    "weights, a file of holes of 4 GiB": ("weights", "w.pt", 4 * GB, b"\x80\x02"),
    "a manifest of 2 GiB, holes": ("show", "manifest.json", 2 * GB, b'{"schema": "'),
    "prompts of 2 GiB in one line": ("prompts", "p.txt", 2 * GB, b""),
}


def _hole(root: Path, file: str, size: int, start: bytes) -> None:
    sparse(root / file, size, start)


def _holes() -> None:
    for name, (command, file, size, start) in HOLES.items():
        kind(name, command)(partial(_hole, file=file, size=size, start=start))


_holes()


@kind("captions.jsonl, 3 million images that are not there", "folder")
def _(root: Path) -> None:
    with open(root / "captions.jsonl", "w") as file:
        file.writelines(json.dumps({"key": f"{i}.png", "captions": ["a"]}) + "\n" for i in range(3_000_000))


@kind("captions.jsonl, a line of 40 million brackets", "folder")
def _(root: Path) -> None:
    (root / "captions.jsonl").write_text('{"key":"good.png","captions":[' + "[]," * 40_000_000 + "[]]}\n")


@kind("a labels file, 3 million images that are not there", "labels")
def _(root: Path) -> None:
    with open(root / "labels.tsv", "w") as file:
        file.write("good.png\ta\n")
        file.writelines(f"{i}.png\t{i}\n" for i in range(3_000_000))


@kind("COCO's captions, 40 million brackets", "coco")
def _(root: Path) -> None:
    (root / "annotations" / "captions_train.json").write_text('{"images":[' + "[]," * 40_000_000 + "[]]}")


def member(name: bytes, size: int, type: bytes = b"0") -> bytes:
    """A header of a tar, in GNU's form where the size needs it."""
    info = tarfile.TarInfo(name.decode())
    info.size, info.type = size, type
    return info.tobuf(tarfile.GNU_FORMAT)


@kind("tar, an image of 3 GiB, packed", "pack-tar")
@kind("tar, an image of 3 GiB, holes", "tar")
def _(root: Path) -> None:
    sparse(root / "a.tar", 3 * GB + 2048, member(b"bad.png", 3 * GB) + good_png()[:40])


for letter, what in (
    (b"x", "a pax header"),
    (b"g", "a global pax header"),
    (b"L", "a GNU long name"),
    (b"K", "a GNU long link"),
):

    @kind(f"tar, {what} of 1.8 GB", "tar")
    def _(root: Path, letter: bytes = letter) -> None:
        start = member(b"good.png", 64) + bytes(512) + member(b"long", 1_800_000_000, letter)
        sparse(root / "a.tar", 1_800_000_000 + 8192, start, 1_800_000_000 + 4096, member(b"b.png", 0))


@kind("tar, a sparse map of GNU's old form, 3 million parts", "tar")
def _(root: Path) -> None:
    first = bytearray(member(b"bad.png", 0, b"S"))
    first[482] = 1  # a further block follows
    first[148:156] = b"%06o\0 " % (sum(first[:148]) + sum(first[156:]) + 8 * ord(" "))
    further = (b"%011o\0%011o\0" % (0, 1)) * 21 + b"\1" + bytes(7)
    (root / "a.tar").write_bytes(bytes(first) + further * 150_000)


@kind("tar, a sparse map of form 1.0 that does not end", "tar")
def _(root: Path) -> None:
    info = tarfile.TarInfo("bad.png")
    info.size = GB
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "b.png",
        "GNU.sparse.realsize": "9",
    }
    sparse(root / "a.tar", GB, info.tobuf(tarfile.PAX_FORMAT) + b"99999999\n" + b"1" * 64_000_000)


@kind("weights, a zip of 6 GB of zeros", "weights")
def _(root: Path) -> None:
    import torch

    torch.save({"a": torch.zeros(1)}, root / "small.pt")
    with (
        zipfile.ZipFile(root / "small.pt") as small,
        zipfile.ZipFile(root / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for info in small.infolist():
            data = small.read(info)
            if info.filename.endswith("data.pkl"):
                data = data.replace(b"K\x01tQ", b"J" + struct.pack("<i", 1_500_000_000) + b"tQ", 1)
            if not info.filename.endswith("data/0"):
                archive.writestr(info.filename, data)
            else:
                with archive.open(info.filename, "w", force_zip64=True) as file:
                    for _ in range(5723):
                        file.write(bytes(1 << 20))


def pickled(path: Path, code: bytes) -> None:
    """A checkpoint whose pickle is this code."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (("data.pkl", code), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(f"w/{name}", data)


@kind("weights, a pickle that asks for a bytearray of 6 GB", "weights")
def _(root: Path) -> None:
    pickled(root / "w.pt", b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + struct.pack("<q", 6_000_000_000)[:5] + b"\x85R.")


@kind("weights, a pickle of 40 million lists", "weights")
def _(root: Path) -> None:
    pickled(root / "w.pt", b"\x80\x02](" + b"]" * 40_000_000 + b"e.")


@kind("weights, a tar with a pax header of 1.8 GB", "weights")
def _(root: Path) -> None:
    sparse(root / "w.pt", 1_800_000_000 + 8192, member(b"long", 1_800_000_000, b"x"))


@kind("safetensors, a header of 90 MB", "safetensors")
def _(root: Path) -> None:
    entries = ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(1_500_000)).encode()
    (root / "w.safetensors").write_bytes(struct.pack("<Q", len(entries) + 2) + b"{" + entries + b"}")


def npz(path: Path, shape: tuple[int, ...], zeros: int, name: str = "mu.npy") -> None:
    """A .npz with one array of a forged shape over so many bytes of zeros."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w", force_zip64=True) as file:
        file.write(head.getvalue())
        for _ in range(zeros >> 20):
            file.write(bytes(1 << 20))


@kind("npz, an array of 4 GB of zeros", "npz")
def _(root: Path) -> None:
    npz(root / "a.npz", (500_000_000,), 4_000_000_000)


@kind("npz, a shape that nothing is behind", "npz")
def _(root: Path) -> None:
    npz(root / "a.npz", (1 << 40,), 0)


@kind("npz, a directory of 1.2 million members", "npz")
def _(root: Path) -> None:
    head = b"PK\3\4" + bytes(26)
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    size, count = len(entry) * 1_200_000, 1_200_000
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, len(head))
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(head) + size, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    (root / "a.npz").write_bytes(head + entry * count + end64 + locator + end)


@kind("npy, a cache of features with a forged shape", "npy")
def _(root: Path) -> None:
    with open(root / "a.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|S0", "fortran_order": False, "shape": (1 << 33,)})


@kind("idx, gzip of 4 GB of zeros", "idx")
def _(root: Path) -> None:
    with gzip.open(root / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(bytes([0, 0, 8, 3]) + struct.pack(">III", 3, 30_000, 44_000))
        for _ in range(3777):
            file.write(bytes(1 << 20))


@kind("a recipe of 1 MB of brackets", "recipe")
def _(root: Path) -> None:
    (root / "r.yaml").write_text("stage: tokens\nx: [" + "[a]," * 250_000 + "]")


@kind("a manifest of 40 million brackets", "show")
def _(root: Path) -> None:
    (root / "manifest.json").write_text('{"schema": 1, "kind": "tokens", "facts": [' + "[]," * 40_000_000 + "[]]}")
