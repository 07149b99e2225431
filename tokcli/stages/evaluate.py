"""`tok eval`: what each artifact can say of itself on held-out images, and the paper's table of a whole family."""

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, field_validator

from tokcli import pictures
from tokcli.artifact.opening import Artifact, examined, locate, scan
from tokcli.artifact.plans import Plan, Planned, read_plan
from tokcli.command import plan
from tokcli.command.data import named_data, recorded_spec
from tokcli.command.inputs import load_recipe, open_input, with_preset
from tokcli.command.options import Options
from tokcli.command.session import begin, reference, session
from tokcli.command.weight_files import check_weights, weights_read
from tokcli.data.sources import sibling
from tokcli.data.sources.summary import left_out
from tokcli.errors import NotFound, TokError
from tokcli.evaluation import text_tables
from tokcli.evaluation.aims import Published
from tokcli.evaluation.cost import evaluation_cost
from tokcli.evaluation.judge import Judge
from tokcli.evaluation.records import SCHEMA, Measured
from tokcli.evaluation.references import References
from tokcli.evaluation.report_page import Sheets, write_page
from tokcli.evaluation.tables import build_tables, warning_of_small_sets
from tokcli.files import write_text
from tokcli.measure.extractors import check_extractors, expanded
from tokcli.measure.predicting import MASK_RATIO
from tokcli.recipe import MAX_PIXELS
from tokcli.recipe.check import resolved
from tokcli.recipe.sections import Perturbed, Pixels, Recipe, Section

log = logging.getLogger("tok")
MEASURED = ("tokenizer", "decoder", "proposal", "samples")


class Evaluation(Section):
    """What is measured, and how.

    Args:
        extractors: networks whose features are compared; with `inception` the distances are called FID. A protocol (`embedded`,
            `wide`) stands for several, over which the geometric mean of `fdr` is taken.
        images: largest number of held-out images to measure on, evenly spread; 0: all.
        lpips: measure LPIPS of reconstructions; needs torchvision's VGG16.
        clip_score: measure the CLIP score of samples drawn for captions; needs CLIP's weights.
        mask_ratio: share of tokens that are masked for `masked_ce`.
        bootstrap: number of resampled sets for the intervals of Fréchet distances, at least 2; 0: no intervals.
        manifold: largest number of images that precision, recall, density, coverage, KID and `fdr` compare; 0: none of them.
        probe_images: largest number of images from which classes are learned, and on which they are predicted; 0: no probe.
        worst: number of the worst reconstructions that are named and shown.
        max_pixels: largest number of pixels of an image that is decoded; larger ones count as unreadable. WebP and AVIF may have half, progressive JPEG four fifths of it.
        perturb: see `perturb`; null: no `prfd`.
        published: figures to print under the rows of the tokenizers that they belong to; null: none.
    """

    extractors: list[str]
    images: int = Field(0, ge=0)
    lpips: bool = False
    clip_score: bool = False
    mask_ratio: float = Field(MASK_RATIO, gt=0, le=1)
    bootstrap: int = Field(20, ge=0)
    manifold: int = Field(10_000, ge=0)
    probe_images: int = Field(2000, ge=0)
    worst: int = Field(12, ge=0)
    max_pixels: Pixels = MAX_PIXELS
    perturb: Perturbed | None = None
    published: Published | None = None

    @field_validator("bootstrap")
    @classmethod
    def _check(cls, value: int) -> int:
        if value == 1:
            raise ValueError("one resampled set has no spread: 2 or more, or 0 for no intervals")
        return value


class EvalRecipe(Recipe):
    """Recipe of stage eval.

    Args:
        eval: see `eval`.
    """

    stage: Literal["eval"]
    eval: Evaluation


