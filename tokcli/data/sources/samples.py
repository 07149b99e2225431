"""What `tok sample` drew, as data: its images alone, under the classes or captions that they were drawn from."""

import json
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from tokcli.artifact.manifest import KINDS, MANIFEST
from tokcli.artifact.opening import open_artifact
from tokcli.data.sources.folder import Folder
from tokcli.data.sources.listing import data_id, refuse_labels
from tokcli.data.sources.tars import Tars
from tokcli.errors import TokError
from tokcli.files import from_home
from tokcli.limits import read_json
from tokcli.recipe import MAX_PIXELS


class Samples:
    """The images of a samples artifact, in their order; contact sheets and other files beside them are none of them.

    Raises:
        TokError: the artifact is of another kind, not complete or damaged, or some of its images are missing.
    """

    max_pixels = MAX_PIXELS

    def __init__(self, path: Path) -> None:
        self.name = str(path.resolve())
        artifact = open_artifact(path, "--data", ["samples"])
        shards = any(path.glob("images-*.tar"))
        self._images = Tars(f"{self.name}/images-*.tar") if shards else Folder(path / "images")
        self.problems = self._images.problems
        self.labels, self.classes = list(artifact.facts["labels"]), list(artifact.facts["classes"])
        if len(self._images) != len(self.labels):
            got = f"{len(self._images)} of {len(self.labels)}"
            raise TokError(
                f"--data {path}", "some of its images are missing", got=got, next="Run tok verify to name them"
            )
        self._prompts = [str(prompt) for prompt in artifact.recipe["sample"].get("prompts") or []]
        said = json.dumps([self.classes, self._prompts])
        self.id = data_id("samples", "1", [artifact.id], artifact.facts["labels"], self._images.id.encode(), said)

    @classmethod
    def claims(cls, spec: str) -> bool:
        """Folders of artifacts, of any kind: a preview or a page's pictures are no data."""
        try:
            manifest = read_json(from_home(spec) / MANIFEST)
        except (OSError, ValueError):
            return False
        return isinstance(manifest, dict) and manifest.get("kind") in KINDS

    @classmethod
    def open(cls, spec: str, *, size: int, labels: Path | None = None) -> "Samples":
        """The images of an artifact; raises TokError as the class does, and with labels."""
        refuse_labels(labels, spec)
        return cls(from_home(spec))

    def __len__(self) -> int:
        return len(self.labels)

    def key(self, i: int) -> str:
        """The file of sample i, or its shard and number."""
        return self._images.key(i)

    def label(self, i: int) -> int:
        """The class that sample i was drawn from, -1 for none."""
        return int(self.labels[i])

    def captions(self, i: int) -> list[str]:
        """The caption that sample i was drawn from, [] for none."""
        return [self._prompts[i % len(self._prompts)]] if self._prompts else []

    def image(self, i: int) -> UInt8[Tensor, "3 h w"]:
        """RGB pixels of sample i; raises BadImage."""
        self._images.max_pixels = self.max_pixels
        return self._images.image(i)

    def encoded(self, i: int) -> tuple[str, bytes]:
        """The extension and the bytes of sample i; raises BadImage."""
        self._images.max_pixels = self.max_pixels
        return self._images.encoded(i)
