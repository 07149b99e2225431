"""What repeats a step whose loss or gradient was not finite: a file beside the state before it, which `tok show` prints."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tokcli import distributed
from tokcli.data.randomness import seed_of
from tokcli.files import write_text
from tokcli.training.finite import NonFinite

EVIDENCE = "nonfinite.json"
SHOWN = 8  # gradients that `tok show` prints


def dropout_seed(seed: int, rank: int, step: int) -> int:
    """Of torch's global generator in a step of a rank."""
    return seed_of(seed, "dropout", rank, step)


def write_evidence(folder: Path, found: NonFinite, seed: int, numbers: Tensor) -> None:
    """Write what repeats the step; all ranks call it.

    Args:
        seed: of the recipe.
        numbers: of this rank's samples in the data.
    """
    samples = distributed.all_gather_rows(numbers.cpu().flatten()[:, None])
    if not distributed.is_main():
        return
    world = distributed.world_size()
    facts = {
        "step": found.step + 1,
        "seed": seed,
        "dropout_seeds": [dropout_seed(seed, rank, found.step) for rank in range(world)],
        "samples": [part.tolist() for part in samples[:, 0].view(world, -1)],
        "gradient_norms": {
            name: norm if math.isfinite(norm) else str(norm) for name, norm in (found.norms or {}).items()
        },
    }
    write_text(folder / EVIDENCE, json.dumps(facts, indent=2) + "\n")


def show_evidence(folder: Path) -> list[str]:
    """The file of a folder as lines of text; none where there is none, or none that can be read."""
    try:
        facts = json.loads((folder / EVIDENCE).read_text(encoding="utf-8"))
        norms: Mapping[str, Any] = facts["gradient_norms"]
        worst = sorted(norms, key=lambda name: -abs(norms[name]) if isinstance(norms[name], float) else -math.inf)
        bad = sum(isinstance(norm, str) for norm in norms.values())
        lines = [f"not finite: the loss or a gradient of step {facts['step']}"]
        for rank, (seed, samples) in enumerate(zip(facts["dropout_seeds"], facts["samples"], strict=True)):
            lines.append(f"  rank {rank}: dropout seed {seed}, samples {', '.join(map(str, samples))}")
        lines.append(f"  norms of gradients ({bad} of {len(norms)} not finite):")
        lines += [
            f"    {name:<40}{norms[name] if isinstance(norms[name], str) else f'{norms[name]:.4g}'}"
            for name in worst[:SHOWN]
        ]
        return [*lines, ""]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