def main(options: Options, *, artifacts: Sequence[Path], references: Sequence[str]) -> Artifact | Plan:
    """Evaluate artifacts; see `tok eval --help`."""
    if artifacts:
        given = [open_input(options, "ARTIFACT", path, MEASURED) for path in artifacts]
    else:
        given = [examined(a) for a in scan(options.workspace) if a.kind in MEASURED]
        log.info("ARTIFACT...: all %d of %s", len(given), options.workspace)
    if not given:
        raise TokError(
            "ARTIFACT...", f"nothing to evaluate in {options.workspace}", next="Name artifacts, or train some"
        )
    others = sorted({str(sibling(a.inputs["data"]["path"], "val")) for a in given})
    if len(others) > 1 and named_data(options) is None:
        raise TokError(
            "ARTIFACT...",
            "they are of different data",
            got=", ".join(others),
            next="Name the artifacts of one, or the held-out images for all: --data DIR",
        )
    spec = named_data(options) or _held_out(given[0], options)
    options, _ = with_preset(options, spec, given[0])
    recipe = load_recipe(options, EvalRecipe, "eval", {})
    asked = {"vgg": recipe.eval.lpips, "text": recipe.eval.clip_score}
    found = {name for a in given for name in weights_read(a.recipe)}
    read = {name for name in found if name.partition(":")[0] in ("teacher", "text")}
    check_weights(options, {"inception", *read, *(name for name, wanted in asked.items() if wanted)})
    sizes = [a.facts["use_size"] for a in given if a.kind == "samples"]
    if references and not sizes:
        raise TokError(
            f"--reference {references[0]}",
            "samples are compared with it, and the artifacts hold none",
            next="Leave it out; --data DIR names the images that reconstructions are measured on",
        )
    given = list({a.id: a for a in given}.values())
    check_extractors(recipe.eval.extractors, options.weights.get("inception"))
    tokenizers = [None if a.kind == "samples" else _tokenizer(a, given) for a in given]
    if options.dry_run:
        return _plan(options, recipe, list(zip(given, tokenizers, strict=True)), spec, references)
    with session(options) as device:
        return _run(options, recipe, given, spec, list(references) or [spec], device)


def _held_out(a: Artifact, options: Options) -> str:
    """The images beside those that an artifact records.

    Raises:
        TokError: there are none, or see `recorded_spec`.
    """
    recorded = recorded_spec(a, "--data DIR")
    spec = sibling(recorded, "val")
    if spec is None and a.inputs["data"]["id"] == plan.UNKNOWN and options.dry_run:
        spec = re.sub(r"train(\d*)/?$", r"val\1", recorded)  # as it would be called, on the machine that has it
        spec = None if spec == recorded else spec
    if spec is None:
        why = f"{recorded}, as recorded in {a.path}, has no held-out part beside it"
        raise TokError("--data", why, next="Name held-out images: --data DIR")
    log.info("data: %s, beside %s, as recorded in %s", spec, recorded, a.path)
    return spec


def _tokenizer(a: Artifact, given: Sequence[Artifact]) -> Artifact:
    """The tokenizer by which an artifact is measured, found before hours of measuring; a plan's where the plan says.

    Raises:
        TokError: it is nowhere.
    """
    wanted = str(a.input_id("tokenizer"))
    for known in given:
        if known.id == wanted:
            return known
    path = Path(a.inputs["tokenizer"]["path"])
    plan_of_it = read_plan(path, "--tokenizer") if isinstance(a, Planned) and path.is_file() else None
    if plan_of_it is not None and plan_of_it.id == wanted:
        return plan_of_it
    return locate(wanted, str(path), a.path.parent)


