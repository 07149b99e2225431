"""Pictures show what they were given, where it belongs, the same way each time."""

import csv
import time

import numpy as np
import pytest
import torch
from PIL import Image

from tokcli import pictures
from tokcli.codebook.codes import ranking_sheet, write_code_sheets
from tokcli.codebook.embedding import Panel, draw_embeddings, embed, embedding_numbers
from tokcli.codebook.patches import choose_patches, crop_patches
from tokcli.errors import TokError
from tokcli.pictures.canvas import ELLIPSIS, PAPER, shorten, text_width, wrap


def images(count, side=16):
    """Each image of one colour of its own."""
    colours = torch.stack([torch.arange(count), 255 - torch.arange(count), torch.full((count,), 7)], dim=1)
    return colours.byte()[:, :, None, None].expand(-1, -1, side, side).contiguous()


def colours_in(picture):
    return set(map(tuple, np.asarray(picture).reshape(-1, 3).tolist()))


def test_conversion_to_uint8_rounds_and_clamps():
    values = torch.tensor([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.0, 2.0])
    assert pictures.to_uint8(values).tolist() == [0, 0, 0, 1, 255, 255, 255]


def test_uint8_survives_the_way_through_floats():
    every = torch.arange(256).byte()
    assert torch.equal(pictures.to_uint8(every / 255), every)


def test_pixels_that_are_not_finite_are_refused():
    with pytest.raises(TokError, match="not finite"):
        pictures.to_uint8(torch.tensor([0.5, float("nan")]))


def test_upscaling_repeats_pixels():
    tile = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    assert np.array_equal(pictures.upscale(tile, 3)[:, ::3, ::3], tile) and pictures.upscale(tile, 3).shape[1:3] == (
        6,
        6,
    )


def test_small_images_are_enlarged_and_large_ones_are_not():
    small, large = (pictures.contact_sheet([images(1, side)]).width for side in (64, 200))
    assert small > 128 and 200 < large < 400


def test_a_contact_sheet_shows_every_image_in_its_place():
    sheet = np.asarray(pictures.contact_sheet([images(6)[:3], images(6)[3:]]))
    found = [sheet[10 + r * 132 + 64, 10 + c * 132 + 64] for r in range(2) for c in range(3)]
    assert np.array_equal(found, images(6)[:, :, 0, 0].numpy())


def test_labels_take_room_of_their_own():
    bare = np.asarray(pictures.contact_sheet([images(3)]))
    sheet = pictures.contact_sheet([images(3)], row_labels=["reconstruction"], column_labels=list("abc"), title="t")
    labelled = np.asarray(sheet)
    assert labelled.shape[0] > bare.shape[0] and labelled.shape[1] > bare.shape[1]
    assert np.array_equal(labelled[-60:, -200:], bare[-60:, -200:])


def test_labels_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="2 rows but 1 labels"):
        pictures.contact_sheet([images(1), images(1)], row_labels=["a"])
    with pytest.raises(ValueError, match="images of one size"):
        pictures.contact_sheet([images(1, 8), images(1, 16)])


def test_long_labels_wrap_and_end_in_an_ellipsis():
    lines = wrap("a very long class name that goes on and on without an end in sight", 90, 2)
    assert len(lines) == 2 and lines[1].endswith(ELLIPSIS) and max(map(text_width, lines)) <= 90
    assert shorten("short", 200) == "short" and wrap("", 90, 2) == []


def test_a_comparison_has_a_row_per_caption_and_allows_short_ones():
    sheet = pictures.comparison_sheet({"original": images(4), "AR sample": images(9)[7:]})
    assert {(i, 255 - i, 7) for i in (0, 1, 2, 3, 7, 8)} <= colours_in(sheet)


def test_a_class_sheet_shows_each_class_that_occurs():
    labels = torch.tensor([2, 0, 2, 2, -1])
    found = colours_in(pictures.class_sheet(images(5), labels, ["a", "b", "c"], per_class=2))
    assert {(i, 255 - i, 7) for i in (0, 1, 2, 4)} <= found and (3, 252, 7) not in found


