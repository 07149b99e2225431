"""Edits of photos: windows around masked parts, pasted back so that nothing else changes, at the photo's own size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tokcli.errors import TokError
from tokcli.sampling.edits import Edit, Window, read_edit, squares_of
from tokcli.sampling.generator import Generator, in_window


def noise(height: int, width: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (3, height, width), generator=random, dtype=torch.uint8)


def files(
    tmp_path: Path, photo: torch.Tensor, boxes: list[tuple[int, int, int, int]], value: int = 255
) -> tuple[Path, Path]:
    """A photo and a mask whose boxes (top, left, bottom, right) are light."""
    mask = np.zeros(photo.shape[1:], np.uint8)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = value
    Image.fromarray(mask).save(tmp_path / "m.png")
    Image.fromarray(photo.permute(1, 2, 0).numpy()).save(tmp_path / "p.png")
    return tmp_path / "p.png", tmp_path / "m.png"


def edit_of(tmp_path: Path, photo: torch.Tensor, boxes: list[tuple[int, int, int, int]], **keys: Any) -> Edit:
    settings = {"mode": "nar", "size": 8, "grid": (2, 2), "margin": 0.5} | keys
    return read_edit(*files(tmp_path, photo, boxes), None, **settings)


def mask(shape: tuple[int, int], *boxes: tuple[int, int, int, int]) -> np.ndarray:
    found = np.zeros(shape, bool)
    for top, left, bottom, right in boxes:
        found[top:bottom, left:right] = True
    return found


@pytest.mark.parametrize(
    ("boxes", "margin", "squares"),
    [
        ([(40, 50, 60, 60)], 0.5, [(30, 35, 40)]),  # twice the longer side, around its middle
        ([(0, 90, 20, 100)], 0.5, [(0, 60, 40)]),  # moved inside at the corner
        ([(50, 50, 51, 51)], 0.5, [(46, 46, 8)]),  # the network's own pixels at least
        ([(40, 50, 60, 60)], 0.0, [(40, 45, 20)]), ([(10, 0, 80, 9)], 0.5, [(0, 0, 90)]),  # the short side at most
        ([(5, 0, 15, 100)], 0.5, [(-5, 0, 100)]),  # longer than the short side: the whole photo and beyond
        ([(10, 10, 14, 14), (70, 80, 74, 84)], 0.5, [(8, 8, 8), (68, 78, 8)]),  # apart: each its own
        ([(10, 10, 14, 14), (10, 18, 14, 22)], 0.5, [(0, 4, 24)]),  # near: one, which is then a part of 12
    ],
)  # fmt: skip
def test_squares_lie_around_the_parts(boxes: Any, margin: float, squares: list[tuple[int, int, int]]) -> None:
    assert squares_of(mask((90, 100), *boxes), 8, margin) == squares


def test_squares_never_overlap_and_cover_every_part() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        anew = random.random((60, 83)) < 0.004
        anew[3, 5] = True
        covered = np.zeros_like(anew, dtype=int)
        for top, left, side in squares_of(anew, 4, 0.3):
            covered[max(0, top) : top + side, max(0, left) : left + side] += 1
        assert covered.max() == 1 and covered[anew].all()


@pytest.mark.parametrize(
    "boxes", [[(3, 4, 9, 12)], [(0, 0, 2, 2), (25, 30, 30, 37)], [(0, 0, 30, 37)], [(10, 0, 12, 37)]]
)
def test_masked_pixels_change_and_all_others_are_byte_equal(boxes: Any, tmp_path: Path) -> None:
    photo = noise(30, 37)
    edit = edit_of(tmp_path, photo, boxes)
    drawn = torch.stack([torch.full((3, 8, 8), 10 + place, dtype=torch.uint8) for place in range(len(edit.windows))])
    result = edit.paste(drawn)
    anew = torch.from_numpy(mask((30, 37), *boxes))
    assert result.shape == photo.shape and torch.equal(result[:, ~anew], photo[:, ~anew])
    assert set(result[:, anew].unique().tolist()) == set(range(10, 10 + len(edit.windows)))
    assert torch.equal(edit.image, photo)  # not changed itself


def test_what_is_drawn_comes_back_to_its_own_place(tmp_path: Path) -> None:
    photo = noise(40, 50)
    edit = edit_of(tmp_path, photo, [(10, 20, 14, 24)])
    (window,) = edit.windows
    assert (window.top, window.left, window.side) == (8, 18, 8)
    assert torch.equal(window.image, photo[:, 8:16, 18:26])  # of the network's size: nothing is resized
    assert torch.equal(edit.paste(window.image[None]), photo)
    assert window.drawn.tolist() == [True, True, True, True]  # 2 to 6 of 8 pixels: all four patches are touched
    one = edit_of(tmp_path, photo, [(10, 20, 12, 22)], margin=1.5).windows[0]
    assert (one.top, one.left, one.side, one.drawn.tolist()) == (7, 17, 8, [True, True, True, True])


@pytest.mark.parametrize(("padding", "fill"), [(None, 5), ("white", 255), ("edge", 5)])
def test_a_window_over_the_edge_is_filled(padding: Any, fill: int, tmp_path: Path) -> None:
    photo = torch.full((3, 4, 8), 5, dtype=torch.uint8)
    photo[:, 1:3, 1:7] = 90
    edit = edit_of(tmp_path, photo, [(1, 0, 3, 8)], padding=padding, margin=0.0)
    (window,) = edit.windows
    assert (window.top, window.left, window.side) == (-2, 0, 8)
    assert window.image[:, [0, 1, 6, 7]].unique().tolist() == [fill] and torch.equal(window.image[:, 2:6], photo)
    assert window.drawn.tolist() == [True] * 4


@pytest.mark.parametrize(
    ("shape", "keep", "first", "rows"),
    [((8, 8), 0.5, 4, 2), ((8, 8), 1, 2, 1), ((8, 4), 0.5, 4, 2), ((4, 8), 0.5, 2, 2), ((16, 12), 3, 12, 3)],
)
def test_the_rows_below_are_drawn_in_the_whole_photo(
    shape: tuple[int, int], keep: int | float, first: int, rows: int, tmp_path: Path
) -> None:
    photo = noise(*shape)
    photo_file, _ = files(tmp_path, photo, [])
    edit = read_edit(photo_file, None, keep, mode="ar", size=8, grid=(4, 4))
    assert edit.anew.any(1).int().argmax() == first and bool(edit.anew[first:].all())
    assert edit.windows[0].drawn.view(4, 4).all(1).tolist() == [row >= rows for row in range(4)]
    assert edit.paste(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).shape == photo.shape


def test_a_strip_of_one_row_of_tokens_cannot_be_continued(tmp_path: Path) -> None:
    photo, _ = files(tmp_path, noise(2, 16), [])
    with pytest.raises(TokError, match="one row of tokens high.*--mask"):
        read_edit(photo, None, 0.5, mode="nar", size=8, grid=(4, 4))


def test_dark_pixels_of_a_mask_mark_nothing(tmp_path: Path) -> None:
    photo, dark = files(tmp_path, noise(9, 9), [(0, 0, 9, 9)], value=127)
    with pytest.raises(TokError, match="marks nothing to draw anew"):
        read_edit(photo, dark, None, mode="nar", size=8, grid=(2, 2))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_mask_with_clear_pixels_is_refused_and_one_without_is_read(mode: str, tmp_path: Path) -> None:
    photo, _ = files(tmp_path, noise(9, 9), [])
    painted = Image.fromarray(mask((9, 9), (0, 0, 2, 2)).astype(np.uint8) * 255).convert(mode)
    painted.save(tmp_path / "m.png")
    edit = read_edit(photo, tmp_path / "m.png", None, mode="nar", size=8, grid=(2, 2))
    assert int(edit.anew.sum()) == 4
    if mode == "P":
        painted.save(tmp_path / "m.png", transparency=0)
    else:
        painted.putalpha(painted.getchannel(0))
        painted.save(tmp_path / "m.png")
    with pytest.raises(TokError, match="m.png: has transparent pixels. Make it black where the photo stays"):
        read_edit(photo, tmp_path / "m.png", None, mode="nar", size=8, grid=(2, 2))


def test_a_photo_of_one_pixel_is_drawn_anew(tmp_path: Path) -> None:
    edit = edit_of(tmp_path, noise(1, 1), [(0, 0, 1, 1)])
    assert edit.paste(torch.full((1, 3, 8, 8), 7, dtype=torch.uint8)).flatten().tolist() == [7, 7, 7]


def test_photo_and_mask_are_turned_as_their_tags_say(tmp_path: Path) -> None:
    photo = Image.fromarray(noise(6, 10).permute(1, 2, 0).numpy())
    tag = Image.Exif()
    tag[0x0112] = 6  # lies on its side: shown 6 wide and 10 high
    photo.save(tmp_path / "p.png", exif=tag)
    Image.fromarray(mask((10, 6), (0, 0, 2, 2)).astype(np.uint8) * 255).save(tmp_path / "m.png")
    edit = read_edit(tmp_path / "p.png", tmp_path / "m.png", None, mode="nar", size=4, grid=(2, 2))
    assert edit.image.shape == (3, 10, 6) and edit.fact["size"] == [10, 6]
    assert int(edit.anew.sum()) == 4 and bool(edit.anew[:2, :2].all())


class Network:
    """A proposal network that draws the seed's last bits, and remembers what it was asked."""

    sampling_keys = ("steps",)

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def generate(self, condition: Any, seeds: Any, settings: Any, known: Any) -> torch.Tensor:
        self.asked.append((settings.steps, known[0].tolist()))
        return torch.where(known < 0, (seeds % 97)[:, None], known)


