"""Damaged and forged files of every kind that is read: an error of one line or a right result, and nothing else."""

import csv
import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import fuzzing
import numpy as np
import torch
from fuzzing import command, damaged, forged, fuzz, room, told
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from tokcli.artifact.weights import load_tensors
from tokcli.data.decode import FORMATS, BadImage, decode
from tokcli.data.npy import read_npy
from tokcli.data.sources import open_source
from tokcli.data.token_store import TokenStore, merge, write_shard
from tokcli.evaluation.published import read_npz
from tokcli.sampling.request import read_prompts
from tokcli.training.state import STATE, load_state, save_state

own_cache, within = fuzzing.own_cache, fuzzing.within  # fixtures


def picture(form: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (11, 13, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(file, form, **options)
    return file.getvalue()


PICTURES = [
    *[picture(form) for form in FORMATS],
    picture("PNG", "P", transparency=3),
    picture("PNG", "LA"),
    picture("TIFF", compression="tiff_deflate"),
    picture("JPEG", progressive=True),
    picture("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
]


def looked_at(spec: Path, **options: Any) -> None:
    """Open a data set and read all of it."""
    with told():
        source = open_source(str(spec), size=8, **options)
        for i in range(len(source)):
            assert isinstance(source.label(i), int)
            "\n".join([source.key(i), *source.captions(i)]).encode()
            try:
                assert source.image(i).dtype == torch.uint8
            except BadImage as error:
                assert error.key and error.why
        assert all(len(problem) == 2 for problem in source.problems)


@fuzz(4, data=st.sampled_from(PICTURES).flatmap(damaged))
def test_image_bytes(data: bytes) -> None:
    with told():
        found = decode(data, "a", most=1 << 20)
        assert found.dtype == torch.uint8 and found.shape[0] == 3


CAPTIONS = "".join(json.dumps({"key": f"{i}.png", "captions": ["a cat", "ünï 猫"]}) + "\n" for i in range(3)).encode()
METADATA = b'file_name,text,label\n0.png,"a, cat",3\n1.png,dog,-1\n'
COCO = {
    "images": [{"id": i, "file_name": f"{i}.png"} for i in range(3)],
    "annotations": [{"image_id": i, "caption": "a cat"} for i in range(3)],
}
TABLES = {
    "captions.jsonl": CAPTIONS,
    "metadata.jsonl": CAPTIONS.replace(b'"key"', b'"file_name"'),
    "metadata.csv": METADATA,
    "0.txt": "a cat\nünï".encode(),
    "0.json": b'{"caption": "a cat", "label": 3}',
}


@fuzz(2, table=st.sampled_from(sorted(TABLES)), choice=st.data())
def test_captions(within: Path, table: str, choice: st.DataObject) -> None:
    with room(within) as root:
        (root / "0.png").write_bytes(PICTURES[0])
        (root / "1.png").write_bytes(PICTURES[1])
        (root / table).write_bytes(choice.draw(damaged(TABLES[table])))
        looked_at(root)


@fuzz(data=damaged(b'0.png\tcat\n"1.png",dog\n./2.png 3\n'))
def test_labels(within: Path, data: bytes) -> None:
    with room(within) as root:
        (root / "0.png").write_bytes(PICTURES[0])
        (root / "labels").write_bytes(data)
        looked_at(root, labels=root / "labels")


@fuzz(tree=forged(COCO), choice=st.data())
def test_coco(within: Path, tree: Any, choice: st.DataObject) -> None:
    with room(within) as root:
        (root / "train").mkdir()
        (root / "annotations").mkdir()
        (root / "train" / "0.png").write_bytes(PICTURES[0])
        data = json.dumps(tree).encode()
        (root / "annotations" / "captions_train.json").write_bytes(choice.draw(st.just(data) | damaged(data)))
        looked_at(root / "train")


def tar(form: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, data in (
            ("a.png", PICTURES[0]),
            ("a.cls", b"3"),
            ("b" * 120 + ".png", PICTURES[1]),
            ("c.json", b'{"caption": "c"}'),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


@fuzz(
    2,
    data=st.sampled_from([tar(form) for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]).flatmap(damaged),
    pack=st.booleans(),
)
def test_tars(within: Path, data: bytes, pack: bool) -> None:
    with room(within, out="a.tar packed") as root:
        (root / "a.tar").write_bytes(data)
        if pack:
            with told():
                command("data", "pack", root / "a.tar", "--out", root / "packed", "--max-bad", 1)
                looked_at(root / "packed")
        else:
            looked_at(root / "a.tar")


@fuzz(
    images=damaged(struct.pack(">4B3I", 0, 0, 8, 3, 3, 2, 2) + bytes(12)),
    labels=damaged(struct.pack(">4BI", 0, 0, 8, 1, 3) + bytes(3)),
)
def test_idx(within: Path, images: bytes, labels: bytes) -> None:
    with room(within) as root:
        (root / "train-images-idx3-ubyte").write_bytes(images)
        (root / "train-labels-idx1-ubyte").write_bytes(labels)
        looked_at(root / "train")


@fuzz(data=damaged("a cat\nünï 猫\n".encode()))
def test_prompts(within: Path, data: bytes) -> None:
    with room(within) as root, told():
        (root / "p.txt").write_bytes(data)
        assert all(line.encode() for line in read_prompts(str(root / "p.txt")))


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@fuzz(
    2, data=st.sampled_from([npy(np.arange(6, dtype=t).reshape(3, 2)) for t in ("<u2", ">f4", "<i8")]).flatmap(damaged)
)
def test_npy(within: Path, data: bytes) -> None:
    with room(within) as root, told():
        (root / "a.npy").write_bytes(data)
        found = read_npy(root / "a.npy")
        assert found.nbytes < len(data)


@fuzz(name=st.sampled_from(["indices-00000.npy", "labels.npy", "keys.txt", "captions.jsonl"]), choice=st.data())
def test_tokens(within: Path, name: str, choice: st.DataObject) -> None:
    with room(within) as root, told():
        indices = np.arange(12).reshape(3, 1, 4)
        write_shard(root, 0, indices, [0, 1, -1], ["a", "b", "c"], [["x"], [], ["y"]], codebook_size=12)
        merge(root, 1)
        (root / name).write_bytes(choice.draw(damaged((root / name).read_bytes())))
        store = TokenStore(root)
        assert len(store.keys) == len(store.captions) == store.rows
        assert store.batch(np.arange(store.rows), np.zeros(store.rows, int)).shape == (store.rows, store.n)


def npz(compression: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, array in (("mu", np.zeros(4)), ("sigma", np.eye(4)), ("arr_0", np.zeros((2, 3, 3, 3), np.uint8))):
            archive.writestr(f"{name}.npy", npy(array))
    return file.getvalue()


@fuzz(
    2,
    data=st.sampled_from([npz(c) for c in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)]).flatmap(
        damaged
    ),
)
def test_npz(within: Path, data: bytes) -> None:
    with room(within) as root, told():
        (root / "a.npz").write_bytes(data)
        read_npz(root / "a.npz", "--reference a.npz")


def checkpoint(**options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(
        {"state_dict": {"a": torch.arange(6.0), "b": torch.zeros(2, 3, dtype=torch.bfloat16)}, "step": 3},
        file,
        **options,
    )
    return file.getvalue()


WEIGHTS = {
    "zip.pt": checkpoint(),
    "old.pt": checkpoint(_use_new_zipfile_serialization=False),
    "w.safetensors": save({"a": torch.arange(6.0), "b": torch.zeros(2, 3)}),
}


@fuzz(4, name=st.sampled_from(sorted(WEIGHTS)), choice=st.data())
def test_checkpoints(within: Path, name: str, choice: st.DataObject) -> None:
    with room(within) as root, told():
        (root / name).write_bytes(choice.draw(damaged(WEIGHTS[name])))
        found = load_tensors(root / name)
        assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())


class Counter:
    """Something whose state is saved."""

    def state_dict(self) -> dict[str, Any]:
        return {"weights": torch.arange(6.0)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert torch.equal(state["weights"], torch.arange(6.0))


@fuzz(choice=st.data())
def test_saved_states(within: Path, choice: st.DataObject) -> None:
    with room(within, out=STATE) as root, told():
        save_state(root, 3, 1.0, {"counter": Counter()})
        (root / STATE).write_bytes(choice.draw(damaged((root / STATE).read_bytes())))
        assert load_state(root, {"counter": Counter()})[0] == 3


@fuzz(rows=st.lists(st.lists(st.text(max_size=9), max_size=4), max_size=4))
def test_metadata_as_csv_writes_it(within: Path, rows: list[list[str]]) -> None:
    with room(within) as root:
        (root / "0.png").write_bytes(PICTURES[0])
        text = io.StringIO()
        csv.writer(text).writerows([["file_name", "text"], ["0.png", "a"], *rows])
        (root / "metadata.csv").write_bytes(text.getvalue().encode("utf-8", "surrogatepass"))
        looked_at(root)
