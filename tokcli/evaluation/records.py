"""One measured number with its provenance, and the form that it takes in `metrics.json`.

`metrics.json`, schema 1, is one object:

- `protocol`: `held_out` {id, name, images}, `references` [{id, name}], `resize`, `extractors` {name: {sha256, size, resize}},
  `mask_ratio`, `precision` {judges: "float32", on GPUs also torch's settings "cuda.matmul", "cudnn.conv": "ieee" is without TF32};
- `artifacts`: a list of {id, kind, name, path, tokenizer (id), mode ("ar", "nar", "t2i" or null), size (px), inputs {role: id},
  metrics {reported name: value, of the first reference}, measurements [...]}; decoders also `worst` [{key, psnr, ssim, ...}];
- a measurement: {metric (its reported name), fields {metric (a key of METRICS), extractor, mode (of samples), ratio (of masked tokens),
  nonblank}, value, count, of, against, extractor, by, interval, deviation, involved}. The name follows from the fields, which are
  what a program should read; in an artifact's own list it leaves out the mode. `count` things of kind `of` ("images", "tokens") were measured, against {id, name, images} or null; `by` says in words what else the number is of (a
  teacher's features, captions), without which two are not comparable, or is null; `interval` is [low, high] at 95 % or null; `deviation`
  is over splits or subsets, or null; `involved` lists the roles ("teacher", "perceptual loss", "discriminator") that the extractor
  had in training the artifact or its ancestors;
- `table`: `columns` (the paper's) and `more`, lists of {key, title, better ("higher", "lower", "neither"), metric (its reported name),
  fields (as above), protocol (words or null)}; `rows` [{name, tokenizer, cells {column key: {value, text, artifact, measurement (its place in the artifact's list), involved, interval}}}],
  a key that is absent was not measured; `notes`, lines of text; `published` [{name, tokenizer, source, cells {column key: {value, text}}}],
  figures of others that the recipe aims at, which nobody measured here.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tokcli.metrics.reported import Reported

SCHEMA = 1


@dataclass(frozen=True)
class Against:
    """The images that others were compared with."""

    id: str
    name: str
    images: int | None  # None: a published file of statistics does not say


@dataclass(frozen=True)
class Measurement:
    """A number, what it is and what it was measured on; see the module for the fields."""

    what: Reported
    value: float
    count: int
    of: str = "images"
    against: Against | None = None
    by: str | None = None
    interval: tuple[float, float] | None = None
    deviation: float | None = None
    involved: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The reported name within its artifact, whose mode goes without saying: `fid`, `masked_ce_0.50`."""
        return replace(self.what, mode=None).name

    def as_json(self) -> dict[str, Any]:
        """The measurement's entry in `metrics.json`."""
        rest = {key: value for key, value in asdict(self).items() if key != "what"}
        return {"metric": self.name, "fields": asdict(self.what), "extractor": self.what.extractor, **rest}


@dataclass(frozen=True)
class Measured:
    """All that was measured of one artifact."""

    id: str
    kind: str
    name: str
    path: str
    tokenizer: str
    mode: str | None
    size: int
    inputs: Mapping[str, str]
    recipe: Mapping[str, Any]
    measurements: list[Measurement]
    worst: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The artifact's entry in `metrics.json`."""
        found = {
            "id": self.id,
            "kind": self.kind,
            "name": self.name,
            "path": self.path,
            "tokenizer": self.tokenizer,
            "mode": self.mode,
            "size": self.size,
            "inputs": dict(self.inputs),
            "metrics": self.metrics,
            "measurements": [m.as_json() for m in self.measurements],
        }
        return found | ({"worst": self.worst} if self.worst else {})

    @property
    def metrics(self) -> dict[str, float]:
        """Values by reported name; against the first reference named, where there are several."""
        found: dict[str, float] = {}
        for m in self.measurements:
            found.setdefault(m.name, m.value)
        return found
