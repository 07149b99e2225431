"""Weights on disk: safetensors out, safetensors or safely read PyTorch files in."""

import argparse
import errno
import io
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokcli.errors import TokError
from tokcli.files import atomic_write
from tokcli.limits import TooLarge, check_zip


def save_tensors(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, atomically and without metadata (equal tensors give equal bytes)."""
    from safetensors.torch import save_file

    with atomic_write(path) as tmp:
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in state.items()}
        try:
            save_file(tensors, tmp)
        except Exception as error:  # safetensors raises its own class for a full disk
            if re.search(r"(os error|code:) (27|28)\b", str(error)):  # as its releases tell it
                raise OSError(errno.ENOSPC, str(error)) from error
            raise


# classes that published checkpoints keep beside their weights: options and Lightning's callbacks
FOREIGN = (
    "argparse.Namespace",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "omegaconf.dictconfig.DictConfig",
)


class _Inert:
    """Stands in for classes that others' checkpoints mention; keeps whatever state it is given and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state


MOST_PICKLE = 8 << 20  # bytes of a checkpoint beside its numbers: of 30,000 tensors
MOST_STEPS = 2_000_000  # of a pickle; each makes one object
MOST_HEADER = 16 << 20  # bytes of the header of safetensors
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how files before torch 1.6 begin
_PICKLES = 5  # that stand in front of the numbers of such a file


def _check_claims(path: Path) -> bool:
    """Refuse a checkpoint that takes more memory than it has bytes; returns whether it is a zip.

    Raises:
        OSError: it cannot be read.
        ValueError: so it does, or it is no checkpoint at all.
    """
    with open(path, "rb") as file:
        head = file.read(MOST_PICKLE)
    if head.startswith(_LEGACY):
        stream = io.BytesIO(head)
        for _ in range(_PICKLES):
            _check_pickle(stream)
        return False
    if not head.startswith(b"PK\3\4"):
        raise ValueError("it is no file of torch.save" if head else "it is empty")
    check_zip(path)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.filename.endswith("/constants.pkl") for member in members):
            raise ValueError("TorchScript")
        if (claimed := sum(member.file_size for member in members)) > path.stat().st_size:
            raise TooLarge(
                f"its members claim {claimed:,} bytes, more than the file has: torch.save compresses nothing"
            )
        for member in members:
            if member.filename.lower().endswith("data.pkl"):
                if member.file_size > MOST_PICKLE:
                    raise TooLarge(f"its pickle has {member.file_size:,} bytes, more than {MOST_PICKLE:,}")
                _check_pickle(io.BytesIO(archive.read(member)))
    return True


def _check_pickle(stream: io.BytesIO) -> None:
    for step, (code, argument, _) in enumerate(pickletools.genops(stream)):
        if step > MOST_STEPS:
            raise TooLarge(f"its pickle has more than {MOST_STEPS:,} steps")
        if code.name == "GLOBAL" and "bytearray" in str(argument):  # bytearray(n) takes n bytes
            raise TooLarge("its pickle asks for a bytearray, which no weights need")


def read_checkpoint(path: str | Path, *, mapped: bool = False) -> dict[str, Any]:
    """Whatever a PyTorch file holds, without running any code that it names.

    Args:
        mapped: leave numbers in the file until they are used, for a caller that copies what it takes and drops the rest.

    Raises:
        TokError: missing, truncated, a TorchScript archive, naming a class that is not a plain container, or claiming more than
            it holds.
    """
    path = Path(path)
    try:
        zipped = _check_claims(path)
        with torch.serialization.safe_globals([*((_Inert, name) for name in FOREIGN), argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipped)
    except FileNotFoundError:
        raise TokError(str(path), "no such file", next="Check the path") from None
    except Exception as error:
        # torch opens with advice on its own arguments; what it met comes after that
        text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
        first = text.splitlines()[0][:160] if text else type(error).__name__
        if "TorchScript" in str(error) or "torch.jit" in str(error):
            raise TokError(
                str(path),
                "is a TorchScript archive, which holds code",
                next="Export its state_dict: torch.save(torch.jit.load(FILE).state_dict(), OUT)",
            ) from None
        raise TokError(
            str(path), "cannot be read as weights", why=first, next="Check the download or use a .safetensors file"
        ) from None
    if not isinstance(loaded, dict):
        raise TokError(
            str(path),
            "holds no dictionary of weights",
            got=type(loaded).__name__,
            next="Give a checkpoint of weights by name, such as a state_dict",
        )
    return loaded


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file or a PyTorch checkpoint (`state_dict`, `model` are unwrapped;
    of a training run that kept averaged weights, they: `ema`).

    Raises:
        TokError: the file is missing, truncated or not a file of weights.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        loaded = read_checkpoint(path, mapped=True)
        for key in ("ema", "state_dict", "model", "module", "teacher"):
            if isinstance(loaded.get(key), dict):
                loaded = loaded[key]
                break
        return {name: t for name, t in loaded.items() if isinstance(t, Tensor)}
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with open(path, "rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > MOST_HEADER:
            raise TokError(
                str(path), f"its header claims {header:,} bytes, more than {MOST_HEADER:,}", next="Check the download"
            )
        return load_file(path)
    except FileNotFoundError:
        raise TokError(str(path), "no such file", next="Check the path") from None
    except (SafetensorError, OSError) as error:
        raise TokError(
            str(path), "is not a whole safetensors file", why=str(error), next="Copy or download it again"
        ) from None


def load_strict(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Copy `state` into `module`; every name and shape must match.

    Raises:
        TokError: with the names that are missing, unexpected, or of another shape.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    extra = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if missing or extra or shapes:
        parts = [("missing", missing), ("unexpected", extra), ("of another shape", shapes)]
        found = "; ".join(
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in parts
            if names
        )
        raise TokError(where, "weights do not fit the network", why=found, next="Give the weights of this very network")
    module.load_state_dict(dict(state), strict=True)
