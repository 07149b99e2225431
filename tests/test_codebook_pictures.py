"""A codebook's atlas, places and purity: like beside like, every code once, and numbers that chance does not reach."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from tokcli.codebook import atlas, purity, similarity
from tokcli.codebook.view import see, write_pictures


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 23, 100])
def test_every_point_gets_a_cell_of_its_own_and_none_is_left_empty(count):
    cells = similarity.fill_grid(np.random.default_rng(0).random((count, 2)))
    _, columns = similarity.grid_side(count)
    assert sorted((cells[:, 0] * columns + cells[:, 1]).tolist()) == list(range(count))


def test_points_on_a_grid_stay_where_they_are():
    rows, columns = np.divmod(np.arange(36), 6)
    cells = similarity.fill_grid(np.stack([columns, rows], 1) * 2.5)
    assert np.array_equal(cells, np.stack([rows, columns], 1))


def test_the_curve_visits_every_point_and_steps_to_a_neighbour(monkeypatch):
    monkeypatch.setattr(similarity, "CURVE_BITS", 3)
    points = np.stack(np.divmod(np.arange(64), 8), 1).astype(np.float32)
    order = similarity.along_curve(points)
    assert sorted(order.tolist()) == list(range(64))
    assert (np.abs(np.diff(points[order], axis=0)).sum(1) == 1).all()


def test_neighbours_are_the_nearest_other_codes_even_among_equal_ones(monkeypatch):
    monkeypatch.setattr(similarity, "CHUNK", 7)
    codes = np.random.default_rng(0).random((20, 3)).astype(np.float32)
    square = ((codes[:, None] - codes) ** 2).sum(-1)
    np.fill_diagonal(square, 9)
    assert np.array_equal(similarity.neighbours(codes, 5), square.argsort(1)[:, :5])
    equal = similarity.neighbours(np.zeros((4, 2), np.float32), 12)
    assert [sorted(row) for row in equal.tolist()] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_codes_beyond_the_landmarks_lie_by_those_they_are_like(monkeypatch):
    monkeypatch.setattr(similarity, "LANDMARKS", 20)
    groups = np.arange(60) % 3
    codes = np.eye(3)[groups] * 9 + np.random.default_rng(0).random((60, 3)) * 0.1
    xy = similarity.lay_out(codes.astype(np.float32), perplexity=3.0)
    centres = np.stack([xy[groups == g].mean(0) for g in range(3)])
    assert (((xy[:, None] - centres) ** 2).sum(-1).argmin(1) == groups).all()


def test_the_typical_patch_is_the_token_nearest_to_its_code():
    indices = torch.tensor([[1, 1], [3, 1]])
    distances = torch.tensor([[0.5, 0.2], [0.9, 0.3]])
    assert atlas.typical_places(indices, distances, 5).tolist() == [[-1, -1], [0, 1], [-1, -1], [1, 0], [-1, -1]]


def test_places_count_every_token_once():
    indices = torch.tensor([[0, 1, 1, 2], [0, 0, 1, 2]])
    counts = atlas.place_counts(indices, 4)
    assert counts.tolist() == [[2, 1, 0, 0], [0, 1, 2, 0], [0, 0, 0, 2], [0, 0, 0, 0]]
    rows = list(atlas.place_numbers(counts, (2, 2)))
    assert rows[1] == {"index": 0, "row": 0, "column": 1, "tokens": 1} and sum(r["tokens"] for r in rows) == 8


def test_a_heat_map_is_darkest_where_the_code_is_most():
    tiles = atlas.place_tiles(np.array([[2, 1, 0, 0], [0, 0, 0, 0]]), (2, 2)).astype(int).sum(-1)
    assert tiles[0, 0, 0] < tiles[0, 0, 1] < tiles[0, 1, 0] and len(set(tiles[1].ravel())) == 1


def test_codes_that_know_the_class_are_pure_and_shuffled_classes_are_not():
    labels = torch.arange(60) % 3
    found = purity.measure_purity(labels[:, None].repeat(1, 4), labels, 5)
    assert found.owner.tolist() == [0, 1, 2, -1, -1] and found.tokens.tolist() == [80, 80, 80, 0, 0]
    real, chance = found.mean()
    assert real == 1.0 and 0.33 <= chance < 0.6


def test_codes_that_know_nothing_are_as_pure_as_chance():
    indices = torch.randint(0, 4, (500, 8), generator=torch.Generator().manual_seed(0))
    real, chance = purity.measure_purity(indices, torch.arange(500) % 5, 4).mean()
    assert abs(real - chance) < 0.02


def test_images_without_a_class_have_no_purity():
    assert purity.measure_purity(torch.zeros(3, 2, dtype=torch.int64), torch.full((3,), -1), 4) is None


@pytest.mark.parametrize("labelled", [True, False])
def test_every_picture_has_its_numbers_beside_it(tmp_path, labelled):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=generator)
    indices = torch.randint(0, 9, (12, 4), generator=generator)
    labels = torch.arange(12) % 2 if labelled else torch.full((12,), -1)
    codes = torch.randn(10, 3, generator=generator)
    book = see("t", images, indices, labels, (2, 2), codes, torch.rand(12, 4), perplexity=2.0)
    sheets, tables, drawn = write_pictures(tmp_path, book, ["a", "b"], usage=0.9, perplexity=8.0, columns=2, context=1)
    assert len(sheets) == 9 and all((tmp_path / name).is_file() for name in (*sheets, *tables, *drawn))
    assert ("purity.png" in drawn) == ("purity.csv" in tables) == labelled
    assert {Image.open(tmp_path / name).mode for name in drawn} <= {"RGB", "RGBA"}
    with open(tmp_path / "patches.csv", newline="") as file:
        for row in csv.DictReader(file):
            place = int(row["row"]) * 2 + int(row["column"])
            assert indices[int(row["image"]), place] == int(row["index"])
