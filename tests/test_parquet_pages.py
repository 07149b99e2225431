"""Parquet files that hold more than is there: pages are weighed by their own headers, rows by the file's size."""

from pathlib import Path
from typing import Any

import pytest
from test_data_parquet import cache, embedded, opened, png, write  # noqa: F401  the fixture

from tokcli.data.sources import parquet_pages, parquet_probe
from tokcli.data.sources.parquet_pages import check_pages
from tokcli.errors import TokError

arrow = pytest.importorskip("pyarrow", reason="extra parquet")
parquet = pytest.importorskip("pyarrow.parquet", reason="extra parquet")
BLANK = png() + bytes(200_000)


def chunks(path: Path) -> list[Any]:
    meta = parquet.ParquetFile(path).metadata
    return [meta.row_group(group).column(i) for group in range(meta.num_row_groups) for i in range(meta.num_columns)]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("statistics", [True, False])
def test_every_page_is_weighed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, dictionary: bool, statistics: bool
) -> None:
    table = {"image": embedded(*range(40)), "n": list(range(40)), "list": [["a", "b"]] * 40, "x": [0.5, None] * 20}
    options = {"use_dictionary": dictionary, "write_statistics": statistics, "data_page_version": version}
    path = write(tmp_path / "a.parquet", table, row_group_size=15, data_page_size=64, compression=None, **options)
    monkeypatch.setattr(parquet_pages, "FREE", 0)
    monkeypatch.setattr(parquet_pages, "RATIO", 1)
    check_pages(path, chunks(path))  # uncompressed pages take what is there
    monkeypatch.setattr(parquet_pages, "RATIO", 0.999)
    for chunk in chunks(path):
        with pytest.raises(ValueError, match="its pages stand for"):
            check_pages(path, [chunk])


@pytest.mark.parametrize("compression", ["zstd", "gzip", "snappy"])
def test_pages_that_grow_a_hundredfold_are_refused_and_real_images_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    monkeypatch.setattr(parquet_pages, "FREE", 100_000)
    path = write(tmp_path / "a.parquet", {"image": [BLANK]}, compression=compression)
    if compression != "snappy":  # 20 times at most
        with pytest.raises(TokError, match="b.parquet: is damaged: its pages stand for 200,"):
            opened(
                write(tmp_path / "b.parquet", {"image": [None, BLANK]}, compression=compression, write_statistics=False)
            )
        with pytest.raises(Exception, match="its pages stand for 200,"):
            opened(path).image(0)
    several = write(tmp_path / "c.parquet", {"image": embedded(*range(200))}, compression=compression)
    assert len(opened(several)) == 200 and opened(several).image(3).shape == (3, 4, 6)


def test_damaged_headers_of_pages_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": [png()]})
    whole = path.read_bytes()
    for at in range(4, 24):
        for bit in range(8):
            data = bytearray(whole)
            data[at] ^= 1 << bit
            path.write_bytes(data)
            try:
                check_pages(path, chunks(path))
            except ValueError as error:
                assert "page" in str(error)


def test_rows_beyond_the_files_bytes_are_refused(tmp_path: Path) -> None:
    column = arrow.DictionaryArray.from_arrays(arrow.array([0] * 1_100_000, arrow.int32()), arrow.array([png()]))
    with pytest.raises(TokError, match="claims more rows than it has bytes. Got 1,100,000"):
        opened(write(tmp_path / "a.parquet", {"image": column}))


def test_a_few_images_among_many_rows_without_any_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokcli.data.sources.parquet.MOST_FAULTS", 100)
    numbers = arrow.array([0] + [None] * 110, arrow.int32())
    column = arrow.DictionaryArray.from_arrays(numbers, arrow.array([png()]))
    with pytest.raises(TokError, match="more than 100 rows have no image"):
        opened(write(tmp_path / "a.parquet", {"image": column}))


def test_a_footer_that_claims_gigabytes_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", {"image": [png()]})
    data = path.read_bytes()
    path.write_bytes(data[:-8] + (3 << 30).to_bytes(4, "little") + data[-4:])
    with pytest.raises(ValueError, match="its footer claims 3,221,225,472 bytes"):
        parquet_probe.footer(str(path))
    with pytest.raises(TokError, match="is damaged or not Parquet: its footer claims 3,221,225,472 bytes"):
        opened(path)
