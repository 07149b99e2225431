"""The report's pictures: contact sheets of each decoder and of all of them, and the worst reconstructions."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import UInt8
from PIL.Image import Image
from torch import Tensor

from tokcli import pictures
from tokcli.artifact.opening import Artifact
from tokcli.data.reading import first_readable
from tokcli.data.sources import evenly
from tokcli.evaluation.judge import Judge
from tokcli.evaluation.reconstructions import worst_sheet
from tokcli.measure.previews import read_samples

COLUMNS = 12  # of a contact sheet
NOTHING = 236  # grey of a place where there is nothing to show


def _like(samples: Artifact, names: Sequence[str] | None, number: int) -> list[int | None]:
    """The first sample of each class named, None where there is none; of samples without classes the first `number`."""
    known, labels = samples.facts["classes"], samples.facts["labels"]
    if names is None or not known:
        return [i if i < samples.facts["number"] else None for i in range(number)]
    asked = [known.index(name) if name in known else None for name in names]
    return [labels.index(label) if label in labels else None for label in asked]


def _prompts(samples: Artifact) -> tuple[str, ...]:
    """The captions that samples were drawn for, in order; () where they were not."""
    return tuple(samples.recipe.get("sample", {}).get("prompts") or ())


class Sheets:
    """Pictures of what a judge has measured.

    Args:
        judge: after its measurements.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self._decoded: dict[str, Tensor] = {}

    def __iter__(self) -> Iterator[tuple[str, Image]]:
        """File names and pictures: a contact sheet of every decoder, its worst reconstructions, and all decoders side by side."""
        for number, (key, found) in enumerate(self.judge.reconstructed.items()):
            suffix = f"-{key}" if number else ""
            yield f"sheet{suffix}.png", self._sheet(self.judge.given[key])
            if found.worst:
                yield f"worst{suffix}.png", worst_sheet(found)
        decoders = [self.judge.given[key] for key in self.judge.reconstructed]
        if len(decoders) > 1 and len({(a.facts["use_size"], a.facts.get("padding")) for a in decoders}) == 1:
            yield "compared.png", self._side_by_side(decoders)
        yield from self._captioned()

    def _sheet(self, decoder: Artifact) -> Image:
        """Rows original, reconstruction, and the samples of its tokenizer among the given artifacts; a column per class."""
        tokenizer_id = decoder.input_id("tokenizer")
        images, names = self._examples(decoder)
        rows = {"original": images, "reconstruction": self._reconstructed(decoder, images)}
        for a in self.judge.given.values():
            drawn = a.kind == "samples" and not _prompts(a) and not a.facts.get("edit")
            if drawn and a.input_id("tokenizer") == tokenizer_id and a.input_id("decoder") == decoder.id:
                wanted = _like(a, names, len(images))
                title = f"{a.facts['mode'].upper()} sample"
                title += f" {sum(row.startswith(title) for row in rows) + 1}" if title in rows else ""
                nothing = torch.full_like(images[:1], NOTHING)
                if set(wanted) != {None}:
                    rows[title] = torch.cat([nothing if n is None else read_samples(a, [n]) for n in wanted])
        return pictures.comparison_sheet(rows, column_labels=names)

    def _captioned(self) -> Iterator[tuple[str, Image]]:
        """A sheet for each list of captions and size: a column per caption, a row per samples drawn for them."""
        groups: dict[tuple[tuple[str, ...], Any], list[Artifact]] = {}
        for a in self.judge.given.values():
            if a.kind == "samples" and not a.facts.get("edit") and (prompts := _prompts(a)):
                groups.setdefault((prompts, a.facts["use_size"]), []).append(a)
        for number, ((prompts, _), found) in enumerate(groups.items()):
            columns = min(COLUMNS, len(prompts), *(a.facts["number"] for a in found))
            rows: dict[str, Tensor] = {}
            for a in found:
                title = f"{a.facts['name']} {a.facts['mode'].upper()}"
                rows[f"{title} {a.id[-6:]}" if title in rows else title] = read_samples(a, list(range(columns)))
            suffix = f"-{number}" if number else ""
            yield f"captions{suffix}.png", pictures.comparison_sheet(rows, column_labels=prompts[:columns])

    def _side_by_side(self, decoders: Sequence[Artifact]) -> Image:
        """Rows original and the same images through each tokenizer; the decoders' images have one size."""
        images, names = self._examples(decoders[0])
        rows = {"original": images}
        for a in decoders:
            name = a.facts["name"]
            rows[f"{name} {a.id[-6:]}" if name in rows else name] = self._reconstructed(a, images)
        return pictures.comparison_sheet(rows, column_labels=names)

    def _examples(self, decoder: Artifact) -> tuple[UInt8[Tensor, "c 3 s s"], list[str] | None]:
        """Held-out images to show, one of each class with the classes' names; evenly spread ones where there are no classes."""
        source, size = self.judge.held_out(decoder), decoder.facts["use_size"]
        labels = [source.label(i) for i in range(len(source))]
        classes = sorted({label for label in labels if label >= 0})[:COLUMNS]
        of_class: list[Sequence[int]] = [[i for i, label in enumerate(labels) if label == c] for c in classes]
        starts = [*evenly(len(labels), COLUMNS), len(labels)]
        numbers, images = first_readable(source, size, of_class or [range(*two) for two in pairwise(starts)])
        names = [source.classes[source.label(i)] for i in numbers] if classes else None
        return torch.stack(images), names

    def _reconstructed(self, decoder: Artifact, images: UInt8[Tensor, "c 3 s s"]) -> UInt8[Tensor, "c 3 s s"]:
        """The examples through a decoder, for its own sheet and for that of all."""
        if decoder.id not in self._decoded:
            self._decoded[decoder.id] = self.judge.decode(decoder, images)
        return self._decoded[decoder.id]
