"""Nearest codes and k-means: exact, chunked, indifferent to precision settings."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from tokcli.quantizers import search
from tokcli.quantizers.kmeans import kmeans
from tokcli.quantizers.search import Metric, nearest


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def distances(z: Tensor, codebook: Tensor, metric: Metric) -> Tensor:
    z, codebook = z.double(), codebook.double()
    return 1 - normalize(z, dim=1) @ codebook.T if metric == "cosine" else torch.cdist(z, codebook)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("m, k, d", [(300, 700, 32), (500, 64, 3), (90, 256, 8), (1, 1, 1), (0, 5, 2)])
def test_nearest_equals_a_float64_search(metric: Metric, m: int, k: int, d: int) -> None:
    z, codebook = random(m, d), random(k, d, seed=1)
    codebook = normalize(codebook, dim=1) if metric == "cosine" else codebook
    exact = distances(z, codebook, metric)
    found = nearest(z, codebook, metric)
    assert found.shape == (m,)
    assert (exact.gather(1, found[:, None]).flatten() - exact.min(1).values <= 1e-6).all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("m, k, d", [(300, 5000, 8), (7, 4096, 16), (1, 4100, 3), (0, 4096, 2)])
def test_large_narrow_codebooks_are_searched_by_faiss_with_equal_indices(
    metric: Metric, m: int, k: int, d: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    z, codebook = random(m, d), random(k, d, seed=1)
    codebook = normalize(codebook, dim=1) if metric == "cosine" else codebook
    calls = []
    by_faiss = search._by_faiss
    monkeypatch.setattr(search, "_by_faiss", lambda *args: calls.append(1) or by_faiss(*args))
    found = nearest(z, codebook, metric)
    assert len(calls) == (m > 0)
    exact = distances(z, codebook, metric)
    assert (exact.gather(1, found[:, None]).flatten() - exact.min(1).values <= 1e-6).all()
    monkeypatch.setattr(search, "_faiss", lambda: None)
    own = nearest(z, codebook, metric)
    assert (exact.gather(1, own[:, None]) - exact.gather(1, found[:, None])).abs().le(1e-6).all()
    assert len(calls) == (m > 0)


def test_which_search_is_used_does_not_depend_on_the_batch() -> None:
    z, codebook = random(64, 16), normalize(random(4096, 16, seed=1), dim=1)
    alone = torch.cat([nearest(row, codebook, "cosine") for row in z.split(1)])
    assert torch.equal(alone, nearest(z, codebook, "cosine"))


def test_features_that_are_not_finite_get_an_index_in_range() -> None:
    z = torch.tensor([[float("nan"), 0.0], [float("inf"), 1.0]])
    for k in (10, 4096):
        found = nearest(z, normalize(random(k, 2), dim=1), "cosine")
        assert ((found >= 0) & (found < k)).all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_chunks_do_not_change_the_result(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    z, codebook = random(101, 8), normalize(random(50, 8, seed=1), dim=1)
    whole = nearest(z, codebook, metric)
    monkeypatch.setattr(search, "CPU_BUFFER", 4 * 50 * 7)
    assert torch.equal(nearest(z, codebook, metric), whole)


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that any operation gives."""

    bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_no_distance_matrix_is_ever_made(metric: Metric) -> None:
    z, codebook = random(2500, 20), normalize(random(1000, 20, seed=1), dim=1)  # one would take 10 MB
    with Largest() as largest:
        nearest(z, codebook, metric)
    assert largest.bytes <= search.CPU_BUFFER
    with Largest() as largest:
        run(z, 1000, metric, iterations=2)
    assert 4 * z.numel() <= largest.bytes <= search.CPU_BUFFER


@pytest.mark.parametrize("k", [3, 128, 300])
def test_every_code_is_its_own_nearest(k: int) -> None:
    codebook = normalize(random(k, 6), dim=1)
    for metric in ("cosine", "euclidean"):
        assert nearest(codebook, codebook, metric).tolist() == list(range(k))


