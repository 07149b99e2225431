"""Reference statistics: artifacts made once from images or a published `.npz`, then used by every evaluation."""

import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokcli.artifact.manifest import MANIFEST, RESTORE
from tokcli.artifact.opening import Artifact, open_artifact
from tokcli.artifact.weights import load_tensors, save_tensors
from tokcli.command.options import Options
from tokcli.command.session import begin, reference
from tokcli.data.reading import read_batches
from tokcli.data.sources import ImageSource, open_source, padded, padding_of
from tokcli.data.sources.contents import known_sha256
from tokcli.data.transforms import Padding, evaluation_transform
from tokcli.errors import TokError
from tokcli.evaluation.published import read_images, read_npz
from tokcli.evaluation.records import Against
from tokcli.files import from_home
from tokcli.measure.extractors import Extractor, Seen, chosen, look
from tokcli.metrics.fid import Gaussian
from tokcli.progress import passing
from tokcli.recipe import MAX_PIXELS

log = logging.getLogger("tok")
DINOV2_BEFORE = 518  # pixels at which statistics that do not say so saw images
PUBLISHED = "as published"
RESIZED: dict[Padding | None, str] = {
    None: "short side bicubic, centre crop",
    "white": "long side bicubic, on white",
    "edge": "long side bicubic, on the edge's colour",
}
STATISTICS, FEATURES = "statistics.safetensors", "features.safetensors"


class Reference(NamedTuple):
    """One extractor's view of the images that samples are compared with."""

    against: Against
    gaussian: Gaussian
    spatial: Gaussian | None
    features: Tensor | None  # float32 (m, d) of at most `eval.manifold` images
    artifact: str  # id of the statistics


