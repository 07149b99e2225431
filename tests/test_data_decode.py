"""Bytes to pixels: every mode that is met in the wild, and everything that is no image."""

import io
import resource
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tokcli.data.decode import BadImage, decode
from tokcli.recipe import MAX_PIXELS


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png_claiming(width: int, height: int, rows: int) -> bytes:
    """A PNG of 1-bit pixels whose data is `rows` rows of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes((width // 8 + 1) * rows)))
    return b"\x89PNG\r\n\x1a\n" + head + data + chunk(b"IEND", b"")


RED = Image.new("RGB", (3, 2), (255, 0, 0))


def test_rgb_comes_back_as_it_was() -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    found = decode(encoded(Image.fromarray(pixels)))
    assert found.dtype == torch.uint8
    assert np.array_equal(found.permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "JPEG", "WEBP", "GIF"])
def test_every_listed_format_is_read(format: str) -> None:
    grey = Image.new("RGB", (4, 5), (128, 128, 128))
    assert (decode(encoded(grey, format)).float() - 128).abs().max() <= 2


def test_grey_has_three_equal_channels() -> None:
    assert decode(encoded(Image.new("L", (2, 2), 70))).tolist() == [[[70, 70], [70, 70]]] * 3


def test_one_bit_becomes_black_and_white() -> None:
    assert decode(encoded(Image.new("1", (1, 1), 1))).flatten().tolist() == [255, 255, 255]


def test_transparent_pixels_are_white() -> None:
    assert decode(encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 0)))).flatten().tolist() == [255, 255, 255]


def test_half_transparent_red_is_pink() -> None:
    r, g, b = decode(encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 128)))).flatten().tolist()
    assert r == 255 and g == b and 125 <= g <= 129


def test_grey_with_alpha_is_laid_on_white() -> None:
    assert decode(encoded(Image.new("LA", (1, 1), (10, 0)))).flatten().tolist() == [255, 255, 255]
    assert decode(encoded(Image.new("LA", (1, 1), (10, 255)))).flatten().tolist() == [10, 10, 10]


def test_a_palettes_transparent_colour_is_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 255, 0, 255, 0])
    image.putdata([0, 1])
    found = decode(encoded(image, transparency=0))
    assert found[:, 0, 0].tolist() == [255, 255, 255]
    assert found[:, 0, 1].tolist() == [0, 255, 0]


def test_rgb_with_a_transparent_colour_is_laid_on_white() -> None:
    assert decode(encoded(RED, transparency=(255, 0, 0))).unique().tolist() == [255]


def test_cmyk_jpeg_becomes_rgb() -> None:
    r, g, b = decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))[:, 4, 4].tolist()
    assert r > 230 and g < 30 and b < 30


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    assert decode(encoded(Image.fromarray(values)))[0].tolist() == [[0, 1, 128, 255]]


def test_float_pixels_are_refused() -> None:
    with pytest.raises(BadImage, match="no known white"):
        decode(encoded(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF"))


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_exif_orientation_is_applied(orientation: int, corner: tuple[int, int]) -> None:
    image = Image.new("RGB", (32, 16))
    image.paste((255, 255, 255), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(encoded(image, "JPEG", exif=exif.tobytes(), quality=95))
    assert found.shape == ((3, 32, 16) if orientation > 4 else (3, 16, 32))
    assert found[0][corner] > 200 and found[0].float().mean() < 50


def test_a_single_pixel_is_an_image() -> None:
    assert decode(encoded(Image.new("RGB", (1, 1)))).shape == (3, 1, 1)


def test_truncated_jpeg_is_bad() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG")
    with pytest.raises(BadImage, match=r"^a.jpg: .*truncated"):
        decode(data[: len(data) // 2], "a.jpg")


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>", b"\xff\xd8\xff", b"P6 1 1 255 abc"])
def test_what_is_no_image_is_bad(data: bytes) -> None:
    with pytest.raises(BadImage, match=r"a.jpg"):
        decode(data, "a.jpg")


def test_a_missing_file_is_bad(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="No such file"):
        decode(tmp_path / "gone.png")


@pytest.mark.parametrize("side", [14_000, 20_000])  # the first is over our limit only, the second over Pillow's too
def test_a_huge_image_is_refused_by_its_size_before_memory_is_spent(side: int) -> None:
    data = png_claiming(side, side, rows=side)
    assert len(data) < 100_000 and side**2 > MAX_PIXELS
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(BadImage, match=f"{side}x{side} is more than 64,000,000 pixels"):
        decode(data, "bomb.png")
    assert time.process_time() - start < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_refusing_a_bomb_leaves_pillows_own_limit_alone() -> None:
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(BadImage):
        decode(png_claiming(20_000, 20_000, rows=1))
    assert limit == Image.MAX_IMAGE_PIXELS


def test_bad_image_survives_the_way_out_of_a_worker() -> None:
    import copy

    assert str(copy.copy(BadImage("a", "why"))) == "a: why"
