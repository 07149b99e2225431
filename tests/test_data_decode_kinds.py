"""Pictures whose files say more than pixels: orientation in every format, depths, transparent greys, damaged side information."""

import io
import struct
import zlib
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tokcli import device
from tokcli.data import decode as decoding
from tokcli.data.decode import BadImage, decode

PIXELS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], [[0, 0, 0]] * 4], np.uint8)  # 2 rows of 4
UPRIGHT = {  # EXIF 2.3, table 6: where row 0 and column 0 of the stored picture lie
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: a[:, ::-1].swapaxes(0, 1),
}  # fmt: skip


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def rows(data: bytes) -> np.ndarray:
    return decode(data, "x").permute(1, 2, 0).numpy()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_all_orientations_are_applied_once_to_the_pixel(form: str, orientation: int) -> None:
    options = {"tiffinfo": {274: orientation}} if form == "TIFF" else {"exif": exif(orientation)}
    data = saved(Image.fromarray(PIXELS), form, **options, **({"lossless": True} if form == "WEBP" else {}))
    assert np.array_equal(rows(data), UPRIGHT[orientation](PIXELS))


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("form", ["JPEG", "AVIF"])
def test_all_orientations_are_applied_once_to_lossy_formats(form: str, orientation: int) -> None:
    if form == "AVIF" and not find_spec("PIL._avif"):
        pytest.skip("this Pillow reads no AVIF")
    large = PIXELS.repeat(16, 0).repeat(16, 1)
    found = rows(saved(Image.fromarray(large), form, exif=exif(orientation), quality=95))
    wanted = UPRIGHT[orientation](large)
    assert found.shape == wanted.shape and np.abs(found.astype(int) - wanted).mean() < 12


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "I;16", "RGBA", "frames", "LZW"])
def test_a_tiff_of_any_kind_is_turned_once(mode: str, orientation: int) -> None:
    image = Image.fromarray(PIXELS)
    options: dict[str, object] = {"compression": "tiff_lzw"} if mode == "LZW" else {}
    if mode == "frames":
        options = {"save_all": True, "append_images": [image]}
    elif mode == "I;16":
        image = Image.fromarray(np.arange(8, dtype=np.uint16).reshape(2, 4) * 257)
    elif mode != "LZW":
        image = image.convert(mode)
    plain = rows(saved(image, "TIFF", **options))
    assert np.array_equal(
        rows(saved(image, "TIFF", tiffinfo={274: orientation}, **options)), UPRIGHT[orientation](plain)
    )


@pytest.mark.parametrize("value", [0, 9, 300])
def test_an_orientation_that_is_none_is_not_applied(value: int) -> None:
    assert np.array_equal(rows(saved(Image.fromarray(PIXELS), "PNG", exif=exif(value))), PIXELS)


GREYS = np.array([[0, 257 * 10, 257 * 200, 65535]], np.uint16)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_are_scaled(form: str) -> None:
    assert rows(saved(Image.fromarray(GREYS), form))[0, :, 0].tolist() == [0, 10, 200, 255]


def test_white_is_zero_where_a_sixteen_bit_tiff_says_so() -> None:
    data = saved(Image.fromarray(GREYS), "TIFF", tiffinfo={262: 0})
    assert rows(data)[0, :, 0].tolist() == [255, 245, 55, 0]


@pytest.mark.parametrize("photometric", [0, 1])
def test_white_is_zero_of_eight_bits_and_of_one_is_meant_too(photometric: int) -> None:
    for mode, black in (("L", 0), ("1", 0)):
        data = tiff(
            np.zeros((1, 8), np.uint8).tobytes() if mode == "L" else b"\0", 8 if mode == "L" else 1, photometric
        )
        assert rows(data).ravel()[0] == (255 - black if photometric == 0 else black)


