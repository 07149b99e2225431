"""One evaluation: artifacts measured one after another; networks, sources and references are made once."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from tokcli import loading
from tokcli.artifact.opening import Artifact, locate
from tokcli.command.data import recorded_data
from tokcli.command.options import Options
from tokcli.command.plan import UNKNOWN
from tokcli.command.session import reference
from tokcli.data.sources import ImageSource, limited, open_source, padded
from tokcli.data.sources.contents import known_sha256
from tokcli.data.transforms import Padding
from tokcli.device import float32_settings
from tokcli.errors import TokError
from tokcli.evaluation import captions, generated, reconstructions, token_numbers
from tokcli.evaluation.aims import Published
from tokcli.evaluation.captions import CLIP, Captions
from tokcli.evaluation.generated import HeldOut, asked_for, judge_samples, mode_of
from tokcli.evaluation.lineage import ancestry, involved, teacher_of
from tokcli.evaluation.reconstructions import LPIPS, Maps, Reconstructions, judge_decoder
from tokcli.evaluation.records import Measured, Measurement
from tokcli.evaluation.references import RESIZED, References
from tokcli.evaluation.token_numbers import judge_proposal, judge_tokenizer, judge_understanding
from tokcli.measure.decoding import reconstruct
from tokcli.measure.extractors import PROTOCOLS, Extractor, load_extractors
from tokcli.metrics import METRICS
from tokcli.models import Tokenizer
from tokcli.recipe.sections import Perturbed

log = logging.getLogger("tok")
RESIZE = "short side bicubic, antialiased, centre crop"


class Settings(Protocol):
    """What an evaluation reads of its recipe."""

    extractors: list[str]
    images: int
    lpips: bool
    clip_score: bool
    mask_ratio: float
    bootstrap: int
    max_pixels: int
    manifold: int
    probe_images: int
    worst: int
    perturb: Perturbed | None
    published: Published | None


def check_served() -> None:
    """Refuse a registered metric that would never be asked.

    Raises:
        TokError: it takes what no part of the evaluation gives.
    """
    served = [takes for part in (token_numbers, reconstructions, generated, captions) for takes in part.SERVES]
    for key, metric in METRICS.items():
        if metric.takes not in served:
            raise TokError(
                f"metric '{key}'",
                "takes what no evaluation gives",
                got=metric.takes,
                next=f"Take one of: {', '.join(served)}",
            )


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
        self,
        options: Options,
        settings: Settings,
        given: Sequence[Artifact],
        spec: str,
        references: Sequence[str],
        device: torch.device,
    ) -> None:
        check_served()
        self.options, self.settings, self.spec, self.device = options, settings, spec, device
        self.given = {a.id: a for a in given}
        self._sources: dict[tuple[str, int], ImageSource] = {}
        self.first, self.size = given[0], given[0].facts["use_size"]
        self.references = References(
            options, references, settings.manifold, device, held_out=spec, max_pixels=settings.max_pixels
        )
        self.extractors = load_extractors(settings.extractors, options.weights.get("inception"), device)
        self.references.check(
            self.extractors, {(a.facts["use_size"], a.facts.get("padding")) for a in given if a.kind == "samples"}
        )
        self.maps = Maps(options.weights.get("vgg"), device) if settings.lpips else None
        self.clip = Captions(options.weights.get("text"), device) if settings.clip_score else None
        self._lineage: dict[str, list[Artifact]] = {}
        self._trains: dict[str, ImageSource | None] = {}  # by tokenizer
        self.reconstructed: dict[str, Reconstructions] = {}  # by the id of the decoder, in the order measured
        self._readable: dict[int, int] = {}  # held-out images that could be read, by size
        self._tokenizer_at_hand: tuple[str, Tokenizer] | None = None

    def source(self, spec: str, size: int, padding: Padding | None) -> ImageSource:
        """Images of a data set at `size` pixels, opened once; whole on a square where the tokenizer reads them so."""
        if (spec, size) not in self._sources:
            labels = self.options.labels if spec == self.spec else None
            self._sources[spec, size] = open_source(spec, size=size, labels=labels, max_pixels=self.settings.max_pixels)
        return padded(self._sources[spec, size], size, padding)

    def held_out(self, a: Artifact) -> ImageSource:
        """The held-out images that an artifact is measured on, at its size: at most `images` of them."""
        square = a.facts["use_size"], a.facts.get("padding")
        return limited(self.source(self.spec, *square), self.settings.images)

    def inputs(self) -> dict[str, dict[str, str]]:
        """The entries of the report's manifest."""
        whole = self.held_out(self.first)
        found = {"data": {"id": whole.id, "path": whole.name}}
        used = {f"weights-{e.name}": e.network.sha256 for e in self.extractors}
        used |= {"weights-lpips": self.maps.network.sha256} if self.maps else {}
        used |= {"weights-clip": self.clip.images.sha256} if self.clip else {}
        teachers = {key: file for key, file in self.options.weights.items() if key.startswith("teacher")}
        used |= {f"weights-{key}": known_sha256(file) for key, file in teachers.items()}
        # with other weights it is another report
        found |= {role: {"id": f"weights-{str(sha)[:12]}", "path": role} for role, sha in used.items()}
        for a in self.given.values():
            train = self._train_source(a) if a.kind == "tokenizer" and self.settings.probe_images else None
            found |= {f"train-{a.id[-6:]}": {"id": train.id, "path": train.name}} if train else {}
        found |= {f"reference-{number}": entry for number, entry in enumerate(self.references.inputs(self.size))}
        return found | {f"{a.kind}-{a.id[-6:]}": reference(a) for a in self.given.values()}

    def protocol(self) -> dict[str, Any]:
        """What holds for all numbers, as data."""
        source = self.held_out(self.first)
        held_out = {"id": source.id, "name": source.name, "images": self._readable.get(self.size, len(source))}
        references = [
            {"id": one["id"], "name": one["path"]}
            for role, one in self.inputs().items()
            if role.startswith("reference-")
        ]
        extractors = {e.name: e.describe() for e in self.extractors}
        return {
            "held_out": held_out,
            "references": references,
            "resize": self._resize(),
            "extractors": extractors,
            "mask_ratio": self.settings.mask_ratio,
            "precision": self._precision(),
        }

    def _resize(self) -> str:
        padding = self.first.facts.get("padding")
        return RESIZED[padding] + ", antialiased" if padding else RESIZE

    def _precision(self) -> dict[str, str]:
        return {"judges": "float32"} | (float32_settings() if self.device.type == "cuda" else {})

    def header(self) -> list[str]:
        """The same in words."""
        found = self.protocol()
        held_out = found["held_out"]
        return [
            f"held-out: {held_out['name']} ({held_out['id']}), {held_out['images']:,} images, {self._resize()}",
            "reference: " + "; ".join(f"{one['name']} ({one['id']})" for one in found["references"]),
            "extractors: "
            + "; ".join(
                f"{name} ({e['size']} px {e['resize']}, sha256 {str(e['sha256'])[:8]})"
                for name, e in found["extractors"].items()
            ),
            "precision: " + ", ".join(f"{what} {how}" for what, how in found["precision"].items()),
        ]

    def measure(self, a: Artifact) -> Measured:
        """Everything that can be said of one artifact, with what identifies it."""
        log.info("measuring %s", a.path)
        ways: dict[str, Callable[[Artifact], list[Measurement]]] = {
            "tokenizer": self._tokenizer,
            "decoder": self._decoder,
            "proposal": self._proposal,
            "samples": self._samples,
        }
        found = ways[a.kind](a)
        if (
            a.kind != "samples" and found and found[0].against and found[0].against.images
        ):  # the first is of held-out images
            self._readable[a.facts["use_size"]] = found[0].against.images
        worst = self.reconstructed[a.id].worst if a.id in self.reconstructed else []
        return Measured(
            a.id,
            a.kind,
            a.facts["name"],
            str(a.path),
            str(a.input_id("tokenizer")),
            mode_of(a),
            a.facts["use_size"],
            {role: entry["id"] for role, entry in a.inputs.items()},
            a.recipe,
            found,
            worst,
        )

    def _tokenizer_of(self, a: Artifact) -> Artifact:
        wanted = str(a.input_id("tokenizer"))
        if wanted in self.given:
            return self.given[wanted]
        return a if a.id == wanted else locate(wanted, a.inputs["tokenizer"]["path"], a.path.parent)

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

    def _pixels(self, a: Artifact) -> nn.Module:
        """A pixel decoder's network; that of a tokenizer is read with it."""
        if a.kind == "tokenizer":
            return loading.own_decoder(self._network(a), a)
        return loading.load_decoder(a, self.device)

    def _tokenizer(self, a: Artifact) -> list[Measurement]:
        network, size = self._network(a), a.facts["use_size"]
        source = self.held_out(a)
        found = judge_tokenizer(
            network, source, self.device, size=size, teacher=teacher_of(a, network, self.options.weights, self.device)
        )
        if network.quantizer.discrete and self.settings.probe_images:
            train = self._train_source(a)
            if train is not None:
                most = self.settings.probe_images
                found += judge_understanding(network, train, source, self.device, size=size, most=most)
        return found + (self._decoder(a) if a.facts["has_decoder"] else [])

    def _train_source(self, a: Artifact) -> ImageSource | None:
        """The images that a tokenizer was trained on, where they are still at hand, opened once."""
        if a.id not in self._trains:
            recorded, self._trains[a.id] = a.inputs["data"], None
            try:
                found = self.source(recorded_data(a), a.facts["use_size"], a.facts.get("padding"))
            except TokError as error:
                log.warning("no probe of %s: its training images are not at hand: %s", a.id, error)
                return None
            if self._sources[recorded["path"], a.facts["use_size"]].id != recorded["id"] != UNKNOWN:
                log.warning("probe of %s: %s holds other images than it was trained on", a.id, recorded["path"])
            self._trains[a.id] = found
        return self._trains[a.id]

    def _decoder(self, a: Artifact) -> list[Measurement]:
        size, settings = a.facts["use_size"], self.settings
        tokenizer, source = self._network(self._tokenizer_of(a)), self.held_out(a)
        self.reconstructed[a.id] = judge_decoder(
            tokenizer,
            self._pixels(a),
            source,
            self.device,
            size=size,
            extractors=self.extractors,
            originals=lambda e: self.references.images(source, e, size),
            roles=self._roles(a),
            maps=self.maps,
            maps_roles=self._maps_roles(a),
            worst=settings.worst,
            perturb=settings.perturb,
        )
        return self.reconstructed[a.id].measurements

    def _proposal(self, a: Artifact) -> list[Measurement]:
        size = a.facts["use_size"]
        return judge_proposal(
            loading.load_proposal(a, self.device),
            self._network(self._tokenizer_of(a)),
            self.held_out(a),
            self.device,
            size=size,
            mask_ratio=self.settings.mask_ratio,
            classes=a.facts["classes"],
            captions=loading.load_caption_encoder(a, self.options.weights.get("text"), self.device),
        )

    def _samples(self, a: Artifact) -> list[Measurement]:
        if a.facts.get("edit"):
            log.warning("%s: edits of a picture are not compared with a data set", a.path)
            return []
        size, held_out = a.facts["use_size"], self.held_out(a)
        found = judge_samples(
            a,
            self.extractors,
            lambda e: self.references.of(e, size, a.facts.get("padding")),
            self._roles(a),
            self.device,
            held_out=HeldOut(held_out.id, lambda e: self.references.images(held_out, e, size)),
            protocols=[name for name in self.settings.extractors if name in PROTOCOLS],
            manifold=self.settings.manifold,
            bootstrap=self.settings.bootstrap,
        )
        if self.clip is not None:
            found += self.clip(a, involved(self._lineage[a.id], CLIP, self.clip.images.sha256))
        by = asked_for(a.recipe.get("sample", {}))
        both = lambda m: "; ".join(filter(None, (m.by, by))) or None  # noqa: E731
        return [replace(m, by=both(m), what=replace(m.what, mode=mode_of(a))) for m in found]

    def decode(self, decoder: Artifact, images: UInt8[Tensor, "b 3 s s"]) -> UInt8[Tensor, "b 3 s s"]:
        """Images through a decoder's tokenizer and back."""
        tokenizer = self._network(self._tokenizer_of(decoder))
        return reconstruct(tokenizer, self._pixels(decoder), images, self.device)
