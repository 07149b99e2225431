"""Proposal networks from Python: new tokens for classes or captions."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from tokcli.artifact.opening import Artifact
from tokcli.command.options import Options
from tokcli.errors import TokError
from tokcli.handles.networks import Handle
from tokcli.recipe.sample_options import SampleOptions, declared
from tokcli.sampling.generator import Generator
from tokcli.sampling.request import request_of

FILES = ("format", "shard_size", "grid", "neighbours", "margin", "keep_top")  # keys of what the command writes or edits


class ProposalHandle(Handle):
    """A trained proposal network: `sample` draws the tokens that `tok sample` draws."""

    def __init__(self, artifact: Artifact, device: torch.device) -> None:
        super().__init__(artifact, device)
        self._generators: dict[str, Generator] = {}

    def sample(
        self,
        n: int | None = None,
        *,
        classes: Sequence[int | str] | str | None = None,
        prompts: Sequence[str] | None = None,
        seed: int = 0,
        recipe: str | Path | None = None,
        **settings: Any,
    ) -> Int64[Tensor, "n tokens"]:
        """Tokens of `n` images, on the CPU: those of `tok sample -n N --seed SEED` with the same settings.

        An image's tokens are a function of the seed, its number and its class or caption, on a CPU for any batch size.

        Args:
            n: images; None: as many as the recipe says, or one for each of `prompts`.
            classes: names or numbers, drawn in rotation; "data": as often as in the training data; None: all classes in rotation.
            prompts: captions for a text-conditional network; if there are more images, they are repeated in order.
            seed: of all images.
            recipe: file or name of a recipe of stage sample; None: that of the data set that the network was trained on.
            settings: keys of the recipe's section `sample`, such as cfg_scale=1.5, temperature=0.9, steps=12.

        Raises:
            TokError: a class that does not exist, captions for a network that reads none, an unknown key, or a value out of range.
        """
        known = [key for key in declared(SampleOptions) if key not in FILES]
        prompts = [prompts] if isinstance(prompts, str) else prompts
        for what, some in (("classes", classes), ("prompts", prompts)):
            if some is not None and not isinstance(some, Iterable):
                raise TokError(what, "must be a list", got=type(some).__name__, next=f"Give {what}=[...]")
        if classes is not None and not isinstance(classes, str):
            classes = [one.item() if isinstance(one, np.generic) else one for one in classes]
            if not classes:
                raise TokError("classes", "there are none", next="Name some, or leave classes out")
        settings = {key: one.item() if isinstance(one, np.generic) else one for key, one in settings.items()}
        n = n.item() if isinstance(n, np.generic) else n
        seed = seed.item() if isinstance(seed, np.generic) else seed
        unknown = [key for key in settings if key not in known]
        if unknown:
            raise TokError(
                "sample", "has no such setting", got=", ".join(unknown), next=f"Choose of {', '.join(known)}"
            )
        given = {"number": n, "classes": classes, "prompts": list(prompts) if prompts is not None else None, **settings}
        sets: dict[str, Any] = {f"sample.{key}": value for key, value in given.items() if value is not None}
        if prompts is not None and n is None and "sample.per_class" not in sets:
            sets["sample.number"] = len(prompts)
        options = Options(
            workspace=self.artifact.path.parent,
            recipe=None if recipe is None else str(recipe),
            sets={"seed": seed, **sets},
        )
        request = request_of(options, {}, self.artifact, None, None)
        return self._draw(request.recipe, request.settings, request.labels)

    def _draw(self, recipe: Any, settings: Any, labels: Sequence[int]) -> Int64[Tensor, "n tokens"]:
        asked = recipe.sample
        generator = self._generator(asked.precision)
        drawn = []
        for first in range(0, len(labels), asked.batch_size):
            numbers = range(first, min(first + asked.batch_size, len(labels)))
            condition = generator.conditions(numbers, labels, asked.prompts)
            drawn.append(generator.tokens(recipe.seed, numbers, condition, settings).cpu())
        return torch.cat(drawn)

    def _generator(self, precision: Any) -> Generator:
        if precision not in self._generators:
            self._generators[precision] = Generator(
                self.artifact, None, self.device, precision=precision, text_weights=None
            )
        return self._generators[precision]
