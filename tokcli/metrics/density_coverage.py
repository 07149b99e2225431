"""Density and coverage of generated images (Naeem et al. 2020, arXiv 2002.09797), k = 5.

Against precision and recall they count how many balls hold a fake, and use balls around real images only: one outlier
among the fakes cannot cover the data.
"""

from tokcli.metrics.neighbours import K_COVERAGE, Neighbours


def density(found: Neighbours) -> float:
    """Real balls that hold a generated image, mean over images, over k (equation 4); 1 is as dense, more is possible."""
    return float(found.of_fakes[found.ks.index(K_COVERAGE)].double().mean()) / K_COVERAGE


def coverage(found: Neighbours) -> float:
    """Share of real images whose ball holds a generated image, in [0, 1] (equation 5)."""
    return float(found.hit[found.ks.index(K_COVERAGE)].double().mean())
