"""What `report.html` shows beside the numbers: the artifacts' logs, recipes and pictures."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokcli.artifact.opening import Artifact
from tokcli.errors import TokError
from tokcli.evaluation.html import Picture, write_report
from tokcli.limits import parse_json
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