def _plan(
    options: Options,
    recipe: EvalRecipe,
    given: Sequence[tuple[Artifact, Artifact | None]],
    spec: str,
    references: Sequence[str],
) -> Plan:
    artifacts = [a for a, _ in given]
    sizes = [a.facts["use_size"] for a in artifacts if a.kind == "samples"]
    size = sizes[0] if sizes else artifacts[0].facts["use_size"]
    held_out = plan.find_images(spec, size, options.labels, recipe.eval.max_pixels, recipe.eval.images)
    reads: dict[str, Artifact | str] = {"data": spec}
    compared: list[dict[str, str]] = []
    others: list[int | None] = []  # images of references that are not the held-out ones, which are looked at anyway
    if sizes:
        shared = (recipe.eval.manifold, torch.device("cpu"))
        asked = References(options, references or [spec], *shared, held_out=spec, max_pixels=recipe.eval.max_pixels)
        asked.check_published(expanded(recipe.eval.extractors))
        for one in asked.specs:
            alone = References(options, [one], *shared, held_out=spec, max_pixels=recipe.eval.max_pixels)
            try:
                compared += alone.inputs(size)
                others += [alone.looked_at(one, size)] if one != spec else []
            except NotFound as error:
                log.warning("%s. The plan does not know how many images it has.", str(error).rstrip("."))
                compared.append({"id": plan.UNKNOWN, "path": one})
                others += [None] if one != spec else []
    reads |= {f"reference {i}": entry["path"] for i, entry in enumerate(compared, 1)}
    reads |= {a.id: a for a in artifacts}
    inputs = {"data": held_out.entry} | {f"reference-{i}": entry for i, entry in enumerate(compared)}
    inputs |= {f"{a.kind}-{a.id[-6:]}": reference(a) for a in artifacts}
    number = len(held_out.source) if held_out.source else recipe.eval.images or None
    return plan.describe(
        options,
        recipe,
        {},
        reads=reads,
        writes="report",
        facts={"name": artifacts[0].facts["name"]},
        inputs=inputs,
        compute=evaluation_cost(recipe.eval, given, number, others),
    )


def _run(
    options: Options,
    recipe: EvalRecipe,
    given: Sequence[Artifact],
    spec: str,
    references: list[str],
    device: torch.device,
) -> Artifact:
    judge = Judge(options, recipe.eval, given, spec, references, device)
    draft = begin(options, "report", given[0].facts["name"], resolved(recipe), judge.inputs(), device)
    if isinstance(draft, Artifact):
        _print(draft.file("report.md").read_text(encoding="utf-8"))
        return draft
    results = [judge.measure(a) for a in given]
    if few := warning_of_small_sets(results):
        log.warning("%s", few)
    files = _write(draft.path, results, judge)
    facts = {"name": given[0].facts["name"], "protocol": judge.protocol()}
    facts |= {"left_out": lost} if (lost := _left_out(judge)) else {}
    measured = {result.id: result.metrics for result in results}
    return draft.finish(facts, payload=["metrics.json"], extras=files, metrics=measured)


def _left_out(judge: Judge) -> dict[str, int]:
    """What of the held-out images was not measured on, by kind."""
    source = judge.held_out(judge.first)
    return left_out(source, len(source) - judge.protocol()["held_out"]["images"])


def _write(folder: Path, results: list[Measured], judge: Judge) -> list[str]:
    """The report's files beside `metrics.json`, which is written too; the table goes to stderr."""
    tables = build_tables(results, judge.settings.published)
    report = {"schema": SCHEMA, "protocol": judge.protocol(), "artifacts": [r.as_json() for r in results]}
    report |= {"table": tables.as_json}
    write_text(folder / "metrics.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    header = judge.header()
    _print("\n".join([text_tables.as_text(tables.paper), *header]))
    more = ["## More", text_tables.as_markdown(tables.more)] if tables.more.columns else []
    sections = [text_tables.as_markdown(tables.paper), *more, "## Protocol"]
    write_text(folder / "report.md", "\n\n".join([*sections, *header]) + "\n")
    write_text(folder / "table.csv", text_tables.as_csv(tables.whole))
    sheets = []
    for name, sheet in Sheets(judge):
        pictures.save_png(sheet, folder / name)
        sheets.append(name)
    page = write_page(folder, report, list(judge.given.values()), sheets)
    return ["report.md", "table.csv", page, *sheets]


def _print(text: str) -> None:
    for line in text.splitlines():
        log.info("%s", line)
