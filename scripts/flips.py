"""Flip single bits in every file of every kind of artifact, and look whether anybody notices.

    python scripts/flips.py [--flips N] [--seed N] [--folder DIR]

The artifacts are those of `scripts/storm.py`, an older one (schema 1) and reference statistics. The flips are spread over each
file: one random bit in each of N parts of equal length (fewer in files of fewer bytes). After each flip the artifact is verified
as by `tok verify`, and read as other commands read it. A flip must be refused by either, or what was read must be equal, and
so must the manifest. Anything else is a silent change. Manifests of schema 1 have no hash of their own: of them, changed metrics,
provenance and paths of inputs are counted apart, from which no command computes anything.

The last line is JSON; the exit code is 1 if there was a silent change.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import storm

VERIFIED, READ, HARMLESS, SILENT = "refused by tok verify", "refused when read", "harmless: all read equal", "SILENT"
UNCOVERED = "numbers, notes and paths of an older manifest"
COLUMNS = (VERIFIED, READ, HARMLESS, UNCOVERED, SILENT)


def readers() -> dict[str, Callable[[Any], Any]]:
    """By kind: what other commands read of an artifact, as one value that can be compared."""
    import torch

    from tokcli import loading
    from tokcli.evaluation.references import read_statistics
    from tokcli.evaluation.report_page import read_log
    from tokcli.measure.previews import read_samples
    from tokcli.proposals.training_tokens import open_store

    cpu = torch.device("cpu")

    def weights(network: Any) -> Any:
        return {name: tensor.numpy().tobytes() for name, tensor in network.state_dict().items()}, str(network)

    def tokens(a: Any) -> Any:
        store = open_store(a)
        rows = np.arange(store.rows)
        codes = [store.batch(rows, np.full(store.rows, view)).tolist() for view in range(store.views)]
        return codes, store.labels.tolist(), store.keys, store.captions

    def statistics(a: Any) -> Any:
        found = read_statistics(a)
        return found.gaussian.mean.tobytes(), found.gaussian.covariance.tobytes(), found.against

    return {
        "tokenizer": lambda a: (weights(loading.load_tokenizer(a, cpu)), read_log(a)),
        "decoder": lambda a: (weights(loading.load_decoder(a, cpu)), read_log(a)),
        "proposal": lambda a: (weights(loading.load_proposal(a, cpu)), read_log(a)),
        "tokens": tokens,
        "samples": lambda a: read_samples(a, range(a.facts["number"])).numpy().tobytes(),
        "statistics": statistics,
        "report": lambda a: a.file("metrics.json").read_bytes(),
        "viz": lambda a: a.facts["name"],  # people look at it, no command does
    }


def judge(folder: Path, read: Callable[[Any], Any], wanted: Any) -> str:
    """What becomes of an artifact after a flip."""
    from tokcli.artifact.manifest import content_id, differing_keys
    from tokcli.artifact.opening import open_artifact
    from tokcli.errors import TokError
    from tokcli.stages.show import verify

    try:
        verify(folder)
    except TokError:
        return VERIFIED
    try:
        artifact = open_artifact(folder)
        found = artifact.manifest, read(artifact)
    except TokError:
        return READ
    if found == wanted:
        return HARMLESS
    same = content_id(artifact.manifest) == content_id(wanted[0]) and found[1] == wanted[1]
    same = same and not differing_keys(artifact.recipe, wanted[0]["recipe"])
    return UNCOVERED if artifact.older and same else SILENT


def flipped(file: Path, parts: int, draws: random.Random) -> Iterator[int]:
    """One bit flipped in each part of a file, one after another; yields the byte's place, and puts the file back."""
    before = file.read_bytes()
    parts = min(parts, len(before))
    for part in range(parts):
        at = draws.randrange(len(before) * part // parts, len(before) * (part + 1) // parts)
        data = bytearray(before)
        data[at] ^= 1 << draws.randrange(8)
        file.write_bytes(data)
        yield at
    file.write_bytes(before)


def family(root: Path) -> dict[str, Path]:
    """Artifacts of every kind, made where they are not there yet, and an older one."""
    from tokcli.artifact.draft import write_manifest
    from tokcli.artifact.manifest import OLDER, content_id

    if not (root / "photos").is_dir():
        storm.draw(root / "photos")
    made = {}
    for name, command in storm.family(root).items():
        made[name] = root / "undisturbed" / name
        storm.run(command, made[name], root / f"{name}.log")
    made["statistics"] = next((root / "undisturbed").glob("statistics-*"))
    made["older"] = root / "older"
    shutil.rmtree(made["older"], ignore_errors=True)
    shutil.copytree(made["tokenizer-vqkd"], made["older"])
    manifest = json.loads((made["older"] / "manifest.json").read_text(encoding="utf-8")) | {"schema": OLDER}
    write_manifest(made["older"], manifest | {"id": content_id(manifest)})
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=16, help="of each file; its manifest gets ten times as many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where artifacts are made; default: a temporary folder")
    asked = parser.parse_args()
    root = (asked.folder or Path(tempfile.mkdtemp(prefix="flips-"))).resolve()
    from tokcli.artifact.opening import open_artifact

    draws, counts, silent = random.Random(asked.seed), Counter[tuple[str, str]](), []
    read = readers()
    for name, made in family(root).items():
        folder = root / "flipped"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, folder)
        artifact = open_artifact(folder)
        reader = read[artifact.kind]
        wanted = artifact.manifest, reader(artifact)
        for file in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
            for at in flipped(file, asked.flips * (10 if file.name == "manifest.json" else 1), draws):
                became = judge(folder, reader, wanted)
                counts[name, became] += 1
                if became == SILENT:
                    silent.append(f"{name}: {file.relative_to(folder)}, byte {at}")
                    print(silent[-1], file=sys.stderr, flush=True)
        print(
            f"{name:<18}" + "".join(f"{counts[name, c]:>7} {c}" for c in COLUMNS if counts[name, c]),
            file=sys.stderr,
            flush=True,
        )
    total = {column: sum(n for (_, became), n in counts.items() if became == column) for column in COLUMNS}
    print(json.dumps({"flips": sum(counts.values()), **total, "seed": asked.seed}))
    if silent:
        sys.exit(1)
    if asked.folder is None:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
