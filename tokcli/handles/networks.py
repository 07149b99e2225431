"""Trained networks from Python: images as a user has them to indices, indices to images, new indices."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor, nn

from tokcli import loading, pictures
from tokcli.artifact.opening import Artifact, check_lineage, locate, open_artifact, scan
from tokcli.command.inputs import DECODING, check_decodes, decoder_among
from tokcli.data.decode import BadImage, decode, pixels_of
from tokcli.data.transforms import Padding, evaluation_transform, unit
from tokcli.device import tensor_cores
from tokcli.errors import TokError
from tokcli.files import from_home
from tokcli.models import Tokenizer

WHERE = "images"
BATCH = 64  # images at a time, as `tok tokenize` takes views
DEEPEST = 8  # sequences of sequences; a list that holds itself has no end
ACCEPTED = "Give paths, PIL images, (b, 3, h, w) tensors or (b, h, w, 3) arrays, of uint8 or of floats from 0 to 1"


def as_squares(images: Any, size: int, padding: Padding | None = None) -> Iterator[UInt8[Tensor, "b 3 s s"]]:
    """Images as `tok tokenize` reads them: short side to `size` (bicubic, antialiased), centre crop; whole with padding.

    They come in batches of at most BATCH, so that a long list or a generator of paths is never in memory as a whole.

    Args:
        images: one image or several: a path; a PIL image; a tensor (3, h, w) or (b, 3, h, w); an array (h, w, 3) or (b, h, w, 3); or
            a sequence of these, of any sizes. Floats must lie in [0, 1] and are rounded to 8 bits, as image files hold them.
        size: of the squares, in pixels.
        padding: what whole pictures are laid on; None: they are cropped.

    Raises:
        TokError: values above 1 in floats, another shape or type, a file that cannot be read, or no image at all.
    """
    transform, unused = evaluation_transform(size, padding), torch.Generator()
    squares = (transform(image, unused) for image in _each(images))
    none = True
    while batch := list(islice(squares, BATCH)):
        none = False
        yield torch.stack(batch)
    if none:
        raise TokError(WHERE, "there are none", next=ACCEPTED)


def _each(images: Any, depth: int = 0) -> Iterator[Tensor]:
    """uint8 (3, h, w) of every image; `depth`: how many sequences it lies in."""
    if isinstance(images, str | Path | Image.Image):
        yield _one(images)
    elif isinstance(images, np.ndarray) and images.dtype.kind in "USO":
        yield from _each(images.ravel().tolist(), depth)
    elif isinstance(images, np.ndarray) and images.dtype.kind in "buif" and images.itemsize <= 8:
        copied = images.astype(images.dtype.newbyteorder("="))  # Pillow's are read-only
        yield from _of_tensor(torch.from_numpy(copied), channels_last=True)
    elif isinstance(images, Tensor) and images.layout is torch.strided and not images.is_meta:
        yield from _of_tensor(images.detach().cpu(), channels_last=False)
    elif isinstance(images, Tensor | np.ndarray):
        kind = f"{images.device} {images.layout}" if isinstance(images, Tensor) else str(images.dtype)
        raise TokError(WHERE, "are of a type that is not read", got=kind, next=ACCEPTED)
    elif isinstance(images, Iterable) and not isinstance(images, bytes):
        if depth == DEEPEST:
            raise TokError(WHERE, f"lie in more than {DEEPEST} sequences, one in another", next=ACCEPTED)
        for one in images:
            yield from _each(one, depth + 1)
    else:
        raise TokError(WHERE, "are of a type that is not read", got=type(images).__name__, next=ACCEPTED)


def _one(image: str | Path | Image.Image) -> Tensor:
    try:
        if isinstance(image, Image.Image):
            return pixels_of(image, "PIL image")
        return decode(from_home(image))
    except BadImage as error:
        raise TokError(error.key, error.why, next="Leave it out, or give another file") from None


def _of_tensor(found: Tensor, channels_last: bool) -> Iterator[Tensor]:
    batch = found[None] if found.dim() == 3 else found
    channels = batch.shape[-1 if channels_last else 1] if batch.dim() == 4 else None
    if channels != 3 or 0 in batch.shape:
        wanted = "(h, w, 3) or (b, h, w, 3)" if channels_last else "(3, h, w) or (b, 3, h, w)"
        raise TokError(WHERE, f"must be {wanted}", got=str(tuple(found.shape)), next=ACCEPTED)
    if batch.is_floating_point():
        batch = batch.float()
        low, high = float(batch.min()), float(batch.max())
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise TokError(
                WHERE, "floats must lie in [0, 1]", got=f"{low:g} to {high:g}", next="Divide them by 255, or give uint8"
            )
        batch = (batch * 255).round().to(torch.uint8)
    elif batch.dtype != torch.uint8:
        raise TokError(
            WHERE, "must be uint8, or floats in [0, 1]", got=str(batch.dtype).removeprefix("torch."), next=ACCEPTED
        )
    yield from batch.permute(0, 3, 1, 2) if channels_last else batch


class Handle:
    """An artifact and the device that its networks run on.

    Attributes:
        artifact: path, id, facts, recipe and inputs of the folder.
    """

    def __init__(self, artifact: Artifact, device: torch.device) -> None:
        self.artifact, self.device = artifact, device

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the artifact says of itself: codebook_size, grid, use_size, classes, ..."""
        return self.artifact.facts

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.artifact.id} at {self.artifact.path}>"