def test_many_classes_are_thinned_evenly():
    found = colours_in(pictures.class_sheet(images(50), torch.arange(50), [str(i) for i in range(50)], most_classes=2))
    assert {(0, 255, 7), (49, 206, 7)} <= found and (25, 230, 7) not in found


def test_patches_of_a_code_come_from_as_many_images_as_possible():
    indices = torch.zeros(10, 4, dtype=torch.int64)
    indices[3] = 1
    places = choose_patches(indices, 3, per_code=9)
    assert sorted(places[0, :, 0].tolist()) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert places[1, :4, 0].tolist() == [3] * 4 and places[1, :4, 1].tolist() == [0, 1, 2, 3]
    assert (places[1, 4:] == -1).all() and (places[2] == -1).all()


def test_patches_are_spread_over_the_images_and_do_hold_the_code():
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(0, 5, (200, 6), generator=generator)
    places = choose_patches(indices, 5, per_code=8)
    assert (indices.numpy()[places[..., 0], places[..., 1]] == np.arange(5)[:, None]).all()
    assert (places[..., 0].max(axis=1) > 170).all() and (places[..., 0].min(axis=1) < 30).all()
    assert all(len(set(row)) == 8 for row in places[..., 0].tolist())


def test_a_patch_is_the_cell_of_its_token():
    picture = torch.arange(16).byte().reshape(1, 1, 4, 4).repeat(1, 3, 1, 1)
    patch = crop_patches(picture, np.array([[0, 1], [0, 2], [-1, -1]]), (2, 2))
    assert patch[0, :, :, 0].tolist() == [[2, 3], [6, 7]]
    assert patch[1, :, :, 0].tolist() == [[8, 9], [12, 13]]
    assert (patch[2] == PAPER).all()


def test_context_adds_the_pixels_around_and_repeats_the_edge():
    picture = torch.arange(16).byte().reshape(1, 1, 4, 4).repeat(1, 3, 1, 1)
    patch = crop_patches(picture, np.array([[0, 0]]), (2, 2), context=1)
    assert patch[0, :, :, 0].tolist() == [[0, 0, 1, 2], [0, 0, 1, 2], [4, 4, 5, 6], [8, 8, 9, 10]]


def test_a_grid_that_does_not_divide_the_image_still_covers_it():
    patch = crop_patches(images(1, 16), np.array([[0, 8]]), (3, 3))
    assert patch.shape == (1, 6, 6, 3)


def test_every_used_code_has_a_sheet_and_sheets_repeat_byte_for_byte(tmp_path):
    indices = torch.tensor([[0, 5, 5, 2]]).repeat(3, 1)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        found = list(write_code_sheets(tmp_path / name, images(3), indices, (2, 2), 8, columns=2, context=3))
        assert [path.name for path in found] == ["code-00000.png", "code-00002.png", "code-00005.png"]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_five_hundred_sheets_of_36_patches_take_seconds(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (400, 3, 32, 32), dtype=torch.uint8, generator=generator)
    indices = torch.randint(0, 128, (400, 16), generator=generator)
    start = time.process_time()
    assert len(list(write_code_sheets(tmp_path, x, indices, (4, 4), 128))) == 128
    assert time.process_time() - start < 5  # a quarter of 20 s for 512


def test_indices_of_another_grid_are_refused(tmp_path):
    with pytest.raises(ValueError, match="do not fit"):
        list(write_code_sheets(tmp_path, images(2), torch.zeros(2, 9, dtype=torch.int64), (2, 2), 4))


def test_a_folder_that_is_gone_is_one_clear_error(tmp_path):
    with pytest.raises(TokError, match="cannot be written"):
        list(write_code_sheets(tmp_path / "gone", images(1), torch.zeros(1, 4, dtype=torch.int64), (2, 2), 4))


@pytest.mark.parametrize("codes", [1, 3, 40])
def test_the_ranking_shows_the_most_used_code_and_holds_any_number(codes):
    indices = torch.arange(codes).repeat_interleave(4).reshape(codes, 4)
    sheet = ranking_sheet(images(codes), indices, (2, 2), 64)
    assert (0, 255, 7) in colours_in(sheet)


