"""What files claim is weighed before it is believed: JSON, tables, tars, zips, pickles, headers. Limits are lowered here; files stay small."""

import io
import json
import os
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokcli import limits
from tokcli.artifact import weights
from tokcli.artifact.weights import load_tensors
from tokcli.data.npy import NpyError, NpyRows, read_npy
from tokcli.data.sources import idx, listing, open_source, tar_index
from tokcli.data.token_store import TokenStore, merge, write_shard
from tokcli.errors import TokError
from tokcli.evaluation import published
from tokcli.limits import TooLarge, check_zip, parse_json, text_lines, weigh_json
from tokcli.pretrained.feature_cache import FeatureCache
from tokcli.recipe.yaml import parse_set, read_yaml
from tokcli.sampling import request
from tokcli.sampling.request import check_prompts


@pytest.mark.parametrize("text", ["[[],[],[]]", '{"a":{"b":1.5}}', '"' + "x" * 100 + '"', '["é"]', "[1,2,3,4]", "{}"])
def test_json_takes_at_most_what_it_is_weighed_at(text: str) -> None:
    import sys

    def size(value: Any) -> int:
        inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
        return sys.getsizeof(value) + sum(map(size, inner))

    data = text.encode()
    assert size(json.loads(data)) <= weigh_json(data) + 80  # one object that nothing introduces
    assert parse_json(data) == json.loads(text)


