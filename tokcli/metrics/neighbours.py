"""Which images lie among which: k-nearest-neighbour balls around two sets of features, in float64, a strip at a time.

Precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), k = 3: balls around real images are the real manifold. Precision asks for
fakes on it, recall for real images on the fakes'. Both depend on N, the extractor and k; swapping real and fake swaps them. Density and
coverage (Naeem et al. 2020, arXiv 2002.09797), k = 5, count how many balls hold a fake, and use balls around real images only: one
outlier among the fakes cannot cover the data. All four are read off the same three passes; no n x n matrix is held.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor

from tokcli.errors import TokError
from tokcli.progress import passing

K_RECALL, K_COVERAGE = 3, 5  # neighbours that a ball reaches: Kynkäänniemi et al. 2019; Naeem et al. 2020
STRIP = 1 << 19  # distances held at once: 4 MiB, which the C library keeps instead of returning them to the system


class Neighbours(NamedTuple):
    """Counts from balls of radius "distance to the k-th neighbour in the own set", for k of `ks`, a row each.

    Args:
        ks: the numbers of neighbours.
        of_fakes: for each fake, how many real balls hold it, (len(ks), fakes).
        of_reals: for each real, how many fake balls hold it, (len(ks), reals).
        hit: for each real, whether its own ball holds a fake, (len(ks), reals).
    """

    ks: tuple[int, ...]
    of_fakes: Int64[Tensor, "ks fakes"]
    of_reals: Int64[Tensor, "ks reals"]
    hit: Bool[Tensor, "ks reals"]


def _checked(features: Tensor, name: str, ks: tuple[int, ...]) -> Float64[Tensor, "n d"]:
    if len(features) <= max(ks):
        raise TokError(
            name,
            f"{max(ks)} neighbours need more than {max(ks)} images",
            got=f"{len(features)}",
            next="Use 2,000 or more",
        )
    if not features.isfinite().all():
        raise TokError(name, "features are not finite", next="Look for a broken image or weights of another network")
    return features.to(torch.float64)


class _Distances:
    """Squared distances from strips of rows of `a` to all of `b`, in one buffer that is written over."""

    def __init__(self, a: Float64[Tensor, "n d"], b: Float64[Tensor, "m d"]) -> None:
        self.a, self.b = a, b
        self.squares_a, self.squares_b = a.square().sum(1), b.square().sum(1)
        self.rows = max(1, min(len(a), STRIP // len(b)))
        self.buffer = a.new_empty(self.rows, len(b))
        # what a difference of equal squares may leave behind: equal images must be at distance 0
        self.noise = 8 * torch.finfo(torch.float64).eps * a.shape[1] ** 0.5

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Pairs of (first row, distances (rows, m))."""
        starts = range(0, len(self.a), self.rows)
        for start in passing(starts, len(self.a), unit="image", desc="neighbours", units=lambda _: self.rows):
            part = self.a[start : start + self.rows]
            found = torch.mm(part, self.b.T, out=self.buffer[: len(part)])
            own = self.squares_a[start : start + self.rows, None]
            found.mul_(-2).add_(own).add_(self.squares_b)
            found[found < self.noise * own] = 0
            yield start, found


def radii(features: Shaped[Tensor, "n d"], ks: tuple[int, ...]) -> Float64[Tensor, "ks n"]:
    """Squared distance from each image to its k-th nearest other one, a row for each k.

    Raises:
        TokError: no more images than neighbours, or features that are not finite.
    """
    x = _checked(features, "features", ks)
    x = x - x.mean(0)  # distances stay, and their digits are not spent on the mean
    found = x.new_empty(len(ks), len(x))
    for start, distances in _Distances(x, x):
        rows = torch.arange(len(distances), device=x.device)
        distances[rows, start + rows] = torch.inf  # not its own neighbour
        nearest = distances.topk(max(ks), dim=1, largest=False).values
        found[:, start : start + len(distances)] = nearest[:, [k - 1 for k in ks]].T
    return found


def neighbours(real: Float[Tensor, "n _"], fake: Float[Tensor, "m _"]) -> Neighbours:
    """Who lies in whose ball, between real and generated images; a point on a ball's surface lies in it.

    Args:
        real, fake: features of one extractor.

    Raises:
        TokError: sets of at most `K_COVERAGE` images, of different width, or features that are not finite.
    """
    ks = (K_RECALL, K_COVERAGE)
    a, b = _checked(real, "real images", ks), _checked(fake, "generated images", ks)
    if a.shape[1] != b.shape[1]:
        raise TokError(
            "features",
            "differ in width",
            got=f"{a.shape[1]} and {b.shape[1]}",
            next="Make both with the same extractor",
        )
    centre = a.mean(0)
    a, b = a - centre, b - centre
    of_a, of_b = radii(a, ks), radii(b, ks)
    fakes = torch.zeros(len(ks), len(b), dtype=torch.int64, device=a.device)
    reals = torch.zeros(len(ks), len(a), dtype=torch.int64, device=a.device)
    hit = torch.zeros(len(ks), len(a), dtype=torch.bool, device=a.device)
    for start, distances in _Distances(a, b):
        own = slice(start, start + len(distances))
        for row in range(len(ks)):
            inside = distances <= of_a[row, own, None]
            fakes[row] += inside.sum(0)
            hit[row, own] = inside.any(1)
            reals[row, own] = (distances <= of_b[row]).sum(1)
    return Neighbours(ks, fakes, reals, hit)


def density(found: Neighbours) -> float:
    """Real balls that hold a generated image, mean over images, over k (equation 4); 1 is as dense, more is possible."""
    return float(found.of_fakes[found.ks.index(K_COVERAGE)].double().mean()) / K_COVERAGE


def coverage(found: Neighbours) -> float:
    """Share of real images whose ball holds a generated image, in [0, 1] (equation 5)."""
    return float(found.hit[found.ks.index(K_COVERAGE)].double().mean())


def precision(found: Neighbours) -> float:
    """Share of generated images that lie in some real image's ball, in [0, 1]: fidelity."""
    return float((found.of_fakes[found.ks.index(K_RECALL)] > 0).double().mean())


def recall(found: Neighbours) -> float:
    """Share of real images that lie in some generated image's ball, in [0, 1]: variety."""
    return float((found.of_reals[found.ks.index(K_RECALL)] > 0).double().mean())
