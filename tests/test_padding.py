"""Whole pictures on a square: the transform `pad`, and that every later command reads pictures as the tokenizer was taught them."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from tokcli import build, load
from tokcli.artifact.opening import open_artifact
from tokcli.cli import cli
from tokcli.data.randomness import generator
from tokcli.data.sources import limited, open_source, padded, padding_of
from tokcli.data.transforms import CropViews, Pad, RandomCrop, evaluation_transform, resize
from tokcli.handles.networks import as_squares
from tokcli.recipe.sections import Component, Data

RED = torch.tensor([200, 10, 20], dtype=torch.uint8)


def picture(height: int, width: int) -> torch.Tensor:
    """Red all along its edge, noise inside."""
    image = torch.randint(0, 256, (3, height, width), generator=generator(0, height, width), dtype=torch.uint8)
    image[:, [0, -1]] = RED[:, None, None]
    image[:, :, [0, -1]] = RED[:, None, None]
    return image


@pytest.mark.parametrize(("colour", "fill"), [("white", [255, 255, 255]), ("edge", RED.tolist())])
@pytest.mark.parametrize(("shape", "rows", "columns"), [((16, 8), slice(0, 16), slice(4, 12)), ((8, 16), slice(4, 12), slice(0, 16))])  # fmt: skip
def test_the_whole_picture_stands_in_the_middle(
    shape: tuple[int, int], rows: slice, columns: slice, colour: Any, fill: list[int]
) -> None:
    image = picture(*shape)
    square = Pad(16, colour=colour)(image, torch.Generator())
    assert torch.equal(square[:, rows, columns], image)
    outside = torch.ones(16, 16, dtype=torch.bool)
    outside[rows, columns] = False
    assert square[:, outside].T.unique(dim=0).tolist() == [fill]


def test_a_square_picture_is_resized_and_no_more() -> None:
    assert torch.equal(Pad(8)(picture(16, 16), torch.Generator()), resize(picture(16, 16), 8, 8))


def test_flips_come_after_and_make_it_random() -> None:
    plain, flipped = Pad(16), Pad(16, flip=True)
    image = picture(16, 8)
    found = {tuple(flipped(image, generator(0, i)).flatten().tolist()) for i in range(20)}
    square = plain(image, torch.Generator())
    assert found == {tuple(square.flatten().tolist()), tuple(square.flip(2).flatten().tolist())}
    assert plain.deterministic and not flipped.deterministic and plain.describe() != flipped.describe()
    assert plain.describe() != Pad(16, colour="edge").describe()  # features are cached under these words


def test_views_are_parts_of_the_whole_picture() -> None:
    image = picture(40, 20)
    views = CropViews(16, crops=3, scale=(1.0, 1.0), flip=True, padding="edge")(image, 0)
    whole = Pad(16, colour="edge")(image, torch.Generator())
    assert all(torch.equal(view, whole) for view in views[::2]) and torch.equal(views[1], whole.flip(2))
    corners = CropViews(16, corners=[1.25], padding="white")(image, 0)
    larger = Pad(20)(image, torch.Generator())
    assert torch.equal(corners[1], larger[:, :16, :16]) and torch.equal(corners[4], larger[:, 4:, 4:])
    cropped = RandomCrop(16)(image, generator(0))
    assert torch.equal(cropped, RandomCrop(16)(image, generator(0))) and RandomCrop(16).fit(image, 16).shape == (
        3,
        32,
        16,
    )


def test_a_padded_source_is_read_alike_by_everything(photos: Path) -> None:
    source = open_source(str(photos / "train"), size=8)
    squares = padded(source, 8, "edge")
    assert squares.id == source.id and len(squares) == len(source) and padding_of(limited(squares, 2)) == "edge"
    assert padded(source, 8, None) is source and padding_of(source) is padding_of(limited(source, 2)) is None
    wanted = Pad(8, colour="edge")(source.image(1), torch.Generator())
    assert torch.equal(evaluation_transform(8)(squares.image(1), torch.Generator()), wanted)
    given = Image.fromarray(source.image(1).permute(1, 2, 0).numpy())
    assert torch.equal(next(as_squares(given, 8, "edge"))[0], wanted)


def test_a_preset_s_decoder_pads_as_its_tokenizer_does() -> None:
    data = Data(size=8, transform=Component.model_validate({"name": "center-crop", "flip": True}))
    decoder, facts = Component(name="conv"), {"use_size": 8, "grid": [1, 1]}
    assert build.decoder_sizes(data, decoder, facts) == {}
    found = build.decoder_sizes(data, decoder, facts | {"padding": "edge"})
    assert found == {"data.transform": {"name": "pad", "colour": "edge", "flip": True}}
    alike = Data(size=8, transform=Component.model_validate(found["data.transform"]))
    assert build.decoder_sizes(alike, decoder, facts | {"padding": "edge"}) == {}
    assert build.padding_fact(alike) == {"padding": "edge"} and build.padding_fact(data) == {}


def made(*arguments: Any) -> Path:
    logging.getLogger("tok").handlers.clear()
    result = CliRunner().invoke(cli, [*map(str, arguments), "--device", "cpu"])
    assert result.exit_code == 0, f"{result.stderr[-2000:]}{result.exception!r}"
    return Path(result.stdout.strip())


@pytest.mark.slow
def test_the_fact_goes_down_the_chain_and_pictures_are_whole_there(photos: Path, tmp_path: Path) -> None:
    w = ["--workspace", tmp_path / "w"]
    pad = ["--set", "data.transform={name: pad, colour: edge}", "--recipe", "toy"]
    t = made("train-tokenizer", "--data", photos / "train", *pad, *w)
    d, k = made("train-decoder", "--tokenizer", t, *w), made("tokenize", "--tokenizer", t, "--crops", 2, *w)
    p = made("train-proposal", "--mode", "nar", "--tokens", k, *w)
    s = made("sample", "-n", 4, "--proposal", p, "--decoder", d, *w)
    assert [open_artifact(a).facts["padding"] for a in (t, d, k, p, s)] == ["edge"] * 5
    assert open_artifact(d).recipe["data"]["transform"]["name"] == "pad"
    tokenizer, first = load(t), next((photos / "train").rglob("*.png"))
    keys = (k / "keys.txt").read_text().splitlines()
    row = keys.index(str(first.relative_to(photos / "train")))
    stored = np.load(k / "indices-00000.npy")[row, 0]
    assert tokenizer.encode([first])[0].tolist() == stored.tolist()
    report = made("eval", t, d, s, "--set", "eval.extractors=[efflite0]", *w)
    said = json.loads((report / "metrics.json").read_text())["protocol"]["resize"]
    assert said == "long side bicubic, on the edge's colour, antialiased"
    (statistics,) = [a for a in (tmp_path / "w").iterdir() if a.name.startswith("statistics")]
    assert open_artifact(statistics).facts["resize"] == "long side bicubic, on the edge's colour"
