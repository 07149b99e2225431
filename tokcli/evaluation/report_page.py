"""What `report.html` shows beside the numbers: logs, recipes, contact sheets and the worst reconstructions."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from PIL.Image import Image
from torch import Tensor

from tokcli import pictures
from tokcli.artifact.opening import Artifact
from tokcli.data.reading import first_readable
from tokcli.data.sources import evenly
from tokcli.errors import TokError
from tokcli.evaluation.html import Picture, write_report
from tokcli.evaluation.judge import Judge
from tokcli.evaluation.reconstructions import worst_sheet
from tokcli.limits import parse_json
from tokcli.measure.previews import read_samples
from tokcli.recipe.sample_options import charted

SAYS = {
    "sheet": (
        "Originals, reconstructions, samples",
        "held-out images and what became of them; samples stand under the class asked for",
    ),
    "captions": ("Samples by caption", "each sample stands under the caption that it was drawn for"),
    "compared": ("Side by side", "the same held-out images through every tokenizer"),
    "worst": ("Worst reconstructions", "the held-out images that come back worst"),
}


def write_page(folder: Path, report: Mapping[str, Any], given: Sequence[Artifact], sheets: Sequence[str]) -> str:
    """Write `report.html`; returns its name.

    Args:
        folder: the report's, where the sheets are.
        report: what `metrics.json` holds.
        given: the artifacts measured.
        sheets: names of contact sheets in `folder`.
    """
    decoders = [a for a in given if a.kind == "decoder" or a.facts.get("has_decoder")]
    names = [a.facts["name"] for a in decoders]
    drawn_by = {a.id: name if names.count(name) == 1 else a.path.name for a, name in zip(decoders, names, strict=True)}
    shown = []
    for sheet in sheets:
        what, _, key = sheet.removesuffix(".png").partition("-")  # the first decoder's have no key
        title, says = SAYS[what]
        if len(drawn_by) > 1 and what in ("sheet", "worst"):
            title += f": {drawn_by.get(key) or next(iter(drawn_by.values()))}"
        shown.append(Picture(folder / sheet, title, says))
    for a in given:
        with contextlib.suppress(TokError):  # a sheet that was lost or damaged is not shown
            if a.kind == "samples" and "sheet.png" in a.manifest["files"]:
                drawn = a.recipe["sample"]
                how = ", ".join(f"{key} {drawn[key]}" for key in ("number", *charted()) if drawn.get(key) is not None)
                asked = "caption" if drawn.get("prompts") else "class"
                name = f"Samples by {asked}: {a.path.name}"
                shown.append(Picture(a.file("sheet.png"), name, how, folded=True))
    title = f"{given[0].facts['name']}: evaluation on {report['protocol']['held_out']['name']}"
    return write_report(
        folder,
        report,
        logs={a.id: read_log(a) for a in given},
        recipes={a.id: a.recipe for a in given},
        sheets=shown,
        title=title,
    )


MOST_LOG = 64 << 20  # bytes: of 300,000 records


def read_log(a: Artifact) -> list[dict[str, Any]]:
    """The records of an artifact's `log.jsonl`, [] where it has none; lines that are no record are passed over.

    Raises:
        TokError: it is not the one that was written.
    """
    if "log.jsonl" not in a.manifest["files"]:
        return []
    found = []
    with open(a.file("log.jsonl"), "rb") as file:
        lines = file.read(MOST_LOG).splitlines()
    for line in lines:
        with contextlib.suppress(ValueError):
            record = parse_json(line)
            found += [record] if isinstance(record, dict) else []
    return found


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
