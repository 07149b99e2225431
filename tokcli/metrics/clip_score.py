"""CLIP score (Hessel et al. 2021, arXiv 2104.08718): how well generated images fit their captions."""

import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from tokcli.errors import TokError


def clip_score(images: Float[Tensor, "b d"], captions: Float[Tensor, "b e"]) -> Float64[Tensor, " b"]:
    """100 max(cosine, 0) of each image and its caption, in [0, 100]; the paper's own scale is 2.5 max(cosine, 0).

    Args:
        images, captions: embeddings in CLIP's shared space.

    Raises:
        ValueError: embeddings of different width.
        TokError: embeddings that are not finite.
    """
    if images.shape != captions.shape:
        raise ValueError(f"clip score: embeddings differ: {tuple(images.shape)} and {tuple(captions.shape)}")
    if not (images.isfinite().all() and captions.isfinite().all()):
        raise TokError("clip score", "embeddings are not finite", next="Check the weights")
    alike = (F.normalize(images.double(), dim=-1) * F.normalize(captions.double(), dim=-1)).sum(-1)
    return 100 * alike.clamp_min(0)
