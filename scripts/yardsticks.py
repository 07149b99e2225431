"""Held-out cosine feature loss of a tokenizer beside three yardsticks that say how good it is.

    python scripts/yardsticks.py TOKENIZER [WITHOUT_QUANTIZER]

* the mean training feature, the same everywhere: what can be had without looking at the image;
* k-means on the teacher's own training features at equal k: what k codes can hold if the encoder were the teacher;
* the same network without quantizer, trained with `--set 'quantizer={name: none, code_dim: 32}'`: what the codes cost.

Prints one line each. The teacher's features are kept in the cache, where training has left them if its recipe caches features.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

from tokcli import loading
from tokcli.artifact.opening import Artifact, open_artifact
from tokcli.data.randomness import generator
from tokcli.data.sources import open_source, sibling
from tokcli.data.transforms import CenterCrop
from tokcli.device import usual_device
from tokcli.errors import TokError
from tokcli.measure.tokenizing import measure_tokenizer
from tokcli.metrics.feature_prediction import centroid_loss, constant_loss
from tokcli.pretrained.feature_cache import TeacherCache
from tokcli.pretrained.teacher import Teacher, build_teacher
from tokcli.quantizers.kmeans import kmeans

IMAGES = 1000  # of the training set, for k-means


def features_of(
    teacher: Teacher, spec: str, size: int, grid: tuple[int, int], precision: str, most: int
) -> torch.Tensor:
    """The teacher's features of a data set, (images, n, d), unit length."""
    source = open_source(spec, size=size)
    cache = TeacherCache(teacher, source, CenterCrop(size), grid, precision)
    cache.fill(usual_device())
    chosen = torch.linspace(0, len(source) - 1, min(most, len(source))).long()
    return F.normalize(cache.rows(chosen), dim=-1)


def loss_of(artifact: Artifact, teacher: Teacher, spec: str) -> dict[str, float]:
    """The tokenizer's own measurements on held-out images."""
    device, size = torch.device("cpu"), artifact.facts["use_size"]
    tokenizer = loading.load_tokenizer(artifact, device)
    return measure_tokenizer(tokenizer, open_source(spec, size=size), device, size=size, teacher=teacher)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("without", type=Path, nargs="?", help="the same network trained without quantizer")
    args = parser.parse_args()
    artifact = open_artifact(args.tokenizer, "TOKENIZER", ["tokenizer"])
    if not artifact.recipe.get("teacher"):
        raise TokError("TOKENIZER", "learned from no teacher", next="Choose one of method vqkd or cluster")
    known = dict(artifact.recipe["teacher"])
    teacher = build_teacher(known.pop("name"), known)
    train, size = artifact.inputs["data"]["path"], artifact.facts["use_size"]
    val = sibling(train, "val")
    if val is None:
        raise TokError(
            "TOKENIZER",
            f"{train}, which it learnt from, has no held-out part beside it",
            next="Choose a tokenizer of data with a val split",
        )
    grid = tuple(artifact.facts["grid"])
    precision = artifact.recipe["train"]["precision"]
    seen, held_out = (features_of(teacher, spec, size, grid, precision, IMAGES) for spec in (train, val))
    own = loss_of(artifact, teacher, val)
    print(f"tokenizer                 {own['feature_loss']:.4f}")
    for key in ("codebook_usage_nonblank", "codebook_perplexity_nonblank", "tokens_nonblank"):
        if "tokens" in own:  # else it has no codes
            print(f"  {key:<30}" + (f"{own[key]:.3f}" if key in own else "no patch has content"))
    if args.without:
        without = open_artifact(args.without, "WITHOUT_QUANTIZER", ["tokenizer"])
        print(f"without quantizer         {loss_of(without, teacher, val)['feature_loss']:.4f}")
    print(f"mean training feature     {constant_loss(held_out, seen.flatten(0, 1).mean(0)).mean():.4f}")
    if "tokens" not in own:
        return
    k = artifact.facts["codebook_size"]
    centroids = kmeans(seen.flatten(0, 1), k, metric="cosine", iterations=10, generator=generator(0, "yardstick"))
    print(f"k-means of features, k={k}  {centroid_loss(held_out, centroids).mean():.4f}")


if __name__ == "__main__":
    try:
        main()
    except TokError as error:
        sys.exit(str(error))