class References:
    """What `--reference` named, as statistics by extractor and size; made when first asked for.

    Args:
        options: where statistics are written, and which device.
        specs: data sets, folders, shards, `.npz` files, or statistics artifacts.
        manifold: images at most whose features are stored.
        device: where extractors run.
        held_out: the one of them that is the data measured on.
        max_pixels: see `open_source`.

    Raises:
        TokError: nothing there, or an artifact that holds no statistics.
    """

    def __init__(
        self,
        options: Options,
        specs: Sequence[str],
        manifold: int,
        device: torch.device,
        *,
        held_out: str | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.max_pixels = max_pixels
        self.options, self.manifold, self.device, self.held_out = options, manifold, device, held_out
        self.specs = list({Path(s).resolve() if Path(s).exists() else s: s for s in specs}.values())
        self.given = {s: open_artifact(s, "--reference", ["statistics"]) for s in self.specs if is_artifact(s)}
        self._sources: dict[tuple[str, int], ImageSource] = {}
        self._made: dict[tuple[str, str, int, Padding | None], Reference | None] = {}

    def check(self, extractors: Sequence[Extractor], squares: Collection[tuple[int, Padding | None]]) -> None:
        """Refuse, before anything is measured, what samples of these sizes in pixels, and paddings, could not be compared with.

        Raises:
            TokError: statistics of another extractor, size or weights, or a `.npz` that is damaged or of no extractor here.
        """
        self.check_published([e.asked for e in extractors])
        names = f"eval.extractors: {', '.join(e.asked for e in extractors) or 'none'}"
        for spec in self.specs:
            where = f"--reference {spec}"
            if spec in self.given:
                theirs = self.given[spec].facts["extractor"]
                asked = "inception" if theirs.startswith("inception-") else theirs
                if all(e.name != theirs for e in extractors):
                    raise TokError(
                        where,
                        f"is of {theirs}, which is no extractor of this recipe",
                        got=names,
                        next=f"Add it: --set 'eval.extractors=[{asked}]', or name images",
                    )
                for square in squares:
                    for e in extractors:
                        self._one(spec, e, *square)  # reads them, hashes checked

    def check_published(self, asked: Sequence[str]) -> None:
        """Refuse a `.npz` that is damaged, or where Inception is not among the extractors asked for.

        Raises:
            TokError: so it is.
        """
        for spec in filter(is_npz, self.specs):
            where = f"--reference {spec}"
            if "inception" not in asked:
                raise TokError(
                    where,
                    "holds features of Inception, which is no extractor of this recipe",
                    got=f"eval.extractors: {', '.join(asked) or 'none'}",
                    next="Add it: --set 'eval.extractors=[inception]', or name images",
                )
            read_npz(_file(spec), where)

    def inputs(self, size: int) -> list[dict[str, str]]:
        """An entry of the report's manifest for each."""
        entries = []
        for spec in self.specs:
            if spec in self.given:
                entries.append(reference(self.given[spec]))
            elif is_npz(spec):
                entries.append({"id": f"data-{known_sha256(_file(spec))[:12]}", "path": str(Path(spec).resolve())})
            else:
                source = self._source(spec, size)
                entries.append({"id": source.id, "path": source.name})
        return entries

    def of(self, extractor: Extractor, size: int, padding: Padding | None = None) -> list[Reference]:
        """The references that this extractor has, in the order named; images are read at `size` pixels, whole with padding."""
        found = [self._one(spec, extractor, size, padding) for spec in self.specs]
        return [one for one in found if one is not None]

    def looked_at(self, spec: str, size: int) -> int:
        """How many images of a reference extractors look at: none where statistics are given."""
        return 0 if spec in self.given or is_npz(spec) else len(self._source(spec, size))

    def _source(self, spec: str, size: int) -> ImageSource:
        if (spec, size) not in self._sources:
            labels = self.options.labels if spec == self.held_out else None  # which also choose the images
            try:
                self._sources[spec, size] = open_source(spec, size=size, labels=labels, max_pixels=self.max_pixels)
            except TokError as error:  # which calls it --data
                if spec == self.held_out or not error.where.startswith("--data"):
                    raise
                raise type(error)(
                    f"--reference {spec}", error.what, why=error.why, got=error.got, next=error.next
                ) from None
        return self._sources[spec, size]

    def _one(self, spec: str, extractor: Extractor, size: int, padding: Padding | None) -> Reference | None:
        key = (spec, extractor.name, size, padding)
        if key not in self._made:
            if spec in self.given:
                self._made[key] = self._fitting(spec, extractor, size, padding)
            elif is_npz(spec):
                self._made[key] = self._published(spec, extractor)
            else:
                self._made[key] = self.images(padded(self._source(spec, size), size, padding), extractor, size)
        return self._made[key]

    def _fitting(self, spec: str, extractor: Extractor, size: int, padding: Padding | None) -> Reference | None:
        facts = self.given[spec].facts
        if facts["extractor"] != extractor.name:
            return None  # statistics of another extractor, beside which this one has its own or none
        pixels = extractor.network.extractor_size
        before = DINOV2_BEFORE if "dinov2" in extractor.name else pixels  # of artifacts that do not say
        known = {"extractor_size": before, **facts}
        for fact, wanted in (
            ("extractor_sha256", extractor.network.sha256),
            ("extractor_size", pixels),
            ("size", size),
            *([("resize", RESIZED[padding])] if facts["resize"] != PUBLISHED else []),
        ):
            if known[fact] not in (wanted, None):
                raise TokError(
                    f"--reference {spec}",
                    f"its {fact.replace('_', ' ')} must be {wanted}",
                    got=str(known[fact]),
                    next="Name the images: --reference DATA",
                )
        return read_statistics(self.given[spec])

    def images(self, source: ImageSource, extractor: Extractor, size: int) -> Reference:
        """The statistics of a source, made now where nobody has made them yet.

        Raises:
            TokError: fewer than 2 readable images, or features that are not finite.
        """
        describes = {
            **_recipe(extractor, self.manifold),
            "size": size,
            "resize": RESIZED[padding_of(source)],
            **({"max_pixels": self.max_pixels} if self.max_pixels != MAX_PIXELS else {}),
            "of": len(source),  # a part of a data set has the id of the whole
            **({"kept": "at random"} if len(source) > self.manifold else {}),
        }
        draft = self._begin(source.name, describes, {"id": source.id, "path": source.name}, extractor)
        if isinstance(draft, Artifact):
            return read_statistics(draft)
        batches = (x for _, x in read_batches(source, evaluation_transform(size), desc=f"reference, {extractor.name}"))
        keep = chosen(len(source), self.manifold)
        seen = look(batches, Seen(extractor, f"--reference {source.name}", keep), self.device)
        state = _state(seen.moments.gaussian(), seen.spatial.gaussian() if seen.spatial else None)
        return read_statistics(_finish(draft, state, seen.features, describes, source.name, seen.moments.count))

    def _published(self, spec: str, extractor: Extractor) -> Reference | None:
        """pytorch-fid's or ADM's file, which is of Inception's features."""
        if extractor.asked != "inception":
            return None
        if extractor.name != "inception":
            log.warning("--reference %s: made with pytorch-fid's weights, not with those of %s", spec, extractor.name)
        path = _file(spec)
        describes = {**_recipe(extractor, self.manifold), "size": None, "resize": PUBLISHED}
        name = path.stem
        draft = self._begin(name, describes, {"id": f"data-{known_sha256(path)[:12]}", "path": str(path)}, extractor)
        if isinstance(draft, Artifact):
            return read_statistics(draft)
        pooled, spatial, count = read_npz(path, f"--reference {spec}")
        kept = torch.zeros(0, len(pooled.mean))
        if count is not None:  # the images stand beside their statistics: precision and recall need their features
            published = passing(read_images(path), count, unit="image", desc=f"reference, {extractor.name}", units=len)
            kept = look(published, Seen(extractor, spec, chosen(count, self.manifold)), self.device).features
        return read_statistics(_finish(draft, _state(pooled, spatial), kept, describes, name, None))

    def _begin(self, name: str, describes: dict[str, Any], data: dict[str, str], extractor: Extractor) -> Any:
        short = re.sub(r"[^\w.-]+", "-", f"{_short(name)}-{extractor.name}")
        recipe = {"stage": "statistics", "statistics": describes}
        log.info("reference %s: statistics of %s", name, extractor.name)
        options = replace(self.options, out=None)
        return begin(options, "statistics", short, recipe, {"data": data}, self.device, wait=True)


def is_artifact(spec: str) -> bool:
    """Whether `--reference` names an artifact."""
    return (Path(spec) / MANIFEST).is_file()


def is_npz(spec: str) -> bool:
    """Whether `--reference` names a file of published statistics."""
    return spec.endswith(".npz")


def _file(spec: str) -> Path:
    path = from_home(spec).resolve()
    if not path.is_file():
        raise TokError(f"--reference {spec}", "no such file", next="Give a .npz of statistics or images, or a data set")
    return path


def _short(name: str) -> str:
    """The end of a path: `openmoji/val` and `/data/photos/val` are `openmoji-val` and `photos-val`."""
    return "-".join(Path(name).parts[-2:]).strip("-/")


def _recipe(extractor: Extractor, manifold: int) -> dict[str, Any]:
    n = extractor.network
    sizes = {"extractor_size": n.extractor_size} if "dinov2" in extractor.name else {}  # the others' never changed
    return {"extractor": extractor.name, "extractor_sha256": n.sha256, "manifold": manifold, **sizes}


def _state(pooled: Gaussian, spatial: Gaussian | None) -> dict[str, Tensor]:
    state = {"mean": pooled.mean, "covariance": pooled.covariance}
    if spatial is not None:
        state |= {"spatial_mean": spatial.mean, "spatial_covariance": spatial.covariance}
    return {key: torch.from_numpy(np.ascontiguousarray(value, dtype=np.float64)) for key, value in state.items()}


def _finish(
    draft: Any, state: dict[str, Tensor], kept: Tensor, describes: dict[str, Any], name: str, images: int | None
) -> Artifact:
    save_tensors(draft.path / STATISTICS, state)
    save_tensors(draft.path / FEATURES, {"features": kept.float()})
    facts = {"name": name, "images": images, "dim": len(state["mean"]), "features": len(kept), **describes}
    done: Artifact = draft.finish(facts, payload=[STATISTICS, FEATURES])
    return done


def read_statistics(a: Artifact) -> Reference:
    """Statistics back from their artifact, hashes checked.

    Raises:
        TokError: damaged files, or tensors that are no statistics.
    """
    name, images = a.facts["name"], a.facts["images"]
    state, kept = load_tensors(a.file(STATISTICS)), load_tensors(a.file(FEATURES)).get("features")
    pairs = []
    for part in ("", "spatial_"):
        mean, covariance = state.get(f"{part}mean"), state.get(f"{part}covariance")
        if mean is None and part:
            continue
        if mean is None or covariance is None or mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise TokError(
                str(a.path / STATISTICS), f"holds no {part}mean and {part}covariance of features", next=RESTORE
            )
        pairs.append(Gaussian(mean.double().numpy(), covariance.double().numpy(), images, f"--reference {name}"))
    if kept is None or kept.ndim != 2 or kept.shape[1] != len(pairs[0].mean):
        raise TokError(str(a.path / FEATURES), f"holds no features {len(pairs[0].mean)} wide", next=RESTORE)
    against = Against(a.inputs["data"]["id"], name, images)
    return Reference(against, pairs[0], pairs[1] if len(pairs) > 1 else None, kept if len(kept) else None, a.id)
