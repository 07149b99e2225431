"""tok: image tokenizers trained on the features of image-understanding models."""

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: str | Path, device: str = "cpu") -> Any:
    """What an artifact folder holds, ready to use from Python; see `tokcli.handles` for what each kind offers.

    Args:
        path: an artifact folder, as a command prints it.
        device: where networks run, such as "cuda"; files are read the same on any.

    Raises:
        tokcli.errors.TokError: no artifact, one that is unfinished or damaged, or a kind that is only to be looked at.
    """
    # here, so that `import tokcli` imports no torch; by name, so that who imports tokcli's version does not depend on the handles
    return importlib.import_module("tokcli.handles").load(path, device)
