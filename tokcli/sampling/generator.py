"""The networks of `tok sample`, loaded once: image numbers to tokens, tokens to pixels; and the contact sheet of what was drawn."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int64, Shaped, UInt8
from PIL.Image import Image
from torch import Tensor, nn

from tokcli import loading, pictures
from tokcli.artifact.opening import Artifact, locate
from tokcli.data.randomness import seed_of
from tokcli.data.sources import evenly
from tokcli.data.transforms import unit
from tokcli.device import tell_if_emulated, tensor_cores
from tokcli.models import Tokenizer
from tokcli.proposals import Proposal, Sampling
from tokcli.proposals.protocol import Precision
from tokcli.sampling.edits import Edit, Window

KEPT = 1000  # captions whose features are kept


def in_window(settings: Sampling, drawn: int, network: Proposal) -> Sampling:
    """The settings for so many tokens: no more steps than tokens."""
    fewer = "steps" in network.sampling_keys and settings.steps > drawn
    return dataclasses.replace(settings, steps=drawn) if fewer else settings


class Generator:
    """A proposal network and a pixel decoder over one tokenizer; without a decoder it draws tokens alone."""

    def __init__(
        self,
        proposal: Artifact,
        decoder: Artifact | None,
        device: torch.device,
        *,
        precision: Precision,
        text_weights: Path | None,
    ) -> None:
        tokenizer = locate(
            str(proposal.input_id("tokenizer")), proposal.inputs["tokenizer"]["path"], proposal.path.parent
        )
        self.proposal: Proposal = loading.load_proposal(proposal, device)
        self.tokenizer: Tokenizer = loading.load_tokenizer(tokenizer, device)
        self.decoder: nn.Module | None = loading.load_decoder(decoder, device) if decoder else None
        self.encode = loading.load_caption_encoder(proposal, text_weights, device)
        self.device = device
        self._captions: dict[str, Tensor] = {}
        self._known: list[tuple[Window, Tensor]] = []
        self.proposal.to_precision(precision)
        if precision == "bfloat16":
            tell_if_emulated("sample.precision", device)

    def conditions(
        self, numbers: range, labels: Sequence[int], prompts: Sequence[str] | None
    ) -> Shaped[Tensor, "b *c"]:
        """What the images of those numbers are to show: their captions, repeated in order, or their classes.

        Args:
            labels: the class of every image, -1 for none.
            prompts: captions, for a text-conditional network.
        """
        if self.encode is None or not prompts:
            return torch.tensor([labels[number] for number in numbers])
        asked = [prompts[number % len(prompts)] for number in numbers]
        if len(self._captions) > KEPT:
            self._captions.clear()
        for caption in asked:
            if caption not in self._captions:  # each alone: a batch would move the last bits of its features
                self._captions[caption] = self.encode([caption])[0]
        return torch.stack([self._captions[caption] for caption in asked])

    @tensor_cores()
    def tokens(
        self,
        seed: int,
        numbers: range,
        condition: Shaped[Tensor, "b *c"],
        settings: Sampling,
        edit: Edit | None = None,
        rows: int = 0,
    ) -> Int64[Tensor, "b n"]:
        """Tokens of the images of those numbers, of all windows of an edit; an image's randomness depends on (seed, its number) alone.

        Args:
            condition: as `conditions` gives it.
            edit: a photo of whose windows some tokens stay.
            rows: fill the batch up to so many by copies that are dropped: a compiler makes programs for a number of rows.
        """
        filled = torch.arange(max(rows, len(numbers))) % len(numbers)
        condition = condition[filled].to(self.device)
        parts = []
        for place, window in enumerate(edit.windows if edit else [None]):
            purpose = ["image"] if place == 0 else ["image", f"window-{place}"]
            seeds = torch.tensor([seed_of(seed, *purpose, number) for number in numbers])[filled].to(self.device)
            known = None if window is None else self.known(window).expand(len(seeds), -1)
            asked = settings if window is None else in_window(settings, int(window.drawn.sum()), self.proposal)
            parts.append(self.proposal.generate(condition, seeds, asked, known)[: len(numbers)])
        return torch.cat(parts, 1)

    @torch.no_grad()
    def known(self, window: Window) -> Int64[Tensor, "1 n"]:
        """The tokens of a window that stay, -1 where one is drawn; encoded once for all batches."""
        for earlier, tokens in self._known:
            if earlier is window:
                return tokens
        indices = self.tokenizer.encode(unit(window.image[None], self.device))
        self._known.append((window, torch.where(window.drawn.to(self.device), -1, indices)))
        return self._known[-1][1]

    @torch.inference_mode()
    @tensor_cores()
    def pixels(self, indices: Int64[Tensor, "b n"]) -> UInt8[Tensor, "b 3 s s"]:
        """Images on the CPU."""
        assert self.decoder is not None
        return pictures.to_uint8(self.decoder(self.tokenizer.codes(indices))).cpu()


COLUMNS, ROWS = 10, 24  # of a sheet that nobody asked to be otherwise
UNCLASSED = 6  # rows, where there are no classes
GREY = 128  # of pixels that are to be drawn anew


def layout(grid: str | None) -> tuple[int, int]:
    """Rows and columns of `10x8`, or the default."""
    if grid is None:
        return ROWS, COLUMNS
    rows, columns = grid.split("x")
    return int(rows), int(columns)


def shown_on_sheet(labels: Sequence[int], grid: str | None) -> list[int]:
    """The numbers of the images that a sheet shows: the first few of each class, or of all where there are no classes.

    Of more classes than rows as many are taken, evenly spread.
    """
    rows, columns = layout(grid)
    present = sorted(set(labels))
    if len(present) > rows:
        present = [present[i] for i in evenly(len(present), rows)]
    left = {label: columns if label >= 0 else columns * (rows if grid else UNCLASSED) for label in present}
    numbers = []
    for number, label in enumerate(labels):
        if left.get(label, 0):
            left[label] -= 1
            numbers.append(number)
    return numbers


def sheet_of(
    images: UInt8[Tensor, "m 3 s s"], labels: Sequence[int], names: Sequence[str], grid: str | None, edit: Edit | None
) -> Image:
    """The sheet of the images that `shown` chose.

    Args:
        labels: their classes, -1 for none.
        names: of the classes.
        edit: the picture that they are edits of.
    """
    rows, columns = layout(grid)
    if edit is None and any(label >= 0 for label in labels):
        return pictures.class_sheet(images, torch.tensor(labels), names, per_class=columns, most_classes=rows)
    lines = list(images.split(columns))
    if edit is None:
        return pictures.contact_sheet(lines)
    captions = ["edits", *[""] * (len(lines) - 1)]
    if any(label >= 0 for label in labels):
        present, of = sorted(set(labels))[:rows], torch.tensor(labels)
        lines = [images[of == label][:columns] for label in present]
        captions = [f"edits: {names[label]}" for label in present]
    gone = torch.where(edit.anew, GREY, edit.image)
    above = ["original; grey is drawn anew"]
    originals = torch.stack([edit.small(edit.image), edit.small(gone)])
    return pictures.contact_sheet([originals, *lines], row_labels=above + captions)
