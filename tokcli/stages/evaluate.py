"""`tok eval`: what each artifact can say of itself on held-out images, and a row of the paper's table."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL.Image import Image
from pydantic import Field

from tokcli import artifact, assemble, measure, metrics, pictures, plan, workspace
from tokcli.artifact import Artifact
from tokcli.data import ImageSource, open_source, sibling
from tokcli.errors import TokError
from tokcli.metrics import table
from tokcli.metrics.extract import Extractor, fold
from tokcli.metrics.fid import Moments
from tokcli.models import TeacherEncoder, Tokenizer
from tokcli.networks import build_network
from tokcli.recipe import resolved
from tokcli.schema import Recipe, Section
from tokcli.teachers import Teacher, build_teacher
from tokcli.weights import write_text
from tokcli.workspace import Options

log = logging.getLogger("tok")
COLUMNS = 12  # of the contact sheet
MEASURED = ("tokenizer", "decoder", "proposal", "samples")


class Evaluation(Section):
    """What is measured with."""

    extractors: list[str]  # networks whose features Fréchet distances compare; with `inception` they are called FID
    mask_ratio: float = Field(0.5, gt=0, le=1)  # of masked_ce


class EvalRecipe(Recipe):
    """Recipe of stage eval."""

    stage: Literal["eval"]
    eval: Evaluation


def main(options: Options, *, artifacts: Sequence[Path], references: Sequence[str]) -> Artifact | str:
    """Evaluate artifacts; see `tok eval --help`."""
    if artifacts:
        given = [artifact.open_artifact(path, "ARTIFACT", MEASURED) for path in artifacts]
    else:
        given = [a for a in artifact.scan(options.workspace) if a.kind in MEASURED]
        log.info("ARTIFACT...: all %d of %s", len(given), options.workspace)
    if not given:
        raise TokError(
            "ARTIFACT...", f"nothing to evaluate in {options.workspace}", next="name artifacts, or train some"
        )
    recorded = given[0].inputs["data"]["path"]
    spec = options.data or sibling(recorded, "val")
    if spec is None:
        raise TokError("--data", f"{recorded} has no held-out part beside it", next="name held-out images: --data DIR")
    recipe = workspace.load_recipe(options, EvalRecipe, "eval", workspace.recipe_folder(spec), {})
    if options.dry_run:
        return plan.describe(
            options, recipe, {}, reads={"data": spec, **{a.id: str(a.path) for a in given}}, writes="report"
        )
    with workspace.session(options) as device:
        return _run(options, recipe, given, spec, list(references) or [spec], device)


def _run(
    options: Options,
    recipe: EvalRecipe,
    given: Sequence[Artifact],
    spec: str,
    references: list[str],
    device: torch.device,
) -> Artifact:
    size = given[0].facts["use_size"]
    held_out = open_source(spec, size=size, labels=options.labels)
    inputs: dict[str, dict[str, str]] = {"data": {"id": held_out.id, "path": held_out.name}}
    real = {name: open_source(name, size=size) for name in references}
    for number, (_, source) in enumerate(real.items()):
        inputs[f"reference-{number}"] = {"id": source.id, "path": source.name}
    for a in given:
        inputs[f"{a.kind}-{a.id[-6:]}"] = workspace.reference(a)
    draft = workspace.begin(options, "report", given[0].facts["name"], resolved(recipe), inputs, device)
    if isinstance(draft, Artifact):
        _print_table(draft.file("report.md").read_text(encoding="utf-8"))
        return draft
    judge = _Judge(options, recipe, held_out, real, given, device)
    results = [judge.measure(a) for a in given]
    rows = _rows(results)
    header = {
        "held-out": f"{held_out.name} ({held_out.id}), {len(held_out)} images, {size} px, short side bicubic, centre crop",
        "reference": "; ".join(f"{s.name} ({s.id}), {len(s)} images" for s in real.values()),
        "extractors": ", ".join(recipe.eval.extractors),
    }
    report = {"protocol": header, "artifacts": results}
    write_text(draft.path / "metrics.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    text = "\n".join(f"{key}: {value}" for key, value in header.items())
    _print_table(table.as_text(rows) + "\n" + text)
    write_text(draft.path / "report.md", table.as_markdown(rows) + "\n\n" + text.replace("\n", "\n\n") + "\n")
    extras = ["report.md"]
    for a in given:
        if a.kind == "decoder" or a.facts.get("has_decoder"):
            file = "sheet.png" if "sheet.png" not in extras else f"sheet-{a.id}.png"
            pictures.save_png(judge.sheet(a), draft.path / file)
            extras.append(file)
    facts = {"name": given[0].facts["name"], "protocol": header}
    measured = {result["id"]: result["metrics"] for result in results}
    return draft.finish(facts, payload=["metrics.json"], extras=extras, metrics=measured)


def _print_table(text: str) -> None:
    for line in text.splitlines():
        log.info("%s", line)


class _Judge:
    """Measures one artifact after another; networks and reference statistics are made once."""

    def __init__(
        self, options: Options, recipe: EvalRecipe, held_out: ImageSource, references: dict[str, ImageSource],
        given: Sequence[Artifact], device: torch.device,
    ) -> None:  # fmt: skip
        self.options, self.recipe, self.held_out, self.device = options, recipe, held_out, device
        self.references, self.given = references, {a.id: a for a in given}
        self.extractors: dict[str, Extractor] = {}
        for name in recipe.eval.extractors:
            flag = "--inception-weights" if name == "inception" else None
            network = build_network(name, options.weights.get(name), role="extractor", weights_flag=flag)
            self.extractors[name] = network.to(device).pooled
        self._moments: dict[tuple[str, str, int], Moments] = {}

    def _input(self, a: Artifact, role: str) -> Artifact:
        wanted = str(a.input_id(role))
        if wanted in self.given:
            return self.given[wanted]
        return a if a.id == wanted else artifact.locate(wanted, a.inputs[role]["path"], a.path.parent)

    def measure(self, a: Artifact) -> dict[str, Any]:
        """The metrics of one artifact with what identifies it."""
        log.info("measuring %s", a.path)
        values: dict[str, Any] = getattr(self, f"_{a.kind}")(a)
        entry = {"id": a.id, "kind": a.kind, "name": a.facts["name"], "path": str(a.path)}
        return entry | {"tokenizer": a.input_id("tokenizer"), "mode": a.facts.get("mode"), "metrics": values}

    def _tokenizer(self, a: Artifact) -> dict[str, Any]:
        network = assemble.load_tokenizer(a, self.device)
        found = measure.tokenizer(
            network, self.held_out, self.device, size=a.facts["use_size"], teacher=self._teacher(a, network)
        )
        return found | (self._decoder(a) if a.facts["has_decoder"] else {})

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

    def _decoder(self, a: Artifact) -> dict[str, Any]:
        tokenizer = assemble.load_tokenizer(self._input(a, "tokenizer"), self.device)
        decoder = assemble.load_decoder(a, self.device)
        return measure.decoder(
            tokenizer, decoder, self.held_out, self.device, size=a.facts["use_size"], extractors=self.extractors
        )

    def _proposal(self, a: Artifact) -> dict[str, Any]:
        tokenizer = assemble.load_tokenizer(self._input(a, "tokenizer"), self.device)
        network = assemble.load_proposal(a, self.device)
        return measure.proposal(
            network,
            tokenizer,
            self.held_out,
            self.device,
            size=a.facts["use_size"],
            mask_ratio=self.recipe.eval.mask_ratio,
            captions=assemble.load_caption_encoder(a, self.options.weights.get("text"), self.device),
        )

    def _samples(self, a: Artifact) -> dict[str, Any]:
        size, number = a.facts["use_size"], a.facts["number"]
        found: dict[str, Any] = {"images": number}
        for extractor, run in self.extractors.items():
            pieces = (measure.read_samples(a, range(i, min(i + 64, number))) for i in range(0, number, 64))
            ours = fold(pieces, run, Moments(extractor), device=self.device)
            for position, (name, source) in enumerate(self.references.items()):
                key = (name, extractor, size)
                if key not in self._moments:
                    self._moments[key] = measure.moments_of(source, run, extractor, size, self.device)
                distance = metrics.frechet_distance(ours, self._moments[key])
                suffix = "" if position == 0 else f" against {source.name}"
                found[metrics.frechet_name(extractor) + suffix] = distance
        return found

    def sheet(self, decoder: Artifact) -> Image:
        """Rows original, reconstruction, and the samples of its tokenizer among the given artifacts; a column per class."""
        size, tokenizer_id = decoder.facts["use_size"], decoder.input_id("tokenizer")
        labels = [self.held_out.label(i) for i in range(len(self.held_out))]
        classes = sorted({label for label in labels if label >= 0})[:COLUMNS]
        if classes:
            chosen = [labels.index(c) for c in classes]
        else:
            chosen = [int(i) for i in torch.linspace(0, len(labels) - 1, min(COLUMNS, len(labels)))]
        numbers, images = next(measure.read(self.held_out, measure.evaluation_transform(size), chosen))
        tokenizer = assemble.load_tokenizer(self._input(decoder, "tokenizer"), self.device)
        network = assemble.load_decoder(decoder, self.device)
        rows = {"original": images, "reconstruction": measure.reconstruct(tokenizer, network, images, self.device)}
        for a in self.given.values():
            if a.kind == "samples" and a.input_id("tokenizer") == tokenizer_id and a.input_id("decoder") == decoder.id:
                turn = a.facts["labels"]
                wanted = [turn.index(c) if c in turn else position for position, c in enumerate(classes or chosen)]
                shown = [number for number in wanted if number < a.facts["number"]]
                rows[f"{a.facts['mode'].upper()} sample"] = torch.cat(
                    [measure.read_samples(a, range(n, n + 1)) for n in shown]
                )
        names = [self.held_out.classes[self.held_out.label(i)] for i in numbers] if classes else None
        return pictures.comparison_sheet(rows, column_labels=names)


def _rows(results: list[dict[str, Any]]) -> list[table.Row]:
    """One row per tokenizer: its own metrics, and those of the artifacts that descend from it."""
    rows: dict[str, dict[str, float]] = {}
    names: dict[str, str] = {}
    for result in results:
        row = rows.setdefault(result["tokenizer"], {})
        names[result["tokenizer"]] = result["name"]
        for name, value in result["metrics"].items():
            key = f"{name}_{result['mode']}" if result["kind"] == "samples" else name
            if metrics.is_known(key):  # counts and second references stay in metrics.json
                row[key] = value
    return [table.Row(names[tokenizer], values) for tokenizer, values in rows.items()]
