"""What the claims suite reads: three sets of images of one form, weights that nobody trained, and what teachers understand of the sets."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import noto_emoji
import numpy as np
import torch
from claims_plan import TEACHERS
from PIL import Image

from tokcli.artifact.weights import save_tensors
from tokcli.data.sources import open_source
from tokcli.data.transforms import CenterCrop
from tokcli.device import usual_device
from tokcli.metrics.understanding import vector_probe_accuracy
from tokcli.pretrained import network_class
from tokcli.pretrained.feature_cache import TeacherCache
from tokcli.pretrained.teacher import build_teacher

SIZE = 32
SOURCES = {"openmoji": "openmoji", "fashion": "fashion-mnist"}
FASHION = {"train": 1600, "val": 300}  # as many as there are emoji
SPLITS = tuple(FASHION)
GRID = (8, 8)


def prepare(name: str, folder: Path, most: int | None = None) -> bool:
    """Write train and val of a data set as folders of images with classes and captions, once; False where it cannot be had.

    Args:
        name: openmoji, noto or fashion.
        most: images of each class; None: all, of Fashion-MNIST as many as there are emoji.
    """
    done = folder / "done"  # written last
    if not done.is_file():
        if name == "noto" and not noto_emoji.FONT.is_file():
            print("noto: left out, for fonts-noto-color-emoji is not installed", file=sys.stderr)
            return False
        if name == "noto":
            emoji = noto_emoji.base_emoji()
            few = emoji if most is None else [*first_of_each(emoji, lambda one: one.category, 2 * most)]
            noto_emoji.write(folder, noto_emoji.Font(), SIZE, few)
        else:
            for split in SPLITS:
                _copy(f"{SOURCES[name]}/{split}", folder / split, FASHION[split] if name == "fashion" else None, most)
        done.touch()
    return True


def _copy(spec: str, folder: Path, number: int | None, most: int | None) -> None:
    """Images of a source, evenly spread where only a number of them is wanted."""
    source = open_source(spec, size=SIZE)
    chosen: Iterable[int] = range(len(source))
    if most is not None:
        chosen = first_of_each(chosen, source.label, most)
    elif number is not None:
        chosen = (i * len(source) // number for i in range(number))
    captions = []
    for i in chosen:
        key = f"{source.classes[source.label(i)].replace('/', '-')}/{i:05d}.png"
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.image(i).permute(1, 2, 0).numpy()).save(path)
        captions += [json.dumps({"key": key, "captions": said}) + "\n" for said in [source.captions(i)] if said]
    if captions:
        (folder / "captions.jsonl").write_text("".join(captions), encoding="utf-8")


def first_of_each(things: Iterable[Any], group: Callable[[Any], Any], most: int) -> Iterator[Any]:
    """At most so many of each group, in order."""
    seen: dict[Any, int] = {}
    for one in things:
        seen[group(one)] = seen.get(group(one), 0) + 1
        if seen[group(one)] <= most:
            yield one


def prompts(data: Path, number: int) -> list[str]:
    """Captions of held-out images, evenly spread over them."""
    rows = (data / "val" / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    number = min(number, len(rows))
    return [json.loads(rows[i * len(rows) // number])["captions"][0] for i in range(number)]


def random_weights(folder: Path, network: str) -> Path:
    """The file of a network's weights as they are before any training."""
    path = folder / f"random-{network}.safetensors"
    if not path.is_file():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            built = network_class(network)(network)  # type: ignore[call-arg]  # not folded, as files of weights are
        save_tensors(path, built.body.state_dict())
    return path


def understanding(name: str, data: Path, weights: Path, precision: str) -> float:
    """Accuracy of a linear probe on a teacher's features of held-out images, in [0, 1].

    The features are those that tokenizers learn (`cache_features`), averaged over the patches of an image and standardised.

    Args:
        name: of TEACHERS.
        data: a folder with train and val.
        weights: the folder of `random_weights`.
        precision: in which features are computed, that of the trainings.
    """
    taught = TEACHERS[name]
    file = random_weights(weights, taught.network) if taught.random else None
    teacher = build_teacher(taught.network, {"layers": list(taught.layers)}, file)
    transform = CenterCrop(SIZE)
    sides: list[Any] = []
    for split in SPLITS:
        source = open_source(str(data / split), size=SIZE)
        cache = TeacherCache(teacher, source, transform, GRID, precision)
        cache.fill(usual_device())
        parts: Sequence[torch.Tensor] = torch.arange(len(source)).split(64)
        sides += [
            torch.cat([cache.rows(part).mean(1) for part in parts]),
            np.array([source.label(i) for i in range(len(source))]),
        ]
    return vector_probe_accuracy(*sides)
