"""What every pretrained network shares: it is frozen, and its weights come from a file that a source names."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokcli.artifact.weights import load_strict, load_tensors
from tokcli.data.sources.contents import known_sha256
from tokcli.errors import TokError
from tokcli.pretrained.published_weights import Source


def library(name: str) -> Any:
    """A module of timm or open_clip: where it is first imported under the meta device, as dry runs do, torch 2.6 fails in it."""
    with torch.device("cpu"):
        return import_module(name)


class Frozen(nn.Module):
    """A network that never learns: random weights until `load`, always in eval mode.

    Args:
        name: what the user calls it.
        body: the library's module.
    """

    sha256: str | None = None  # of the file the weights came from, or "random"

    def __init__(self, name: str, body: nn.Module) -> None:
        super().__init__()
        self.name, self.body = name, body
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Frozen":
        """Stay in eval mode: dropout and batch statistics of a frozen network never wake up."""
        return super().train(False)

    @classmethod
    def source(cls, name: str) -> Source:
        """Where the weights are found when the user names no file; asked before anything is built."""
        raise NotImplementedError

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of other layouts of the same weights to those of `body`."""
        return state

    def load(self, path: Path, where: str) -> None:
        """Take the weights of a file, strictly.

        Args:
            where: what the weights are for, in messages.

        Raises:
            TokError: unreadable, other names or shapes, or values that are not finite.
        """
        try:
            state = self.convert(load_tensors(path))
        except (KeyError, RuntimeError, ValueError, IndexError) as error:
            raise TokError(
                where,
                f"{path} does not hold the weights of this network",
                why=str(error),
                next="Give the file of this network",
            ) from None
        broken = [name for name, t in state.items() if t.is_floating_point() and not bool(t.isfinite().all())]
        if broken:
            raise TokError(
                where,
                f"{path} holds values that are not finite",
                got=", ".join(broken[:3]),
                next="Download the file again",
            )
        load_strict(self.body, state, f"{where}: {path}")
        self.sha256 = known_sha256(path)
