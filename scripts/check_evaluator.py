"""A published set of samples through this evaluator: two `.npz` files of ADM's form in, the numbers of its table out.

    python scripts/check_evaluator.py SAMPLES.npz REFERENCE.npz --inception-weights pt_inception-2015-12-05-6726825d.pth

SAMPLES holds images (arr_0, uint8, n x h x w x 3), REFERENCE also statistics (mu, sigma, mu_s, sigma_s). Of ADM-G with upsampling
(admnet_guided_upsampled_imagenet256.npz against VIRTUAL_imagenet256_labeled.npz) Dhariwal and Nichol, arXiv 2105.05233, publish
FID 3.94, sFID 6.14, IS 215.8, precision 0.83 and recall 0.53. Prints one line each, and how many images stand behind them.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from tokcli.device import usual_device
from tokcli.errors import TokError
from tokcli.evaluation.published import read_images, read_npz
from tokcli.measure.extractors import Extractor, features, load_extractors
from tokcli.metrics.fid import Moments, frechet_distance
from tokcli.metrics.inception_score import inception_score
from tokcli.metrics.neighbours import neighbours, precision, recall


def seen(path: Path, judge: Extractor, device: torch.device) -> tuple[Tensor, Moments, Tensor]:
    """Pooled features (n, 2048), moments of spatial ones, and logits (n, 1008) of a file's images."""
    pooled, spatial, logits = [], Moments(path.name), []
    for found in features(read_images(path), judge, device=device):
        own, places, scores = judge.split(found)
        assert places is not None and scores is not None  # Inception has them
        spatial.update(places)
        pooled.append(own.cpu())
        logits.append(scores.cpu())
    return torch.cat(pooled), spatial, torch.cat(logits)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--inception-weights", type=Path)
    parser.add_argument("--device", default=usual_device().type)
    args = parser.parse_args()
    device = torch.device(args.device)
    (judge,) = load_extractors(["inception"], args.inception_weights, device)
    of_pool, of_places, _ = read_npz(args.reference, str(args.reference))
    fake, places, logits = seen(args.samples, judge, device)
    real, _, _ = seen(args.reference, judge, device)
    pool = Moments(args.samples.name)
    pool.update(fake)
    print(f"images     {len(fake):,} against {len(real):,} and the reference's statistics")
    print(f"FID        {frechet_distance(pool, of_pool):.2f}")
    if of_places is not None:
        print(f"sFID       {frechet_distance(places, of_places):.2f}")
    print(f"IS         {inception_score(logits).mean:.1f}")
    balls = neighbours(real, fake)
    print(f"precision  {precision(balls):.2f}")
    print(f"recall     {recall(balls):.2f}")


if __name__ == "__main__":
    try:
        main()
    except TokError as error:
        sys.exit(str(error))