class Decoding(Handle):
    """A handle that turns indices into images: what a tokenizer and its pixel decoder share."""

    @cached_property
    def network(self) -> nn.Module:
        """The network, in eval mode on the device."""
        raise NotImplementedError

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer's network."""
        raise NotImplementedError

    @torch.inference_mode()
    def _pixels(self, decoder: nn.Module, indices: Any) -> UInt8[Tensor, "b 3 s s"]:
        rows = _indices(indices, self.facts["codebook_size"], self.facts["grid"])
        with tensor_cores():
            made = [
                pictures.to_uint8(decoder(self.tokenizer.codes(part.to(self.device)))).cpu()
                for part in rows.split(BATCH)
            ]
        return torch.cat(made)


class TokenizerHandle(Decoding):
    """A trained tokenizer: `encode` images, `decode` indices."""

    @cached_property
    def network(self) -> Tokenizer:
        """The network, in eval mode on the device: an `encoder`, a `quantizer` and what they were trained with."""
        return loading.load_tokenizer(self.artifact, self.device)

    @property
    def tokenizer(self) -> Tokenizer:
        """The same network."""
        return self.network

    @torch.inference_mode()
    def encode(self, images: Any) -> Int64[Tensor, "b n"]:
        """Indices of images in row-major order of the grid, on the CPU: those that `tok tokenize` writes of their centre crops.

        Args:
            images: see `tokcli.handles.networks.as_squares`: paths, PIL images, tensors, arrays, of any sizes.

        Raises:
            TokError: images that are not read, or a tokenizer trained without a quantizer.
        """
        loading.check_discrete(self.artifact)
        squares = as_squares(images, self.facts["use_size"], self.facts.get("padding"))
        with tensor_cores():
            return torch.cat([self.network.encode(unit(batch, self.device)).cpu() for batch in squares])

    def decode(
        self, indices: Any, decoder: "str | Path | DecoderHandle | TokenizerHandle | None" = None
    ) -> UInt8[Tensor, "b 3 s s"]:
        """Images of indices (b, n), (n,) or (b, rows, columns), uint8 on the CPU.

        Args:
            indices: from 0 to codebook_size - 1, of any integer type.
            decoder: a decoder artifact of this tokenizer. None: the one decoder beside it that was trained for it, else its own.

        Raises:
            TokError: indices out of range or of another number; no decoder, several, or one of another tokenizer.
        """
        if isinstance(decoder, DecoderHandle):
            check_lineage(decoder.artifact, "decoder", self.artifact, "tokenizer")
            return self._pixels(decoder.network, indices)
        if isinstance(decoder, TokenizerHandle):
            decoder = decoder.artifact.path
        if not isinstance(decoder, str | Path | None):
            raise TokError(
                "decoder",
                "must be a path or what tokcli.load gives for one",
                got=type(decoder).__name__,
                next="Give decoder=PATH, or leave it out",
            )
        key = None if decoder is None else str(decoder)
        if key not in self._decoders:
            self._decoders[key] = loading.load_decoder(self._decoder(decoder), self.device)
        return self._pixels(self._decoders[key], indices)

    @cached_property
    def _decoders(self) -> dict[str | None, nn.Module]:
        return {}

    def _decoder(self, given: str | Path | None) -> Artifact:
        if given is None:
            return decoder_among(scan(self.artifact.path.parent), self.artifact.id, "decoder")
        chosen = open_artifact(given, "decoder", DECODING)
        check_lineage(chosen, "decoder", self.artifact, "tokenizer")
        check_decodes(chosen, "decoder", given)
        return chosen


class DecoderHandle(Decoding):
    """A trained pixel decoder: `decode` the indices of its tokenizer."""

    @cached_property
    def network(self) -> nn.Module:
        """Codes (b, n, code_dim) to images in [0, 1], in eval mode on the device."""
        return loading.load_decoder(self.artifact, self.device)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The network of the tokenizer that it was trained for, found by its id."""
        made_by = self.artifact.inputs["tokenizer"]
        return loading.load_tokenizer(locate(made_by["id"], made_by["path"], self.artifact.path.parent), self.device)

    def decode(self, indices: Any) -> UInt8[Tensor, "b 3 s s"]:
        """Images of indices (b, n), (n,) or (b, rows, columns), uint8 on the CPU.

        Raises:
            TokError: indices out of range or of another number, or the tokenizer is nowhere to be found.
        """
        return self._pixels(self.network, indices)


def _indices(indices: Any, codebook_size: int, grid: Sequence[int]) -> Int64[Tensor, "b n"]:
    try:
        array = indices.detach().cpu().numpy() if isinstance(indices, Tensor) else np.asarray(indices)
    except (ValueError, TypeError, RuntimeError):
        raise TokError(
            "indices",
            "must be an array of whole numbers",
            got=type(indices).__name__,
            next="Give a tensor, an array or nested lists",
        ) from None
    if array.dtype.kind not in "iu" or array.dtype.hasobject:
        raise TokError("indices", "must be whole numbers", got=str(array.dtype), next="Give what encode returned")
    found = torch.from_numpy(array.astype(np.int64))
    n, shape = grid[0] * grid[1], tuple(found.shape)
    found = found.flatten(1) if shape[1:] == tuple(grid) else found[None] if found.dim() == 1 else found
    if found.dim() != 2 or found.shape[1] != n or not len(found):
        raise TokError(
            "indices",
            f"must be (b, {n}), the {grid[0]}x{grid[1]} tokens of each image",
            got=str(shape),
            next="Give what encode returned, with a leading batch axis",
        )
    if found.min() < 0 or found.max() >= codebook_size:
        span = f"{int(found.min())} to {int(found.max())}"
        raise TokError(
            "indices", f"must be from 0 to {codebook_size - 1}", got=span, next="Give the indices of this tokenizer"
        )
    return found
