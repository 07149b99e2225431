"""Wrong tokens on purpose: some are replaced by near codes, as a proposal network errs (RobusTok, arXiv 2503.08354)."""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from tokcli.device import full_precision
from tokcli.quantizers.quantizer import Quantized, Quantizer
from tokcli.quantizers.search import rows_at_once


@torch.no_grad()
def all_codes(quantizer: Quantizer) -> Float[Tensor, "k d"]:
    """Every code, float32."""
    numbers = torch.arange(quantizer.codebook_size, device=quantizer.initialised.device)
    return quantizer.codes(numbers).float()


@torch.no_grad()
def replaced(
    indices: Int64[Tensor, "b n"],
    codes: Float[Tensor, "k d"],
    *,
    share: float,
    near: int,
    noise: Float[Tensor, "b n 2"] | Float64[Tensor, "b n 2"],
) -> Int64[Tensor, "b n"]:
    """Indices of which about a share is another code, one of the nearest.

    Args:
        indices: in [0, k).
        codes: all that there are, as `all_codes` gives them.
        share: of tokens replaced, in [0, 1].
        near: how many of the nearest other codes a token is replaced by one of, by Euclidean distance; at most k - 1.
        noise: uniform in [0, 1): the first number of a token decides whether, the second by which.
    """
    places = (noise[..., 0] < share).flatten().nonzero()[:, 0]  # the one answer that a GPU is waited for
    if not len(places):
        return indices
    near = min(near, len(codes) - 1)
    mine, which = indices.flatten()[places], (noise[..., 1].flatten()[places] * near).long().clamp(max=near - 1)
    found, rows = torch.empty_like(mine), rows_at_once(codes)
    squares = codes.square().sum(1)
    with full_precision(codes.device):
        for start in range(0, len(mine), rows):
            some = mine[start : start + rows]
            distance = torch.addmm(squares, codes[some], codes.T, alpha=-2)
            distance.scatter_(1, some[:, None], torch.inf)  # itself
            nearest = distance.topk(near, largest=False).indices
            found[start : start + rows] = nearest.gather(1, which[start : start + rows, None])[:, 0]
    return indices.flatten().scatter(0, places, found).view_as(indices)


class Perturber:
    """Replaces tokens during training; gradients pass as if nothing had been replaced.

    Args:
        share: of an image's tokens replaced at the first step.
        end_share: at the last step, linearly in between.
        images: share of images whose tokens are replaced.
        near: see `replaced`.
        steps: of the training.
    """

    def __init__(self, *, share: float, end_share: float, images: float, near: int, steps: int) -> None:
        self.share, self.end_share, self.images, self.near, self.steps = share, end_share, images, near, steps
        self.now = share

    def begin(self, step: int) -> None:
        """Set the share for a step, from 0."""
        self.now = self.share + (self.end_share - self.share) * step / max(1, self.steps - 1)

    def indices(self, indices: Int64[Tensor, "b n"], codes: Float[Tensor, "k d"]) -> Int64[Tensor, "b n"]:
        """Tokens of a batch, some replaced by others of those codes; randomness is torch's, which a training seeds by step."""
        noise = torch.rand(*indices.shape, 2, device=indices.device)
        spared = torch.rand(len(indices), device=indices.device) >= self.images
        noise[spared] = 1.0
        return replaced(indices, codes, share=self.now, near=self.near, noise=noise)

    def __call__(self, quantized: Quantized, quantizer: Quantizer) -> Quantized:
        """What the decoders read: `z_q` of tokens replaced; indices and loss terms stay those of the image."""
        codes, before = all_codes(quantizer), quantized.indices
        moved = codes[self.indices(before, codes)] - codes[before]  # exactly 0 where nothing is replaced
        return quantized._replace(z_q=quantized.z_q + moved)
