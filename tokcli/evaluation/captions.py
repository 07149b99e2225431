"""Samples against the captions they were drawn for, by CLIP's two towers."""

from pathlib import Path

import torch

from tokcli.artifact.opening import Artifact
from tokcli.evaluation.records import Measurement
from tokcli.measure.extractors import BATCH, features
from tokcli.measure.previews import read_samples
from tokcli.metrics import Takes
from tokcli.metrics.reported import Reported, ask
from tokcli.pretrained import build_network
from tokcli.pretrained.text import OpenCLIPText, build_text_tower
from tokcli.progress import passing

CLIP = "clip"
SERVES: tuple[Takes, ...] = ("embeddings",)


class Captions:
    """CLIP's image and text tower.

    Args:
        weights: one file that holds both; None: looked for.
        device: where they run.

    Raises:
        TokError: the weights are not at hand.
    """

    def __init__(self, weights: Path | None, device: torch.device) -> None:
        self.images = build_network(CLIP, weights, role="clip score", weights_flag="--text-weights").to(device)
        tower = build_text_tower(CLIP, weights)
        assert isinstance(tower, OpenCLIPText)
        self.texts, self.device = tower.to(device), device

    def __call__(self, a: Artifact, involved: tuple[str, ...]) -> list[Measurement]:
        """Metrics of embeddings of a samples artifact; none where its images were not drawn for captions."""
        prompts: list[str] = a.recipe.get("sample", {}).get("prompts") or []
        if not prompts:
            return []
        number = a.facts["number"]
        read = (read_samples(a, range(i, min(i + BATCH, number))) for i in range(0, number, BATCH))
        pieces = passing(read, number, unit="image", desc="samples, CLIP", units=len)
        seen = torch.cat(list(features(pieces, self.images.pooled, device=self.device)))
        wanted = self.texts.embed(prompts)[[i % len(prompts) for i in range(number)]]
        return [
            Measurement(Reported(key, CLIP), found.value, number, involved=involved)
            for key, found in ask("embeddings", seen.cpu(), wanted.cpu(), extractor=CLIP)
        ]
