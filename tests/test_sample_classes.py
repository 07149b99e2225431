"""Which classes `tok sample` draws, and what its shards say of them."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tokcli.data import sample_store as store
from tokcli.data.sources import open_source
from tokcli.errors import TokError
from tokcli.sampling.request import image_labels


def test_shards_say_classes_by_name_and_equal_samples_are_equal_bytes(tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        pixels = torch.arange(3 * 3 * 4 * 4).reshape(3, 3, 4, 4).to(torch.uint8)
        store.write_batch(folder, 0, range(3), torch.zeros(3, 2, dtype=torch.int64), pixels, "shards")
        store.merge(folder, 3, per_file=3, codebook_size=8, form="shards", labels=[2, 3, -1], captions=["x", "y", "z"],
                    classes=["0", "1", "10", "2"])  # fmt: skip
    source = open_source(str(tmp_path / "a" / "images-00000.tar"), size=4)
    assert [source.classes[i] if i >= 0 else "" for i in map(source.label, range(3))] == ["10", "2", ""]
    assert source.captions(1) == ["y"] and source.problems == [] and torch.equal(source.image(0), pixels[0])
    assert (tmp_path / "a" / "images-00000.tar").read_bytes() == (tmp_path / "b" / "images-00000.tar").read_bytes()


def asking(classes: list[int | str] | None, names: list[str], counts: list[int]) -> list[int]:
    recipe = SimpleNamespace(seed=0, sample=SimpleNamespace(classes=classes, number=None, per_class=1))
    return image_labels(recipe, names, counts)  # type: ignore[arg-type]


def test_only_classes_with_training_images_are_drawn() -> None:
    assert asking(None, ["0", "1", "2", "3"], [0, 5, 0, 2]) == [1, 3]
    assert asking(["3"], ["0", "1", "2", "3"], [0, 5, 0, 2]) == [3]
    with pytest.raises(TokError, match="--classes: no training image has class '2'"):
        asking([1, 2], ["0", "1", "2", "3"], [0, 5, 0, 2])


def test_names_of_classes_may_hold_commas() -> None:
    names = ["goldfish", "tench", "tench, Tinca tinca", "a,b"]
    assert asking(["tench", " Tinca tinca", "goldfish", "a", "b", "tench"], names, [1] * 4) == [2, 0, 3, 1]
    assert asking([2, "tench"], names, [1] * 4) == [2, 1]