def test_each_window_is_drawn_by_itself_with_no_more_steps_than_tokens() -> None:
    from tokcli.proposals import Sampling

    drawn = torch.tensor([True, False, True, True]), torch.tensor([False, False, False, True])
    windows = [Window(0, 0, 4, torch.zeros(3, 4, 4, dtype=torch.uint8), one) for one in drawn]
    edit = Edit(torch.zeros(3, 9, 9, dtype=torch.uint8), torch.ones(9, 9, dtype=torch.bool), windows, {})
    generator = object.__new__(Generator)
    generator.proposal, generator.device = Network(), torch.device("cpu")  # type: ignore[assignment]
    generator.known = lambda window: torch.where(window.drawn, -1, 7)[None]  # type: ignore[method-assign]
    found = Generator.tokens(generator, 3, range(2), torch.zeros(2), Sampling(steps=2), edit)
    assert generator.proposal.asked == [(2, [-1, 7, -1, -1]), (1, [7, 7, 7, -1])]  # type: ignore[attr-defined]
    assert found.shape == (2, 8) and found[0, 0] != found[1, 0] and found[0, 0] != found[0, 7]
    again = Generator.tokens(generator, 3, range(1, 2), torch.zeros(1), Sampling(steps=2), edit)
    assert torch.equal(again[0], found[1])  # whatever else is in the batch
    assert in_window(Sampling(steps=2), 5, generator.proposal).steps == 2
