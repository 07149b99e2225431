"""What a file claims costs no memory: limits by the size that is declared, before anything is decoded."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tokcli.data import decode as decoding
from tokcli.data.decode import BadImage, Part, check_bytes, decode
from tokcli.data.sources import limited, open_source
from tokcli.recipe import MAX_PIXELS


def written(form: str, width: int = 12, height: int = 10, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height), 90).save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF"])
def test_an_image_of_as_many_pixels_as_are_allowed_is_read_and_one_of_a_row_more_is_not(form: str) -> None:
    assert decode(written(form), most=120).shape == (3, 10, 12)
    with pytest.raises(BadImage, match=r"12x10 is more than 119 pixels \(max_pixels\)"):
        decode(written(form), most=119)


@pytest.mark.parametrize(
    ("form", "options", "needed", "kind"),
    [("WEBP", {}, 240, "WEBP"), ("AVIF", {}, 240, "AVIF"), ("JPEG", {"progressive": True}, 150, "progressive JPEG")],
)
def test_formats_whose_decoders_hold_several_copies_have_a_share(
    form: str, options: dict[str, Any], needed: int, kind: str
) -> None:
    assert decode(written(form, **options), most=needed).shape == (3, 10, 12)
    with pytest.raises(BadImage, match=f"is more than 119 pixels of a {kind}"):
        decode(written(form, **options), most=needed - 1)


def test_a_refused_image_is_told_by_its_header_alone() -> None:
    head = (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">IIBBBBB", 90_000, 90_000, 8, 2, 0, 0, 0)
    )
    data = head + struct.pack(">I", zlib.crc32(head[12:])) + struct.pack(">I", 9) + b"IDAT"
    with pytest.raises(BadImage, match="90000x90000 is more than 64,000,000 pixels"):
        decode(data)


def test_a_file_of_more_than_four_bytes_a_pixel_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(written("PNG"))
    with open(path, "r+b") as file:
        file.truncate(4 * MAX_PIXELS + 1)  # of holes
    with pytest.raises(BadImage, match="more than 4 for each of 64,000,000 pixels"):
        decode(path)
    with pytest.raises(BadImage, match="bytes"):
        decode(Part(path, 8, 4 * MAX_PIXELS + 1), "a member")
    check_bytes(4 * MAX_PIXELS, "a.png")


def test_a_tile_of_a_tiff_that_is_larger_than_the_image_is_measured_too() -> None:
    tags = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: 20_000, 323: 20_000, 324: 8, 325: 9}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    with pytest.raises(BadImage, match="20000x20000 is more than"):
        decode(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + zlib.compress(bytes(9)))


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_field_of_a_tiff_with_millions_of_numbers_is_refused_unread(order: str) -> None:
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    entry = struct.pack(order + "HHII", 273, 4, 10_000_000, 0)
    with pytest.raises(BadImage, match="a field of 10,000,000 numbers"):
        decode(head + struct.pack(order + "H", 1) + entry)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "CMYK", "I;16"])
def test_strips_of_an_image_give_what_the_whole_gives(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (13, 7, 4), dtype=np.uint8)
    image = Image.fromarray(noise, "RGBA").convert({"I;16": "L", "CMYK": "RGB"}.get(mode, mode)).convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    whole = decoding.pixels_of(image.copy(), "")
    monkeypatch.setattr(decoding, "STRIP", 14)
    assert torch.equal(decoding.pixels_of(image, ""), whole)


def test_a_part_of_a_file_is_read_as_the_file_is(tmp_path: Path) -> None:
    data = written("TIFF", 40, 30, compression="tiff_deflate")
    (tmp_path / "two").write_bytes(b"before" + data + b"after")
    assert torch.equal(decode(Part(tmp_path / "two", 6, len(data))), decode(data))


def test_a_large_part_is_read_through_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokcli.data.decode.SMALL", 0)
    test_a_part_of_a_file_is_read_as_the_file_is(tmp_path)


def test_a_recipes_limit_reaches_the_images_also_through_a_subset(photos: Path) -> None:
    source = limited(open_source(str(photos / "train"), size=8, max_pixels=119), 2)
    assert source.max_pixels == 119
    with pytest.raises(BadImage, match="max_pixels"):
        source.image(0)
