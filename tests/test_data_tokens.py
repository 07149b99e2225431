"""The token store: shards written whole, checked before they are mapped, read in the order of training."""

import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tokcli.data.npy import NpyRows
from tokcli.data.token_batches import TokenBatches
from tokcli.data.token_store import TokenStore, merge, present, skipped, write_shard
from tokcli.errors import TokError

SIZES = (4, 1, 3)


def tokens(rows: int, start: int = 0, views: int = 2) -> torch.Tensor:
    """Row r, view v, place p holds 100 r + 10 v + p."""
    r, v, p = (torch.arange(n) for n in (rows, views, 5))
    return 100 * (start + r)[:, None, None] + 10 * v[:, None] + p


def write_all(folder: Path, codebook_size: int = 1024, order: tuple[int, ...] = (2, 0, 1)) -> Path:
    starts = [0, *itertools.accumulate(SIZES)]
    for number in order:
        rows = range(starts[number], starts[number + 1])
        write_shard(
            folder,
            number,
            tokens(len(rows), rows.start),
            labels=[row % 3 - 1 for row in rows],
            keys=[f"ü/{row}.png" for row in rows],
            captions=[[f"caption {row}"] if row else [] for row in rows],
            skipped=[("bad.png", "empty file")] if number == 1 else [],
            codebook_size=codebook_size,
        )
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_all(tmp_path)
    assert merge(tmp_path, 3) == (8, 1)
    return tmp_path


def test_what_was_written_comes_back(folder: Path) -> None:
    store = TokenStore(folder)
    assert (store.rows, store.views, store.n, store.dtype) == (8, 2, 5, np.uint16)
    rows, views = torch.tensor([7, 0, 4, 3]), torch.tensor([1, 0, 1, 0])
    assert torch.equal(store.batch(rows, views), tokens(8)[rows, views])
    assert store.labels.tolist() == [row % 3 - 1 for row in range(8)]
    assert store.keys[5] == "ü/5.png" and store.captions[:2] == [[], ["caption 1"]]


def test_shards_can_come_in_any_order_and_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_all(other, order=(0, 1, 2))
    merge(other, 3)
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert files == {path.name: path.read_bytes() for path in other.iterdir()}
    assert sorted(files) == [
        "captions.jsonl",
        *(f"indices-0000{i}.npy" for i in range(3)),
        "keys.txt",
        "labels.npy",
        "skipped.jsonl",
    ]


def test_merging_again_changes_nothing(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert merge(folder, 3) == (8, 1)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_was_skipped_is_kept(folder: Path) -> None:
    assert json.loads((folder / "skipped.jsonl").read_text()) == {"key": "bad.png", "why": "empty file"}


def test_a_missing_shard_is_not_merged_over(tmp_path: Path) -> None:
    write_all(tmp_path, order=(0, 2))
    assert present(tmp_path) == {0, 2}
    with pytest.raises(TokError, match=r"1 of 3 shards are missing, the first 1"):
        merge(tmp_path, 3)


@pytest.mark.parametrize("content", ["", "[]", '{"labels": [0], "keys": [], "captions": [[]], "skipped": []}', None])
def test_unfinished_work_that_was_damaged_is_told_and_never_vouched_for(tmp_path: Path, content: str | None) -> None:
    write_all(tmp_path)
    if content is None:  # one code of a shard
        file = tmp_path / "indices-00001.npy"
        file.write_bytes(file.read_bytes()[:-1] + b"\0")
    else:
        (tmp_path / "rows-00001.json").write_text(content)
        with pytest.raises(TokError, match="rows-00001.json: is damaged"):
            skipped(tmp_path)
    with pytest.raises(TokError, match="is damaged. Delete indices-00001.npy and rows-00001.json in "):
        merge(tmp_path, 3)
    for name in ("indices-00001.npy", "rows-00001.json"):
        (tmp_path / name).unlink()
    write_all(tmp_path, order=(1,))
    assert merge(tmp_path, 3) == (8, 1)


def test_large_codebooks_take_four_bytes(tmp_path: Path) -> None:
    write_all(tmp_path, codebook_size=65_537)
    merge(tmp_path, 3)
    assert TokenStore(tmp_path).dtype == np.uint32


def test_the_last_code_of_65536_fits_two_bytes(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, torch.full((1, 1, 2), 65_535), [0], ["a"], [[]], codebook_size=65_536)
    merge(tmp_path, 1)
    store = TokenStore(tmp_path)
    assert store.dtype == np.uint16 and store.batch(torch.tensor([0]), torch.tensor([0])).tolist() == [[65_535] * 2]


def test_an_index_outside_the_codebook_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="outside a codebook of 8"):
        write_shard(tmp_path, 0, torch.full((1, 1, 2), 8), [0], ["a"], [[]], codebook_size=8)
    assert not list(tmp_path.iterdir())