def test_usage_numbers_rank_by_count():
    rows = pictures.usage_numbers(torch.tensor([1, 0, 3]))
    assert [row["rank"] for row in rows] == [2, 3, 1]
    assert [row["share"] for row in rows] == ["0.25", "0", "0.75"]


def test_csv_has_a_header_and_reads_back(tmp_path):
    path = pictures.write_csv(tmp_path / "usage.csv", [{"index": 0, "label": 'a "b", c'}, {"index": 1, "label": "ü"}])
    with open(path, newline="", encoding="utf-8") as file:
        assert [row["label"] for row in csv.DictReader(file)] == ['a "b", c', "ü"]


@pytest.mark.parametrize("counts", [[5], [3, 1, 0, 0], list(range(300))])
def test_the_usage_plot_has_a_fixed_size_and_repeats(tmp_path, counts):
    given = torch.tensor(counts)
    first, second = (pictures.draw_usage(given, tmp_path / n, usage=0.5, perplexity=2.0) for n in ("a", "b"))
    assert Image.open(first).size == (1080, 660) and first.read_bytes() == second.read_bytes()


def test_a_usage_plot_of_nothing_is_refused(tmp_path):
    with pytest.raises(TokError, match="no tokens were counted"):
        pictures.draw_usage(torch.zeros(4, dtype=torch.int64), tmp_path / "a", usage=0.0, perplexity=1.0)


@pytest.fixture(scope="module")
def embedding():
    generator = torch.Generator().manual_seed(0)
    return embed(torch.randn(40, 60, generator=generator), torch.randn(30, 60, generator=generator), limit=20)


def test_the_embedding_keeps_within_its_limits_and_says_which_rows_it_placed(embedding):
    assert embedding.feature_xy.shape == (20, 2) and embedding.code_xy.shape == (30, 2)
    assert len(set(embedding.rows.tolist())) == 20 and embedding.rows.max() < 40
    assert np.isfinite(embedding.feature_xy).all()


def test_neighbours_stay_neighbours_in_the_plane():
    centres = torch.eye(4).repeat_interleave(10, dim=0) * 20
    x = centres + torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    found = embed(x, torch.eye(4) * 20, perplexity=5.0)
    means = found.feature_xy.reshape(4, 10, 2).mean(axis=1)
    nearest = np.linalg.norm(found.code_xy[:, None] - means[None], axis=-1).argmin(axis=1)
    assert nearest.tolist() == [0, 1, 2, 3]


def test_embedding_numbers_name_kind_row_and_class(embedding):
    rows = embedding_numbers(embedding, torch.arange(40) % 2, ["even", "odd"], torch.full((30,), -1))
    assert [row["kind"] for row in rows] == ["feature"] * 20 + ["code"] * 30
    assert all(row["label"] == ["even", "odd"][row["index"] % 2] for row in rows[:20]) and rows[-1]["label"] == ""


@pytest.mark.parametrize(
    ("labels", "classes", "of_codes"),
    [
        (torch.arange(40) % 2, ["_even", "a name that is far too long for any legend"], torch.arange(30) % 2),
        (torch.arange(40), [f"class {i}" for i in range(1000)], torch.full((30,), -1)),
        (torch.full((40,), -1), [], None),
    ],
)
def test_the_embedding_plot_takes_two_classes_many_or_none(tmp_path, embedding, labels, classes, of_codes):
    panels = [Panel("t", embedding, labels, of_codes)]
    path = draw_embeddings(panels, tmp_path / "map.png", classes)
    assert Image.open(path).size == (1500, 1050)
    two = draw_embeddings(panels * 2, tmp_path / "two.png", classes)
    assert Image.open(two).size == (2505, 1050)


def test_too_few_points_have_no_embedding():
    with pytest.raises(TokError, match="at least 4 points"):
        embed(torch.zeros(1, 3), torch.zeros(2, 3))
