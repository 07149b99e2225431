"""The Python door: `tokcli.load(path)` gives the handle of an artifact's kind.

A handle is one file and one line in HANDLES. Handles compute what the commands compute: equal inputs give equal tokens and pixels.
"""

from pathlib import Path
from typing import Any

import torch

from tokcli.artifact.opening import open_artifact
from tokcli.command.session import device_named
from tokcli.errors import TokError
from tokcli.handles.networks import DecoderHandle, Handle, TokenizerHandle
from tokcli.handles.proposal import ProposalHandle
from tokcli.handles.stored import ReportHandle, SamplesHandle, StatisticsHandle, TokensHandle

__all__ = ["HANDLES", "Handle", "load"]

HANDLES: dict[str, type[Handle]] = {
    "tokenizer": TokenizerHandle,
    "decoder": DecoderHandle,
    "proposal": ProposalHandle,
    "tokens": TokensHandle,
    "samples": SamplesHandle,
    "statistics": StatisticsHandle,
    "report": ReportHandle,
}


def load(path: str | Path, device: str | torch.device = "cpu") -> Any:
    """The handle of an artifact; weights are read, and their hash is checked, when they are first needed.

    Raises:
        TokError: no artifact, one that is unfinished or damaged, or a kind without a handle, or no such device.
    """
    if not isinstance(path, str | Path):
        raise TokError(
            "load",
            "takes the path of an artifact",
            got=type(path).__name__,
            next="Give a folder that a tok command printed",
        )
    where = device_named(str(device), "device")
    artifact = open_artifact(path, "load")
    if artifact.kind not in HANDLES:
        raise TokError(
            str(path),
            f"an artifact of kind {artifact.kind} holds pictures and pages, nothing to compute with",
            next=f"Open {Path(path) / 'index.html'} in a browser",
        )
    return HANDLES[artifact.kind](artifact, where)
