"""The plan of `scripts/claims.py`: cells, teachers, judges. All cells have the sizes, steps and samples of recipes/claims."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

CLAIMS = ("objective", "successors", "teachers", "data", "captions", "cluster")
JUDGES = ("efflite0", "vits14")
MAIN, SECOND = (
    "vits14",
    "efflite0",
)  # the teacher wherever the claim is not about teachers; another one, that the other judge may judge

QUANTIZERS: dict[str, dict[str, Any] | None] = {
    "vq": None,  # the recipe's
    "fsq": {"name": "fsq", "levels": [8, 8, 4]},
    # with independent bits two codes suffice: half of all patches are white, so that every bit is 1 half of the time
    "lfq": {"name": "lfq", "code_dim": 8, "joint_bits": 8, "temperature": 1.0, "entropy": 0.3},
}
OBJECTIVES = {
    "pixels": (0.0, 1.0),
    "features": (1.0, 0.0),
    "joint": (1.0, 1.0),
    "aligned": (1.0, 1.0),
    "pretrained": (1.0, 1.0),
}  # weights of features and pixels; cluster has none
BOTH = [name for name, weights in OBJECTIVES.items() if all(weights)]  # that learn features and pixels together
PERTURB = {"share": 0.5, "end_share": 0.1, "images": 0.5, "near": 8}


@dataclass(frozen=True)
class Teaching:
    """A teacher: a network, its layers, and whether its weights were never trained."""

    network: str
    layers: tuple[int | str, ...]
    random: bool = False


TEACHERS = {
    "random-efflite0": Teaching("efflite0", ("head",), random=True),
    "random-vits14": Teaching("vits14", (9,), random=True),
    "squeezenet": Teaching("squeezenet", ("features.12",)),
    "efflite0-early": Teaching("efflite0", ("blocks.1",)),
    "efflite0-middle": Teaching("efflite0", ("blocks.4",)),
    "efflite0": Teaching("efflite0", ("head",)),
    "vits14-early": Teaching("vits14", (1,)),
    "vits14-middle": Teaching("vits14", (5,)),
    "vits14": Teaching("vits14", (9,)),
}


# what tokenizers that learn both have of their own: VA-VAE's linear map and distance; VFMTok's frozen encoder, which is the teacher
CHANGED: dict[str, dict[str, Any]] = {
    "aligned": {"feature_decoder": {"name": "linear"}, "alignment": {"name": "margin"}},
    "pretrained": {
        "encoder": {
            "name": "pretrained",
            "image_size": 32,
            "network": TEACHERS[MAIN].network,
            "layers": list(TEACHERS[MAIN].layers),
            "grid": [8, 8],
        }
    },
}


@dataclass(frozen=True)
class Cell:
    """One tokenizer and what is made of it; equal cells are trained once.

    Args:
        data: openmoji, noto or fashion.
        objective: what the tokenizer reconstructs, and how (CHANGED); `cluster`: nothing, its encoder is the teacher itself.
        quantizer: see QUANTIZERS.
        teacher: see TEACHERS; None where no features are learned.
        perturb: the pixel decoder meets wrong tokens in training.
        captions: proposal networks are given captions, not classes.
        seed: of all its networks and samples.
    """

    data: str
    objective: str
    quantizer: str = "vq"
    teacher: str | None = None
    perturb: bool = False
    captions: bool = False
    seed: int = 0

    @property
    def untrained(self) -> list[str]:
        """Networks whose random weights it learns from."""
        return [TEACHERS[self.teacher].network] if self.teacher and TEACHERS[self.teacher].random else []

    @property
    def name(self) -> str:
        """The cell's key in results, without its seed."""
        more = ["perturb"] * self.perturb + ["captions"] * self.captions
        return "-".join([self.data, self.objective, self.quantizer, *([self.teacher] if self.teacher else []), *more])


def judges(cell: Cell) -> list[str]:
    """The extractors that compare a cell's images: those that taught none of what it is compared with, and both for a few."""
    plain = cell == Cell("openmoji", cell.objective, teacher=cell.teacher, seed=cell.seed)
    if plain and cell.teacher in (None, MAIN) and cell.objective not in CHANGED:
        return list(JUDGES)
    return untaught(cell.teacher or MAIN)


def untaught(teacher: str) -> list[str]:
    """The extractors whose weights taught nothing to a tokenizer of this teacher."""
    taught = TEACHERS[teacher]
    return [judge for judge in JUDGES if taught.random or judge != taught.network]


def cells(seed: int, claims: Iterable[str] = CLAIMS) -> list[Cell]:
    """The plan of one seed, each cell once, those first that answer the most."""
    main = {
        "pixels": Cell("openmoji", "pixels", seed=seed),
        "features": Cell("openmoji", "features", teacher=MAIN, seed=seed),
    }
    both = list(main.values())
    plan = {
        "objective": [
            *both,
            replace(main["features"], teacher=SECOND),
            *(replace(cell, quantizer=name) for name in QUANTIZERS for cell in both),
        ],
        "successors": [
            *(replace(main["features"], objective=name) for name in BOTH),
            replace(main["features"], perturb=True),
            replace(main["pixels"], perturb=True),
            *(replace(main["features"], objective=name, data=data) for data in ("noto", "fashion") for name in BOTH),
        ],
        "teachers": [replace(main["features"], teacher=name) for name in TEACHERS],
        "data": [replace(cell, data=name) for name in ("noto", "fashion") for cell in both],
        "captions": [replace(cell, captions=True) for cell in both],
        "cluster": [replace(main["features"], objective="cluster")],
    }
    return list(dict.fromkeys(cell for claim in CLAIMS if claim in set(claims) for cell in plan[claim]))


def fetched(plan: Iterable[Cell]) -> list[str]:
    """What scripts/fetch_embedded.py has to fetch for these cells: their losses, teachers, judges, text networks and images."""
    plan = list(plan)
    taught = [TEACHERS[cell.teacher] for cell in plan if cell.teacher]
    vits14 = any("vits14" in judges(cell) for cell in plan) or any(
        one.network == "vits14" and not one.random for one in taught
    )
    found = {
        "squeezenet": bool(plan),  # of the perceptual loss
        "vits14": vits14,
        "minilm": any(cell.captions for cell in plan),
        "fashion-mnist": any(cell.data == "fashion" for cell in plan),
    }
    return [name for name, needed in found.items() if needed]


def tokenizer_sets(cell: Cell) -> list[str]:
    """What the cell changes of its recipe, as KEY=VALUE; encoder, decoders and training are those of all."""
    if cell.objective == "cluster":
        return []
    features, pixels = OBJECTIVES[cell.objective]
    found = [f"objective={{features: {features}, pixels: {pixels}}}"]
    if (quantizer := QUANTIZERS[cell.quantizer]) is not None:
        found.append(f"quantizer={json.dumps(quantizer)}")
    found += [f"{key}={json.dumps(value)}" for key, value in CHANGED.get(cell.objective, {}).items()]
    if cell.teacher:
        taught = TEACHERS[cell.teacher]
        found.append(f"teacher={json.dumps({'name': taught.network, 'layers': list(taught.layers)})}")
    if cell.perturb and pixels:
        found.append(f"perturb={json.dumps(PERTURB)}")
    return found