def test_json_that_would_take_more_is_refused_unparsed() -> None:
    data = b"[" + b"[]," * 1000 + b"[]]"
    with pytest.raises(TooLarge, match="would take more than 100,000 bytes of memory"):
        parse_json(data, 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(b"[" * 200_000 + b"]" * 200_000)
    assert parse_json(b"[" * 100 + b"]" * 100) and parse_json(b"[" + b"[]," * 1000 + b"[]]")
    with pytest.raises(ValueError, match="nested too deeply"):  # which Python reads, and then fails to compare
        parse_json(b'{"a": [' * 60 + b"]}" * 60)


@pytest.mark.parametrize("name", ["captions.jsonl", "metadata.jsonl", "metadata.csv", "labels"])
def test_a_line_of_a_table_ends_somewhere(photos: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_LINE", 100)
    file = photos / "train" / name
    file.write_text('{"key": "' + "a" * 100)
    with pytest.raises(TokError, match=f"{name}:1: is a line of more than 100 characters"):
        open_source(str(photos / "train"), size=8, labels=file if name == "labels" else None)


@pytest.mark.parametrize(
    ("name", "row"), [("captions.jsonl", '{"key": "x%d", "captions": []}'), ("labels", "x%d 3"), ("labels", "x%d 0.5")]
)
def test_a_table_of_other_images_stops(photos: Path, name: str, row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MOST_FAULTS", 3)
    file = photos / "train" / name
    file.write_text("".join(row % i + "\n" for i in range(4)))
    with pytest.raises(TokError, match="names more than 3 (images that are not there|labels that are not understood)"):
        open_source(str(photos / "train"), size=8, labels=file if name == "labels" else None)


def test_a_table_may_be_as_long_as_its_images_need(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = photos / "train" / "captions.jsonl"
    file.write_text('{"key": "cat/0.png", "captions": ["a"]}\n')
    monkeypatch.setattr(listing, "TABLE_BYTES", 0)
    monkeypatch.setattr(listing, "ROW_BYTES", 7)
    assert len(open_source(str(photos / "train"), size=8)) == 6
    monkeypatch.setattr(listing, "ROW_BYTES", 6)
    with pytest.raises(TokError, match="is too large for 6 images. Got 40 bytes, more than 36"):
        open_source(str(photos / "train"), size=8)


def test_of_a_text_beside_an_image_the_start_is_read_and_the_rest_is_named(photos: Path) -> None:
    (photos / "train" / "cat" / "0.txt").write_bytes(b"a cat\n" + b"\0" * (1 << 20))
    source = open_source(str(photos / "train"), size=8)
    assert ("cat/0.png", "cat/0.txt: only its first 1,048,576 bytes are read") in source.problems
    assert source.captions(source.keys.index("cat/0.png"))[0] == "a cat"  # type: ignore[attr-defined]


def long_header(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("long")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_of_a_tar_that_claims_megabytes_is_not_read(tmp_path: Path, kind: bytes) -> None:
    tar = tmp_path / "a.tar"
    good = io.BytesIO()
    with tarfile.open(fileobj=good, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    tar.write_bytes(good.getvalue()[:512] + long_header(kind, 50 << 20))
    with open(tar, "r+b") as file:
        file.truncate(52 << 20)  # of holes
    ((_, why),) = [problem for problem in tar_index.index_tar(tar).problems if "damaged" in problem[1]]
    assert "a header of more than 1,048,576 bytes" in why


def test_a_sparse_map_without_end_is_not_read(tmp_path: Path) -> None:
    first = bytearray(long_header(tarfile.GNUTYPE_SPARSE, 0))
    first[482] = 1  # a further block follows
    first[148:156] = b"%06o\0 " % (sum(first[:148]) + sum(first[156:]) + 8 * ord(" "))
    further = (b"%011o\0%011o\0" % (0, 1)) * 21 + b"\1" + bytes(7)
    (tmp_path / "a.tar").write_bytes(bytes(first) + further * 3000)
    with pytest.raises(TokError, match="a header of more than 1,048,576 bytes"):
        tar_index.index_tar(tmp_path / "a.tar")


def test_a_zip_is_refused_by_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in range(10):
            archive.writestr(f"{i}", b"")
    check_zip(tmp_path / "a.zip")
    monkeypatch.setattr(limits, "MOST_DIRECTORY", 100)
    with pytest.raises(TooLarge, match="its directory has 470 bytes, more than 100"):
        check_zip(tmp_path / "a.zip")
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 9, 9, 1 << 40, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    (tmp_path / "b.zip").write_bytes(
        end64 + locator + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    )
    with pytest.raises(TooLarge, match="1,099,511,627,776 bytes"):
        check_zip(tmp_path / "b.zip")


def pickled(path: Path, code: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (("data.pkl", code), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(f"w/{name}", data)
    return path


def test_weights_in_a_compressed_zip_are_refused_by_what_they_claim(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "a.pt")
    assert load_tensors(tmp_path / "a.pt")["a"].shape == (100_000,)
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as whole,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for info in whole.infolist():
            small.writestr(info.filename, whole.read(info))
    with pytest.raises(TokError, match="its members claim 400,[0-9]+ bytes, more than the file has"):
        load_tensors(tmp_path / "b.pt")


def test_a_pickle_that_asks_for_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = b"\x80\x02cbuiltins\nbytearray\nK\x09\x85R."
    with pytest.raises(TokError, match="asks for a bytearray"):
        load_tensors(pickled(tmp_path / "a.pt", code))
    monkeypatch.setattr(weights, "MOST_STEPS", 20)
    with pytest.raises(TokError, match="more than 20 steps"):
        load_tensors(pickled(tmp_path / "b.pt", b"\x80\x02](" + b"]" * 20 + b"e."))
    monkeypatch.setattr(weights, "MOST_PICKLE", 20)
    with pytest.raises(TokError, match="more than 20"):
        load_tensors(pickled(tmp_path / "c.pt", b"\x80\x02](" + b"]" * 20 + b"e."))


def test_a_file_that_is_no_checkpoint_never_reaches_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch looked at it"))
    for data in (b"", long_header(tarfile.XHDTYPE, 50 << 20), b"\x80\x02]."):
        (tmp_path / "a.pt").write_bytes(data)
        with pytest.raises(TokError, match=r"it is (no file of torch\.save|empty)"):
            load_tensors(tmp_path / "a.pt")


def test_checkpoints_of_older_torch_are_read_as_before(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.arange(3)}}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert load_tensors(tmp_path / "a.pth")["a"].tolist() == [0, 1, 2]


def test_the_header_of_safetensors_is_measured_first(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", (16 << 20) + 1) + b"{}")
    with pytest.raises(TokError, match="its header claims 16,777,217 bytes"):
        load_tensors(tmp_path / "a.safetensors")


def npz(path: Path, name: str, array: np.ndarray, compression: int = zipfile.ZIP_STORED) -> Path:
    file = io.BytesIO()
    np.save(file, array)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{name}.npy", file.getvalue())
    return path


@pytest.mark.parametrize("name", ["mu", "arr_0"])
def test_arrays_of_another_shape_are_not_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "MOST_NUMBERS", 10)
    array = np.zeros(11) if name == "mu" else np.zeros((1, 4000, 4000, 3), np.uint8)
    path = npz(tmp_path / "a.npz", name, array, zipfile.ZIP_DEFLATED)
    with pytest.raises(TokError, match=f"is not a whole .npz file: {name} is"):
        published.read_npz(path, "--reference a.npz")


@pytest.mark.parametrize(
    ("place", "value", "why"),
    [(b"PK\1\2", 8, "encrypted"), (b"PK\1\2", 10, "compression"), (b"PK\3\4", 0, "")],
    ids=["encrypted", "unknown compression", "another head"],
)
def test_a_damaged_npz_is_one_line(tmp_path: Path, place: bytes, value: int, why: str) -> None:
    path = npz(tmp_path / "a.npz", "mu", np.zeros(2048), zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    data[data.index(place) + value] ^= 1
    path.write_bytes(data)
    with pytest.raises(TokError, match=f"is not a whole .npz file.*{why}"):
        published.read_npz(path, "--reference a.npz")


def test_rows_of_a_file_that_is_cut_meanwhile_are_an_error_and_no_signal(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, np.arange(8).reshape(4, 1, 2), [0] * 4, list("abcd"), [[]] * 4, codebook_size=8)
    merge(tmp_path, 1)
    store = TokenStore(tmp_path)
    os.truncate(tmp_path / "indices-00000.npy", 140)
    with pytest.raises(NpyError, match=r"indices-00000\.npy: was cut short while it was read"):
        store.batch(np.array([3]), np.array([0]))


def test_rows_are_those_of_the_array(tmp_path: Path) -> None:
    array = np.arange(24, dtype=">i4").reshape(4, 3, 2)
    np.save(tmp_path / "a.npy", array)
    rows = NpyRows(tmp_path / "a.npy")
    assert np.array_equal(rows.read(1, 3), array[1:3]) and np.array_equal(rows[3], array[3])
    assert np.array_equal(rows.pick([3, 0, 3], [2, 1, 0]), array[[3, 0, 3], [2, 1, 0]])
    assert np.array_equal(read_npy(tmp_path / "a.npy"), array)


@pytest.mark.parametrize("described", ["|S0", "|V0", "<U4", "|O"])
def test_a_type_that_takes_no_room_in_the_file_is_refused(tmp_path: Path, described: str) -> None:
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": described, "fortran_order": False, "shape": (1 << 40,)})
    with pytest.raises(NpyError, match="not a plain array"):
        NpyRows(tmp_path / "a.npy")


@pytest.mark.parametrize("fault", ["cut", "gone", "fewer rows", "wider"])
def test_a_damaged_feature_cache_is_made_again(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOK_CACHE", str(tmp_path))

    def filled() -> FeatureCache:
        cache = FeatureCache("a", 5, 4, lambda arrays, rows: arrays[0].shape == (rows, 2))
        cache.fill(
            lambda bounds: ([np.ones((len(rows), 2))] for rows in bounds),
            row_bytes=16,
            where="x",
            next="y",
            unit="row",
            desc="z",
        )
        return cache

    file = filled().folder / "features-00000.npy"
    if fault == "cut":
        os.truncate(file, 150)
    elif fault == "gone":
        file.unlink()
    else:
        np.save(file, np.ones((3, 2) if fault == "fewer rows" else (4, 3)))
    assert np.array_equal(filled().shard(0)[0].read(0, 4), np.ones((4, 2)))


def test_idx_files_hold_what_fits_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "MOST_BYTES", 11)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 3) + bytes(3))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, 3, 2, 2) + bytes(12))
    with pytest.raises(TokError, match=r"its header claims more than .* Got shape \(3, 2, 2\)"):
        open_source(str(tmp_path / "train"), size=8)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("2020-13-45", "month"),
        ("9" * 5000, "digits"),
        ("0x" + "f" * 5000, "more than 64 bits"),
        ("[" * 3000, "nested too deeply"),
        ("{1: 2}", "a key is no text: 1"),
        ("{2020-01-01: 1}", "a key is no text"),
        ('"\\ud800"', "lone surrogate"),
        ("1:99:99:" * 9 + "x: [", "YAML|not"),
    ],
    ids=["date", "digits", "hexadecimal", "brackets", "number as key", "date as key", "surrogate", "mapping"],
)
def test_values_that_yaml_cannot_make_are_one_line(tmp_path: Path, value: str, why: str) -> None:
    with pytest.raises(TokError, match=f"the value is not YAML.*{why}"):
        parse_set((f"a={value}",))
    (tmp_path / "r.yaml").write_text(f"a: {value}")
    with pytest.raises(TokError, match="is not a valid recipe"):
        read_yaml(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("text", "why"), [("x" * 10_001, "more than 10,000 characters"), ("\ud800", "half a character")]
)
def test_prompts_are_captions_that_can_be_used(text: str, why: str) -> None:
    check_prompts(["a cat"], {"condition": "text"})
    with pytest.raises(TokError, match=f"sample.prompts: caption 2 cannot be used: a caption .*{why}"):
        check_prompts(["a cat", text], {"condition": "text"})


def test_a_file_of_prompts_ends_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.txt").write_text("a cat")
    monkeypatch.setattr(request, "MOST_PROMPTS", 4)
    with pytest.raises(TokError, match=r"p\.txt: has more than 4 bytes\. Split it"):
        request.read_prompts(str(tmp_path / "p.txt"))


def test_lines_end_as_editors_count_them(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("\ufeffa\r\nb\rc\n\nd\x0ce".encode())
    assert list(text_lines(tmp_path / "a", "a")) == ["a", "b", "c", "", "d\x0ce"]