def test_padding_of_the_codebook_never_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    last_of_ties = lambda scores: scores.shape[1] - 1 - scores.flip(1).argmax(1)  # noqa: E731
    monkeypatch.setattr(search, "_argmax", last_of_ties)  # as a GPU may choose between code 0 and its copies
    codebook = normalize(random(3, 6), dim=1)
    assert nearest(codebook[:1], codebook, "cosine").tolist() == [0]


def test_euclidean_search_survives_features_far_from_the_origin() -> None:
    z, codebook = random(200, 4), random(300, 4, seed=1)
    assert (nearest(z + 300, codebook + 300, "euclidean") == nearest(z, codebook, "euclidean")).float().mean() > 0.98


def test_search_ignores_autocast_and_reduced_precision() -> None:
    z, codebook = random(400, 32), normalize(random(900, 32, seed=1), dim=1)
    exact = nearest(z, codebook, "cosine")
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(nearest(z, codebook, "cosine"), exact)
    finally:
        torch.set_float32_matmul_precision("highest")


def run(rows: Tensor, k: int, metric: Metric = "euclidean", iterations: int = 10, seed: int = 0) -> Tensor:
    return kmeans(rows, k, metric=metric, iterations=iterations, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_kmeans_puts_codes_on_separated_clusters(metric: Metric) -> None:
    centres = torch.eye(4) if metric == "cosine" else 5 * torch.eye(4)
    rows = centres.repeat(40, 1) + 0.02 * random(160, 4)
    codes = run(rows, 12, metric)
    assert set(distances(codes, centres, metric).argmin(1).tolist()) == {0, 1, 2, 3}
    assert distances(codes, centres, metric).min(1).values.max() < 0.1


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_kmeans_iterations_lower_the_error(metric: Metric) -> None:
    rows = random(500, 4)
    errors = [distances(rows, run(rows, 16, metric, n), metric).min(1).values.mean() for n in (0, 1, 10)]
    assert errors[0] > errors[1] > errors[2]


def test_kmeans_repeats_itself_and_follows_its_seed() -> None:
    rows = random(200, 4)
    assert torch.equal(run(rows, 8), run(rows, 8))
    assert not torch.equal(run(rows, 8), run(rows, 8, seed=1))


def test_spherical_codes_have_unit_length() -> None:
    assert torch.allclose(run(3 * random(200, 4), 8, "cosine").norm(dim=1), torch.ones(8))


def test_kmeans_on_a_batch_of_duplicates_gives_every_distinct_row_a_code() -> None:
    blanks = torch.cat([torch.ones(990, 3), random(10, 3)])
    codes = run(blanks, 11)
    assert {tuple(row) for row in codes.tolist()} == {tuple(row) for row in blanks.tolist()}


@pytest.mark.parametrize("rows", [random(5, 3), torch.zeros(4, 3), torch.ones(1, 3)])
def test_fewer_distinct_rows_than_codes_still_gives_distinct_finite_codes(rows: Tensor) -> None:
    for metric in ("cosine", "euclidean"):
        codes = run(rows, 12, metric)
        assert torch.isfinite(codes).all() and len(codes.unique(dim=0)) == 12


def test_an_empty_cluster_moves_to_the_farthest_row(monkeypatch: pytest.MonkeyPatch) -> None:
    far, unreachable = torch.tensor([[9.0, 0.0]]), torch.tensor([[1e3, 1e3]])
    rows = torch.cat([0.01 * random(400, 2), far])
    monkeypatch.setattr("tokcli.quantizers.kmeans._seeds", lambda *_: torch.cat([torch.zeros(1, 2), unreachable]))
    assert torch.allclose(run(rows, 2, iterations=3)[1], far)


def test_kmeans_without_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        run(torch.zeros(0, 3), 2)
