"""One evaluation: artifacts measured one after another; networks, sources and references are made once."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Protocol

import torch
from jaxtyping import UInt8
from PIL.Image import Image
from torch import Tensor

from tokcli import loading, pictures
from tokcli.artifact.manifest import canonical_hash
from tokcli.artifact.reading import Artifact, locate
from tokcli.command.options import Options
from tokcli.command.output import reference
from tokcli.data.reading import first_readable
from tokcli.data.sources import ImageSource, evenly, limited, open_source
from tokcli.device import precision
from tokcli.errors import TokError
from tokcli.evaluation import captions, generated, reconstructions, token_numbers
from tokcli.evaluation.aims import Published
from tokcli.evaluation.captions import CLIP, Captions
from tokcli.evaluation.extractors import Extractor, load_extractors
from tokcli.evaluation.generated import judge_samples
from tokcli.evaluation.lineage import ancestry, involved
from tokcli.evaluation.reconstructions import LPIPS, Maps, Reconstructions, judge_decoder, worst_sheet
from tokcli.evaluation.records import Measured, Measurement
from tokcli.evaluation.references import References
from tokcli.evaluation.token_numbers import judge_proposal, judge_tokenizer, judge_understanding
from tokcli.measure.decoding import reconstruct
from tokcli.measure.previews import read_samples
from tokcli.metrics import METRICS
from tokcli.models import TeacherEncoder, Tokenizer
from tokcli.pretrained.teachers import Teacher, build_teacher

log = logging.getLogger("tok")
COLUMNS = 12  # of the contact sheet
LEGIBLE = 60  # characters of captions or classes that are said, and not counted
NOTHING = 236  # grey of a place where there is nothing to show
RESIZE = "short side bicubic, antialiased, centre crop"


class Settings(Protocol):
    """What an evaluation reads of its recipe."""

    extractors: list[str]
    images: int
    lpips: bool
    clip_score: bool
    mask_ratio: float
    bootstrap: int
    manifold: int
    probe_images: int
    worst: int
    published: Published | None


def check_served() -> None:
    """Refuse a registered metric that would never be asked.

    Raises:
        TokError: it takes what no part of the evaluation gives.
    """
    served = [takes for part in (token_numbers, reconstructions, generated, captions) for takes in part.SERVES]
    for key, metric in METRICS.items():
        if metric.takes not in served:
            raise TokError(f"metric '{key}'", "takes what no evaluation gives", got=metric.takes,
                           next=f"Take one of: {', '.join(served)}")  # fmt: skip


def _like(samples: Artifact, names: Sequence[str] | None, number: int) -> list[int | None]:
    """The first sample of each class named, None where there is none; of samples without classes the first `number`."""
    known, labels = samples.facts["classes"], samples.facts["labels"]
    if names is None or not known:
        return [i if i < samples.facts["number"] else None for i in range(number)]
    asked = [known.index(name) if name in known else None for name in names]
    return [labels.index(label) if label in labels else None for label in asked]


def _mode(a: Artifact) -> str | None:
    """`ar` or `nar`, `t2i` of samples that were drawn for captions; None where an artifact has none."""
    return "t2i" if a.recipe.get("sample", {}).get("prompts") else a.facts.get("mode")


def asked_for(sample: Mapping[str, Any]) -> str | None:
    """What samples were asked to show, in words, where it is not each class in turn: others are not comparable."""
    for key, called in (("prompts", "captions"), ("classes", "classes")):
        asked = sample.get(key)
        if isinstance(asked, str):
            return f"{called} as in the {asked}"
        if asked:
            said = ", ".join(map(str, asked))
            many = f"{len(asked):,} {called} ({canonical_hash(asked)[:8]})"
            return f"{called} {said}" if len(said) <= LEGIBLE else many
    return None


class Judge:
    """Measures artifacts of one family after another.

    Args:
        options: weights, labels, workspace.
        settings: section `eval` of the recipe.
        given: the artifacts.
        spec: held-out images.
        references: what samples are compared with.
        device: where networks run.

    Raises:
        TokError: no such data, reference or extractor, or weights found nowhere.
    """

    def __init__(
        self, options: Options, settings: Settings, given: Sequence[Artifact], spec: str, references: Sequence[str],
        device: torch.device,
    ) -> None:  # fmt: skip
        check_served()
        self.options, self.settings, self.spec, self.device = options, settings, spec, device
        self.given = {a.id: a for a in given}
        self._sources: dict[tuple[str, int], ImageSource] = {}
        self.size = given[0].facts["use_size"]
        self.references = References(options, references, settings.manifold, device, held_out=spec)
        self.extractors = load_extractors(settings.extractors, options.weights.get("inception"), device)
        self.references.check(self.extractors, {a.facts["use_size"] for a in given if a.kind == "samples"})
        self.maps = Maps(options.weights.get("vgg"), device) if settings.lpips else None
        self.clip = Captions(options.weights.get("text"), device) if settings.clip_score else None
        self._lineage: dict[str, list[Artifact]] = {}
        self._reconstructions_shown: dict[str, Tensor] = {}
        self._worst: dict[str, Reconstructions] = {}
        self._readable: dict[int, int] = {}  # held-out images that could be read, by size
        self._tokenizer_at_hand: tuple[str, Tokenizer] | None = None

    def source(self, spec: str, size: int) -> ImageSource:
        """Images of a data set at `size` pixels, opened once."""
        if (spec, size) not in self._sources:
            labels = self.options.labels if spec == self.spec else None
            self._sources[spec, size] = open_source(spec, size=size, labels=labels)
        return self._sources[spec, size]

    def held_out(self, size: int) -> ImageSource:
        """The held-out images that are measured on: at most `images` of them."""
        return limited(self.source(self.spec, size), self.settings.images)

    def inputs(self) -> dict[str, dict[str, str]]:
        """The entries of the report's manifest."""
        whole = self.source(self.spec, self.size)
        found = {"data": {"id": whole.id, "path": whole.name}}
        used = {f"weights-{e.name}": e.network.sha256 for e in self.extractors}
        used |= {"weights-lpips": self.maps.network.sha256} if self.maps else {}
        used |= {"weights-clip": self.clip.images.sha256} if self.clip else {}  # of another file it is another report
        found |= {role: {"id": f"weights-{str(sha)[:12]}", "path": role} for role, sha in used.items()}
        found |= {f"reference-{number}": entry for number, entry in enumerate(self.references.inputs(self.size))}
        return found | {f"{a.kind}-{a.id[-6:]}": reference(a) for a in self.given.values()}

    def protocol(self) -> dict[str, Any]:
        """What holds for all numbers, as data."""
        source = self.held_out(self.size)
        held_out = {"id": source.id, "name": source.name, "images": self._readable.get(self.size, len(source))}
        references = [
            {"id": one["id"], "name": one["path"]}
            for role, one in self.inputs().items()
            if role.startswith("reference-")
        ]
        extractors = {e.name: e.describe() for e in self.extractors}
        return {
            "held_out": held_out, "references": references, "resize": RESIZE, "extractors": extractors,
            "mask_ratio": self.settings.mask_ratio, "precision": self._precision(),
        }  # fmt: skip

    def _precision(self) -> dict[str, str]:
        return {"judges": "float32"} | (precision.settings() if self.device.type == "cuda" else {})

    def header(self) -> list[str]:
        """The same in words."""
        found = self.protocol()
        held_out = found["held_out"]
        return [
            f"held-out: {held_out['name']} ({held_out['id']}), {held_out['images']:,} images, {RESIZE}",
            "reference: " + "; ".join(f"{one['name']} ({one['id']})" for one in found["references"]),
            "extractors: " + "; ".join(
                f"{name} ({e['size']} px {e['resize']}, sha256 {str(e['sha256'])[:8]})" for name, e in found["extractors"].items()
            ),
            "precision: " + ", ".join(f"{what} {how}" for what, how in found["precision"].items()),
        ]  # fmt: skip

    def measure(self, a: Artifact) -> Measured:
        """Everything that can be said of one artifact, with what identifies it."""
        log.info("measuring %s", a.path)
        ways: dict[str, Callable[[Artifact], list[Measurement]]] = {
            "tokenizer": self._tokenizer, "decoder": self._decoder, "proposal": self._proposal, "samples": self._samples,
        }  # fmt: skip
        found = ways[a.kind](a)
        if (
            a.kind != "samples" and found and found[0].against and found[0].against.images
        ):  # the first is of held-out images
            self._readable[a.facts["use_size"]] = found[0].against.images
        worst = self._worst[a.id].worst if a.id in self._worst else []
        return Measured(
            a.id, a.kind, a.facts["name"], str(a.path), str(a.input_id("tokenizer")), _mode(a),
            a.facts["use_size"], {role: entry["id"] for role, entry in a.inputs.items()}, a.recipe, found, worst,
        )  # fmt: skip

    def _input(self, a: Artifact, role: str) -> Artifact:
        wanted = str(a.input_id(role))
        if wanted in self.given:
            return self.given[wanted]
        return a if a.id == wanted else locate(wanted, a.inputs[role]["path"], a.path.parent)

    def _roles(self, a: Artifact) -> Callable[[Extractor], tuple[str, ...]]:
        """The roles of an extractor in the training of an artifact and its ancestors."""
        if a.id not in self._lineage:
            self._lineage[a.id] = ancestry(a, self.given.values())
        return lambda extractor: involved(self._lineage[a.id], extractor.asked, extractor.network.sha256)

    def _maps_roles(self, a: Artifact) -> tuple[str, ...]:
        self._roles(a)
        return involved(self._lineage[a.id], LPIPS, self.maps.network.sha256) if self.maps else ()

    def _network(self, a: Artifact) -> Tokenizer:
        """A tokenizer's network, read once for all artifacts in a row that are made from it."""
        if self._tokenizer_at_hand is None or self._tokenizer_at_hand[0] != a.id:
            self._tokenizer_at_hand = None  # the memory of one is enough
            self._tokenizer_at_hand = a.id, loading.load_tokenizer(a, self.device)
        return self._tokenizer_at_hand[1]

    def _tokenizer(self, a: Artifact) -> list[Measurement]:
        network, size = self._network(a), a.facts["use_size"]
        source = self.held_out(size)
        found = judge_tokenizer(network, source, self.device, size=size, teacher=self._teacher(a, network))
        if network.quantizer.discrete and self.settings.probe_images:
            train = self._train_source(a)
            if train is not None:
                most = self.settings.probe_images
                found += judge_understanding(network, train, source, self.device, size=size, most=most)
        return found + (self._decoder(a) if a.facts["has_decoder"] else [])

    def _train_source(self, a: Artifact) -> ImageSource | None:
        """The images that a tokenizer was trained on, where they are still at hand."""
        recorded = a.inputs["data"]["path"]
        try:
            return self.source(recorded, a.facts["use_size"])
        except TokError as error:
            log.warning("no probe of %s: its training images are not at hand: %s", a.id, error)
            return None

    def _teacher(self, a: Artifact, network: Tokenizer) -> Teacher | None:
        """The teacher whose features the tokenizer predicts."""
        if isinstance(network.encoder, TeacherEncoder):
            return network.encoder.teacher
        if network.feature_decoder is None:
            return None
        known = a.recipe["teacher"]
        keys = {k: v for k, v in known.items() if k != "name"}
        try:
            return build_teacher(known["name"], keys, self.options.weights.get("teacher")).to(self.device)
        except TokError as error:
            log.warning("no feature loss: %s", error)
            return None

    def _decoder(self, a: Artifact) -> list[Measurement]:
        size, settings = a.facts["use_size"], self.settings
        tokenizer, source = self._network(self._input(a, "tokenizer")), self.held_out(size)
        self._worst[a.id] = judge_decoder(
            tokenizer, loading.load_decoder(a, self.device), source, self.device, size=size,
            extractors=self.extractors, originals=lambda e: self.references.images(source, e, size), roles=self._roles(a), maps=self.maps,
            maps_roles=self._maps_roles(a), worst=settings.worst,
        )  # fmt: skip
        return self._worst[a.id].measurements

    def _proposal(self, a: Artifact) -> list[Measurement]:
        size = a.facts["use_size"]
        return judge_proposal(
            loading.load_proposal(a, self.device), self._network(self._input(a, "tokenizer")),
            self.held_out(size), self.device, size=size, mask_ratio=self.settings.mask_ratio,
            classes=a.facts["classes"], captions=loading.load_caption_encoder(a, self.options.weights.get("text"), self.device),
        )  # fmt: skip

    def _samples(self, a: Artifact) -> list[Measurement]:
        if a.facts.get("edit"):
            log.warning("%s: edits of a picture are not compared with a data set", a.path)
            return []
        found = judge_samples(
            a, self.extractors, lambda e: self.references.of(e, a.facts["use_size"]), self._roles(a), self.device,
            manifold=self.settings.manifold, bootstrap=self.settings.bootstrap,
        )  # fmt: skip
        if self.clip is not None:
            found += self.clip(a, involved(self._lineage[a.id], CLIP, self.clip.images.sha256))
        by = asked_for(a.recipe.get("sample", {}))
        return [replace(m, by=by, what=replace(m.what, mode=_mode(a))) for m in found]

    # --- pictures ---

    def sheets(self) -> Iterator[tuple[str, Image]]:
        """Files and pictures: a contact sheet of every decoder, its worst reconstructions, and all decoders side by side."""
        for number, (key, found) in enumerate(self._worst.items()):
            suffix = f"-{key}" if number else ""
            yield f"sheet{suffix}.png", self.sheet(self.given[key])
            if found.worst:
                yield f"worst{suffix}.png", worst_sheet(found)
        decoders = [self.given[key] for key in self._worst]
        if len(decoders) > 1 and len({a.facts["use_size"] for a in decoders}) == 1:
            yield "compared.png", self.side_by_side(decoders)

    def sheet(self, decoder: Artifact) -> Image:
        """Rows original, reconstruction, and the samples of its tokenizer among the given artifacts; a column per class."""
        tokenizer_id = decoder.input_id("tokenizer")
        images, names = self._examples(decoder.facts["use_size"])
        rows = {"original": images, "reconstruction": self._reconstructed(decoder, images)}
        for a in self.given.values():
            if a.kind == "samples" and a.input_id("tokenizer") == tokenizer_id and a.input_id("decoder") == decoder.id:
                wanted = _like(a, names, len(images))
                title = f"{a.facts['mode'].upper()} sample"
                title += f" {sum(row.startswith(title) for row in rows) + 1}" if title in rows else ""
                nothing = torch.full_like(images[:1], NOTHING)
                if set(wanted) != {None}:
                    rows[title] = torch.cat([nothing if n is None else read_samples(a, [n]) for n in wanted])
        return pictures.comparison_sheet(rows, column_labels=names)

    def side_by_side(self, decoders: Sequence[Artifact]) -> Image:
        """Rows original and the same images through each tokenizer; the decoders' images have one size."""
        images, names = self._examples(decoders[0].facts["use_size"])
        rows = {"original": images}
        for a in decoders:
            name = a.facts["name"]
            rows[f"{name} {a.id[-6:]}" if name in rows else name] = self._reconstructed(a, images)
        return pictures.comparison_sheet(rows, column_labels=names)

    def _examples(self, size: int) -> tuple[UInt8[Tensor, "c 3 s s"], list[str] | None]:
        """Held-out images to show, one of each class with the classes' names; evenly spread ones where there are no classes."""
        source = self.held_out(size)
        labels = [source.label(i) for i in range(len(source))]
        classes = sorted({label for label in labels if label >= 0})[:COLUMNS]
        of_class: list[Sequence[int]] = [[i for i, label in enumerate(labels) if label == c] for c in classes]
        starts = [*evenly(len(labels), COLUMNS), len(labels)]
        numbers, images = first_readable(source, size, of_class or [range(*two) for two in pairwise(starts)])
        names = [source.classes[source.label(i)] for i in numbers] if classes else None
        return torch.stack(images), names

    def _reconstructed(self, decoder: Artifact, images: UInt8[Tensor, "c 3 s s"]) -> UInt8[Tensor, "c 3 s s"]:
        """What becomes of its `_examples`, for its own sheet and for that of all."""
        if decoder.id not in self._reconstructions_shown:
            tokenizer = self._network(self._input(decoder, "tokenizer"))
            network = loading.load_decoder(decoder, self.device)
            self._reconstructions_shown[decoder.id] = reconstruct(tokenizer, network, images, self.device)
        return self._reconstructions_shown[decoder.id]
