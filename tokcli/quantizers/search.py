"""Exact nearest code without a distance matrix: chunks of one matrix product each, and an argmax.

The squared distance |z - e|^2 = |z|^2 - 2 (z.e - |e|^2 / 2) is least where z.e - |e|^2 / 2 is greatest, so a
Euclidean search is a product with a bias, and a cosine search (codes of unit length) the same product without
it. Where faiss is installed (the extra `fast`), large codebooks of narrow codes are searched by it on CPUs.
"""

import functools
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tokcli.device import full_precision

Metric = Literal["cosine", "euclidean"]

# Bytes of scores per chunk. glibc hands blocks over 32 MiB back to the system after every call; a GPU wants
# few large kernels.
CPU_BUFFER = 8 << 20
GPU_BUFFER = 256 << 20
BLOCK = 128  # codes per block of the two-step argmax
# Where faiss is used on CPUs, if it is installed. The choice depends on the codebook alone, so that an image's indices do not
# depend on how many others are in its batch.
FAISS_CODES, FAISS_WIDTH = 4096, 16


@functools.cache
def _faiss() -> Any:
    """The module, or None where it is not installed."""
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def rows_at_once(codebook: Float[Tensor, "k d"]) -> int:
    """For how many features a matrix of scores against all codes is made at a time."""
    return max(1, (GPU_BUFFER if codebook.is_cuda else CPU_BUFFER) // (4 * len(codebook)))


@torch.no_grad()
def nearest(z: Float[Tensor, "m d"], codebook: Float[Tensor, "k d"], metric: Metric) -> Int64[Tensor, " m"]:
    """The index of each row's nearest code.

    Args:
        z: any length; under "cosine" only their direction counts.
        codebook: under "cosine" of unit length.
        metric: "cosine" or "euclidean".

    Returns:
        Values in [0, k), equal to a float64 search except where the two best differ by less than about 1e-6
        of their size.
    """
    z, codebook = z.float(), codebook.float()
    k, bias = len(codebook), None
    if metric == "euclidean":
        centre = codebook.mean(0)  # distances ignore a common shift, rounding errors do not
        z, codebook = z - centre, codebook - centre
    if z.device.type == "cpu" and k >= FAISS_CODES and z.shape[1] <= FAISS_WIDTH and len(z) and _faiss():
        return _by_faiss(z if metric == "euclidean" else torch.nn.functional.normalize(z, dim=1), codebook)
    padding = -k % BLOCK
    if padding:  # by copies of code 0, mapped back below
        codebook = torch.cat([codebook, codebook[:1].expand(padding, -1)])
    if metric == "euclidean":
        bias = codebook.square().sum(1).mul_(-0.5)
    rows = rows_at_once(codebook)
    scores = z.new_empty(min(rows, len(z)), len(codebook))
    indices = torch.empty(len(z), dtype=torch.int64, device=z.device)
    with full_precision(z.device):
        for start in range(0, len(z), rows):
            chunk = z[start : start + rows]
            out = scores[: len(chunk)]
            if bias is None:
                torch.mm(chunk, codebook.T, out=out)
            else:
                torch.addmm(bias, chunk, codebook.T, out=out)
            indices[start : start + rows] = _argmax(out)
    return indices.masked_fill_(indices >= k, 0)


def _by_faiss(z: Float[Tensor, "m d"], codebook: Float[Tensor, "k d"]) -> Int64[Tensor, " m"]:
    """The nearest code by Euclidean distance, which on the unit sphere orders codes as the cosine does.

    faiss has a search of its own for the best one of narrow vectors, which never writes its scores out; not for products.
    """
    faiss = _faiss()
    faiss.omp_set_num_threads(torch.get_num_threads())
    _, found = faiss.knn(z.contiguous().numpy(), codebook.contiguous().numpy(), 1, metric=faiss.METRIC_L2)
    return torch.from_numpy(found[:, 0]).clamp_min(
        0
    )  # -1 for rows that are not finite; the loss stops the run for them


def _argmax(scores: Float[Tensor, "m k"]) -> Int64[Tensor, " m"]:
    """argmax over columns by way of the best block of BLOCK: on CPUs max is vectorised, argmax is not."""
    if scores.is_cuda:
        return scores.argmax(1)
    blocks = scores.unflatten(1, (-1, BLOCK))
    best = blocks.amax(2).argmax(1)
    inside = blocks[torch.arange(len(scores), device=scores.device), best].argmax(1)
    return best * BLOCK + inside
