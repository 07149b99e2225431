"""Precision and recall of generated images (Kynkäänniemi et al. 2019, arXiv 1904.06991), k = 3.

Balls around real images are the real manifold. Precision asks for fakes on it, recall for real images on the fakes'.
Both depend on N, the extractor and k; swapping real and fake swaps them.
"""

from tokcli.metrics.neighbours import K_RECALL, Neighbours


def precision(found: Neighbours) -> float:
    """Share of generated images that lie in some real image's ball, in [0, 1]: fidelity."""
    return float((found.of_fakes[found.ks.index(K_RECALL)] > 0).double().mean())


def recall(found: Neighbours) -> float:
    """Share of real images that lie in some generated image's ball, in [0, 1]: variety."""
    return float((found.of_reals[found.ks.index(K_RECALL)] > 0).double().mean())