def tiff(strip: bytes, bits: int, photometric: int = 1, sample_format: int = 1, width: int = 8) -> bytes:
    """One row of grey pixels, little-endian and uncompressed."""
    tags = [(256, 3, width), (257, 3, 1), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8 + len(strip)),
            (277, 3, 1), (278, 3, 1), (279, 4, len(strip)), (339, 3, sample_format)]  # fmt: skip
    tags[5] = (273, 4, 8)
    start = 8 + len(strip) + len(strip) % 2
    entries = b"".join(
        struct.pack("<HHI", tag, kind, 1) + struct.pack("<I" if kind == 4 else "<Hxx", value)
        for tag, kind, value in tags
    )
    return (
        b"II*\0"
        + struct.pack("<I", start)
        + strip
        + bytes(len(strip) % 2)
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


def test_twelve_bits_of_grey_reach_white() -> None:
    packed = bytes.fromhex("000fff") + bytes.fromhex("800800")  # 0, 4095, 2048, 2048
    assert rows(tiff(packed, 12, width=4))[0, :, 0].tolist() == [0, 255, 128, 128]


@pytest.mark.parametrize(
    ("bits", "kind", "why"),
    [(8, 2, "signed"), (16, 2, "signed"), (32, 1, "32-bit"), (32, 2, "32-bit"), (32, 3, "float")],
)
def test_pixels_without_a_known_white_are_refused(bits: int, kind: int, why: str) -> None:
    with pytest.raises(BadImage, match=f"{why}.* no known white"):
        decode(tiff(np.array([1, 2], f"<i{bits // 8}").tobytes(), bits, sample_format=kind, width=2))


def png(depth: int, colour: int, row: bytes, *chunks: tuple[bytes, bytes], width: int = 4, after: bytes = b"") -> bytes:
    """A PNG of one row; `chunks` stand before its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0))
    body = b"".join(chunk(kind, data) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IDAT", zlib.compress(b"\0" + row)) + after + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("depth", "row", "transparent", "seen"),
    [
        (1, b"\x50", 0, [255, 255, 255, 255]),  # 0 1 0 1: black is transparent
        (1, b"\x50", 1, [0, 255, 0, 255]),
        (2, b"\x1b", 1, [0, 255, 170, 255]),  # 0 1 2 3
        (4, b"\x0f\x37", 3, [0, 255, 255, 119]),
        (8, b"\x00\x03\x80\xff", 3, [0, 255, 128, 255]),
        (16, GREYS.astype(">u2").tobytes(), 2570, [0, 255, 200, 255]),
        (16, GREYS.astype(">u2").tobytes(), 2571, [0, 10, 200, 255]),
    ],
)
def test_the_transparent_grey_of_a_png_is_white_at_every_depth(
    depth: int, row: bytes, transparent: int, seen: list[int]
) -> None:
    assert rows(png(depth, 0, row, (b"tRNS", struct.pack(">H", transparent))))[0, :, 0].tolist() == seen


def test_a_transparent_colour_of_sixteen_bits_is_refused_by_name() -> None:
    data = png(16, 2, bytes(24), (b"tRNS", bytes(6)))
    with pytest.raises(BadImage, match="a transparent colour of 16 bits"):
        decode(data)


@pytest.mark.parametrize(
    "chunk",
    [
        (b"eXIf", b"Exif\0\0MM\0*broken"),
        (b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x07\x00\xff\xff\xff\xff" * 3),
        (b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * (2 << 20))),
        (b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(b"x" * (2 << 20))),
        (b"tEXt", b"workflow\0" + b"x" * (70 << 20)),
        (b"iCCP", b"profile\0\0" + zlib.compress(b"x" * (2 << 20))),
        (b"zTXt", b"workflow\0\0not deflated"),
        (b"pHYs", b"\0"),
        (b"gAMA", b""),
    ],
)
def test_side_information_that_is_damaged_or_large_does_not_cost_the_picture(chunk: tuple[bytes, bytes]) -> None:
    assert rows(png(8, 0, b"\x00\x01\x02\x03", chunk))[0, :, 0].tolist() == [0, 1, 2, 3]


def test_large_text_behind_the_pixels_does_not_cost_the_picture_nor_its_orientation() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * (2 << 20), zip=True)
    data = saved(Image.fromarray(PIXELS), "PNG", pnginfo=info, exif=exif(6))
    assert np.array_equal(rows(data), UPRIGHT[6](PIXELS))


def test_a_damaged_picture_is_still_refused_when_its_texts_are_large() -> None:
    data = png(8, 0, b"\x00\x01", (b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * (2 << 20))), width=4000)
    with pytest.raises(BadImage):
        decode(data)


def test_a_png_cut_short_is_bad_with_exif_and_without() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    for options in ({}, {"exif": exif(6)}):
        data = saved(noise, "PNG", **options)
        with pytest.raises(BadImage, match="truncated"):
            decode(data[: len(data) // 2])


@pytest.mark.parametrize("orientation", [3, 6])
def test_damaged_exif_of_a_jpeg_keeps_its_pixels(orientation: int) -> None:
    data = saved(Image.new("RGB", (16, 8), (200, 0, 0)), "JPEG", exif=exif(orientation)[:-6])
    assert rows(data).shape[2] == 3


def turned_by(name: str) -> tuple[bytes, bytes]:
    """A text of a PNG in which other programs say that it is turned (orientation 6)."""
    if name == "XML:com.adobe.xmp":
        said = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
        return b"iTXt", name.encode() + bytes(5) + said
    tags = exif(6)
    return b"zTXt", name.encode() + b"\0\0" + zlib.compress(b"\nexif\n%8d\n%s\n" % (len(tags), tags.hex().encode()))


@pytest.mark.parametrize("others", [[], [(b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * (2 << 20)))]])
@pytest.mark.parametrize("name", ["Raw profile type exif", "XML:com.adobe.xmp"])
def test_an_orientation_in_a_text_is_applied_also_beside_large_texts(
    name: str, others: list[tuple[bytes, bytes]]
) -> None:
    data = png(8, 0, b"\x00\x01\x02\x03", turned_by(name), *others)
    assert rows(data)[:, :, 0].tolist() == [[0], [1], [2], [3]]


def test_a_damaged_text_of_a_turned_picture_costs_the_turn_alone() -> None:
    broken = (b"zTXt", b"Raw profile type exif\0\0not deflated")
    assert rows(png(8, 0, b"\x00\x01\x02\x03", broken))[0, :, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("side", "trims"), [(16, 1), (8, 0)])
def test_what_the_decoder_of_a_large_image_freed_is_given_back(
    side: int, trims: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(decoding, "LARGE", 100)
    monkeypatch.setattr(device, "_trim_of_libc", lambda: asked.append)
    assert decode(saved(Image.new("RGB", (side, side)), "PNG")).shape == (3, side, side) and len(asked) == trims


def test_memory_is_given_back_or_left_where_there_is_no_glibc() -> None:
    assert device._trim_of_libc()(0) in (0, 1, None)


@pytest.mark.parametrize("size", [(16, 16), (1200, 1200)])  # the larger is read in several blocks
def test_a_progressive_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded(size: tuple[int, int]) -> None:
    noise = Image.effect_noise(size, 90)
    data = saved(noise, "JPEG", progressive=True, quality=95)
    assert rows(data).shape == (*size[::-1], 3)
    last = data.rindex(b"\xff\xda")
    many = data[:last] + data[last:-2] * 100 + b"\xff\xd9"
    scans = data.count(b"\xff\xda") + 99
    with pytest.raises(BadImage, match=f"{scans} scans are more than 100"):
        decode(many, "x")
