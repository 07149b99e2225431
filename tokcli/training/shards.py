"""A saved state in parts (torch.distributed.checkpoint): each rank writes what it keeps, and any number of ranks reads it.

torch pickles the list of what is where. It is stored here as what `torch.load` reads with weights alone, so that nothing is
unpickled; each rank's file has its hash beside it.
"""

import contextlib
import copyreg
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import metadata as kinds
from torch.distributed.checkpoint.filesystem import _StorageInfo

from tokcli import distributed
from tokcli.files import atomic_write, not_saved, sha256, sync_folder, write_text

CONTENTS = "contents.pt"
TRUSTED: list[Any] = [
    kinds.Metadata,
    kinds.MetadataIndex,
    kinds.TensorStorageMetadata,
    kinds.TensorProperties,
    kinds.ChunkStorageMetadata,
    kinds._MEM_FORMAT_ENCODING,
    _StorageInfo,
    torch.Size,
]

# some Pythons (3.11.2) pickle a member of an enumeration as a call of getattr, which `torch.load` of weights alone refuses
copyreg.pickle(kinds._MEM_FORMAT_ENCODING, lambda member: (kinds._MEM_FORMAT_ENCODING, (member.value,)))


class _Reader(dcp.FileSystemReader):
    """Reads tensors and nothing else."""

    def read_metadata(self, *_: Any, **__: Any) -> kinds.Metadata:
        return contents(Path(self.path))


def write(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write this rank's part of tensors by name into a folder, which counts from the moment that something names it; all ranks call it.

    Raises:
        TokError: the disk is full.
    """
    try:
        with _quietly():
            dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(folder))
        for file in folder.glob(f"__{distributed.rank()}_*.distcp"):
            write_text(file.with_suffix(".sha256"), sha256(file))
        if distributed.is_main():
            found = dcp.FileSystemReader(folder).read_metadata()  # written a moment ago, by us
            found.planner_data = found.storage_meta = None  # which would name this folder
            with atomic_write(folder / CONTENTS) as tmp:
                torch.save(found, tmp)
            (folder / ".metadata").unlink()
            sync_folder(folder.parent)
    except dcp.CheckpointException as error:
        raise not_saved(folder) from error
    distributed.barrier()


def contents(folder: Path) -> kinds.Metadata:
    """What a folder holds, by name.

    Raises:
        ValueError: something else than tensors in its own files, or nothing that can be read.
    """
    try:
        with torch.serialization.safe_globals(TRUSTED):
            found = torch.load(folder / CONTENTS, weights_only=True)
    except Exception as error:  # whatever a damaged file is taken for
        raise ValueError(f"{CONTENTS} cannot be read") from error
    if any(not isinstance(entry, kinds.TensorStorageMetadata) for entry in found.state_dict_metadata.values()):
        raise ValueError("it holds something else than tensors")
    if any(Path(place.relative_path).name != place.relative_path for place in found.storage_data.values()):
        raise ValueError("it names files outside of its folder")
    return found  # type: ignore[no-any-return]


def read(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors by name from a folder; all ranks call it, each with its parts.

    Raises:
        ValueError: on all ranks, if a file is damaged.
    """
    files = sorted(folder.glob("*.distcp"))
    mine = files[distributed.rank() :: distributed.world_size()]
    damaged = [file.name for file in mine if sha256(file) != file.with_suffix(".sha256").read_text(encoding="utf-8")]
    if distributed.any_rank(bool(damaged)):
        raise ValueError(f"checksum of {damaged[0] if damaged else 'another part'}")
    with _quietly():
        try:
            dcp.load(dict(tensors), storage_reader=_Reader(folder))
        except dcp.CheckpointException as error:
            raise ValueError(next(iter(error.failures.values()))[0]) from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """torch warns of a checkpoint of a single process, and of what it itself deprecates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
