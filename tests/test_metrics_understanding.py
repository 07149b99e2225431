"""Classes from tokens: what a bag of codes keeps, and that both judges find what is there and nothing that is not."""

import numpy as np
import pytest
import torch

from tokcli.errors import TokError
from tokcli.metrics.understanding import bags, knn_accuracy, probe_accuracy


def tokens(n, k=6, seed=0):
    return torch.randint(0, k, (n, 16), generator=torch.Generator().manual_seed(seed))


def told(n, seed):
    """Images of two classes: code 0 in a quarter of the grid, the top left or the bottom right, among noise."""
    codes, labels = tokens(n, seed=seed).view(n, 4, 4), np.arange(n) % 2
    codes[labels == 0, :2, :2] = 0
    codes[labels == 1, 2:, 2:] = 0
    return bags(codes.flatten(1), (4, 4), 6), labels


def test_a_bag_counts_codes_over_the_grid_and_its_quarters():
    codes = torch.tensor([[0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]])
    found = bags(codes, (4, 4), 4).toarray().reshape(5, 4) ** 2 * 5
    assert np.allclose(found, [[0.25] * 4, *np.eye(4)])


def test_bags_have_length_one_on_odd_grids_too():
    found = bags(tokens(3)[:, :15], (3, 5), 6)
    assert found.shape == (3, 30) and np.allclose(found.multiply(found).sum(1), 1)


@pytest.mark.parametrize("judge", [probe_accuracy, knn_accuracy])
def test_classes_that_the_tokens_show_are_found(judge):
    assert judge(*told(80, 0), *told(40, 1)) > 0.9


@pytest.mark.parametrize("judge", [probe_accuracy, knn_accuracy])
def test_classes_that_the_tokens_do_not_show_are_guessed(judge):
    noise = [bags(tokens(n, seed=s), (4, 4), 6) for n, s in ((80, 2), (200, 3))]
    assert 0.3 < judge(noise[0], np.arange(80) % 2, noise[1], np.arange(200) % 2) < 0.7


def test_knn_votes_as_a_loop_would():
    (train, labels), (test, wanted) = told(30, 4), told(20, 5)
    right = 0
    for row, answer in zip(test.toarray(), wanted, strict=True):
        alike = train.toarray() @ row
        nearest = np.argsort(-alike, kind="stable")[:3]
        right += answer == max((0, 1), key=lambda c: alike[nearest][labels[nearest] == c].sum())
    assert knn_accuracy(train, labels, test, wanted, k=3) == right / 20


@pytest.mark.parametrize("judge", [probe_accuracy, knn_accuracy])
def test_images_of_one_class_tell_nothing(judge):
    train, labels = told(8, 0)
    with pytest.raises(TokError, match="at least 2 classes"):
        judge(train, labels * 0, train, labels)
    with pytest.raises(TokError, match="every image needs a class"):
        judge(train, labels[1:], train, labels)