def test_a_shard_in_which_all_images_were_bad_is_a_shard(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, torch.empty(0, 2, 5, dtype=torch.int64), [], [], [], [("a", "bad")], codebook_size=8)
    write_shard(tmp_path, 1, torch.ones(1, 2, 5, dtype=torch.int64), [0], ["b"], [[]], codebook_size=8)
    assert merge(tmp_path, 2) == (1, 1)
    assert TokenStore(tmp_path).batch(torch.tensor([0]), torch.tensor([1])).tolist() == [[1] * 5]
    assert not (tmp_path / "captions.jsonl").exists() and TokenStore(tmp_path).captions == [[]]


@pytest.mark.parametrize("name", ["indices-00001.npy", "labels.npy"])
def test_a_file_cut_short_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(TokError, match=rf"{name}: its header claims [\d,]+ bytes. Got "):
        TokenStore(folder)


def test_a_header_that_claims_terabytes_is_refused(folder: Path) -> None:
    path = folder / "indices-00001.npy"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"(1, 2, 5), }        ", b"(1099511627776,2,5)}"))
    assert path.read_bytes() != data
    with pytest.raises(TokError, match="its header claims 21,990,232,555,648 bytes"):
        TokenStore(folder)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x10\x00{'descr': oops}\n"])
def test_what_is_no_npy_file_is_one_line(folder: Path, content: bytes) -> None:
    (folder / "indices-00001.npy").write_bytes(content)
    with pytest.raises(TokError, match=r"indices-00001.npy: not a whole .npy file") as error:
        TokenStore(folder)
    assert "\n" not in str(error.value)


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_pickled_objects_in_an_npy_file_are_never_loaded(tmp_path: Path) -> None:
    array = np.empty(1, dtype=object)
    array[0] = Touch(tmp_path / "ran")
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(TokError, match="not a plain array"):
        NpyRows(tmp_path / "a.npy")
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(array))
    assert (tmp_path / "ran").exists()  # so the trap would have worked


def test_shards_of_other_shapes_do_not_mix(folder: Path) -> None:
    np.save(folder / "indices-00001.npy", np.zeros((1, 2, 6), dtype=np.uint16))
    with pytest.raises(TokError, match=r"indices-00001.npy: no token shard"):
        TokenStore(folder)


@pytest.mark.parametrize("name", ["keys.txt", "captions.jsonl"])
def test_a_lost_line_is_noticed(folder: Path, name: str) -> None:
    lines = (folder / name).read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / name).write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(TokError, match=f"{name}: not one line for each of 8 rows"):
        getattr(TokenStore(folder), name.split(".")[0])


def test_rows_outside_the_store_are_refused(folder: Path) -> None:
    with pytest.raises(IndexError):
        TokenStore(folder).batch(torch.tensor([8]), torch.tensor([0]))


def test_each_epoch_of_tokens_sees_every_row_once_and_any_view(folder: Path) -> None:
    batches = list(itertools.islice(TokenBatches(TokenStore(folder), batch_size=4, seed=0), 20))
    rows = torch.cat([batch.rows for batch in batches])
    assert all(sorted(rows[at : at + 8].tolist()) == list(range(8)) for at in range(0, 80, 8))
    indices = torch.cat([batch.indices for batch in batches])
    views = indices[:, 0] % 100 // 10
    assert torch.equal(indices[:, 0] // 100, rows) and 20 < views.sum() < 60
    assert torch.equal(torch.cat([batch.labels for batch in batches]), rows % 3 - 1)


def test_token_batches_do_not_depend_on_ranks_or_first_step(folder: Path) -> None:
    store = TokenStore(folder)
    whole = list(itertools.islice(TokenBatches(store, batch_size=6, seed=0), 5))
    for rank in range(2):
        part = TokenBatches(store, batch_size=6, seed=0, rank=rank, world=2)
        for one, other in zip(itertools.islice(part.from_step(2), 3), whole[2:], strict=True):
            assert all(torch.equal(a, b[rank::2]) for a, b in zip(one, other, strict=True))
