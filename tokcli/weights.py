"""Weights on disk: safetensors out, safetensors or safely read PyTorch files in, and writes that are whole or absent."""

import argparse
import contextlib
import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokcli.errors import TokError


def cache_dir() -> Path:
    """Where fetched weights and computed features are kept: $TOK_CACHE, else ~/.cache/tok."""
    return Path(os.environ.get("TOK_CACHE") or Path.home() / ".cache" / "tok").expanduser()


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def disk_error(path: Path, error: OSError) -> TokError:
    """The one-line form of an error met while writing `path`."""
    short = error.errno is None and "requested and" in str(error)  # NumPy's words for a write that was cut short
    if short or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return TokError(str(path), "the disk is full", next="free some space and repeat the command: it resumes")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return TokError(str(path), "cannot write here", got=error.strerror or "", next="choose another --out")
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return TokError(str(path), "cannot be written", got="a file is in the way", next="choose another --out")
    return TokError(str(path), "cannot be written", got=error.strerror or str(error))


def require_space(folder: Path, need: int, where: str, *, next: str) -> None:
    """Refuse to begin what the disk of `folder` cannot hold.

    Args:
        need: bytes.
        where, next: the key or flag that asks for them, and what to do instead.

    Raises:
        TokError: fewer are free.
    """
    free = shutil.disk_usage(folder).free
    if need > free:
        raise TokError(
            where, f"needs {need / 2**30:.1f} GiB in {folder}", got=f"{free / 2**30:.1f} GiB are free", next=next
        )


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success flush it to disk and rename it into place.

    Raises:
        TokError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    tmp: Path | None = None
    try:
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(fd)
        tmp = Path(name)
        yield tmp
        with open(tmp, "rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(tmp, 0o666 & ~umask)  # mkstemp makes private files; artifacts are to be shared
        os.replace(tmp, path)
        sync_folder(path.parent)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        if tmp is not None:
            tmp.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a small text file atomically, as UTF-8."""
    with atomic_write(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


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


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Whatever a PyTorch file holds, without running any code that it names.

    Raises:
        TokError: missing, truncated, a TorchScript archive, or naming a class that is not a plain container.
    """
    path = Path(path)
    try:
        with torch.serialization.safe_globals([*((_Inert, name) for name in FOREIGN), argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TokError(str(path), "no such file") from None
    except Exception as error:
        # torch opens with advice on its own arguments; what it met comes after that
        text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
        first = text.splitlines()[0][:160] if text else type(error).__name__
        if "TorchScript" in str(error) or "torch.jit" in str(error):
            raise TokError(
                str(path),
                "is a TorchScript archive, which holds code",
                next="export its state_dict: torch.save(torch.jit.load(FILE).state_dict(), OUT)",
            ) from None
        raise TokError(
            str(path), "cannot be read as weights", got=first, next="check the download or use a .safetensors file"
        ) from None
    if not isinstance(loaded, dict):
        raise TokError(str(path), "holds no dictionary of weights", got=type(loaded).__name__)
    return loaded


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file or a PyTorch checkpoint (`state_dict`, `model` are unwrapped;
    of a training run that kept averaged weights, they: `ema`).

    Raises:
        TokError: the file is missing, truncated or not a file of weights.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        loaded = read_checkpoint(path)
        for key in ("ema", "state_dict", "model", "module", "teacher"):
            if isinstance(loaded.get(key), dict):
                loaded = loaded[key]
                break
        return {name: t for name, t in loaded.items() if isinstance(t, Tensor)}
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise TokError(str(path), "no such file") from None
    except (SafetensorError, OSError) as error:
        raise TokError(str(path), "is not a whole safetensors file", got=str(error)) from None


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
        raise TokError(where, "weights do not fit the network", got=found)
    module.load_state_dict(dict(state), strict=True)
