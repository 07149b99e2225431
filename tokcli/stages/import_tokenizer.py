"""`tok import`: others' tokenizer checkpoints into tokenizer artifacts, read without running what they name."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokcli import build, loading
from tokcli.artifact.opening import Artifact
from tokcli.artifact.plans import Plan
from tokcli.artifact.weights import load_tensors, save_tensors
from tokcli.command import plan
from tokcli.command.inputs import load_recipe
from tokcli.command.options import Options, Preset
from tokcli.command.session import begin, session
from tokcli.files import sha256, write_text
from tokcli.methods import TokenizerRecipe, method_class, resolve
from tokcli.models import Tokenizer
from tokcli.models.foreign import convert
from tokcli.recipe.check import resolved
from tokcli.recipe.yaml import to_yaml
from tokcli.registry import lookup

log = logging.getLogger("tok")


@dataclass(frozen=True)
class Format:
    """A kind of checkpoint: the layout of its names, and the recipe of the same architecture with what differs."""

    layout: str
    method: str
    sets: dict[str, Any]
    feature_dim: int | None = None


CROP = {"data.transform.name": "center-crop", "data.transform.flip": False}
FORMATS = {
    "taming-vqgan-f16-1024": Format("taming", "vqgan", {"quantizer.codebook_size": 1024, **CROP}),
    "taming-vqgan-f16-16384": Format("taming", "vqgan", {"quantizer.codebook_size": 16384, **CROP}),
    "maskgit-vqgan-f16-1024": Format(
        "maskgit",
        "vqgan",
        {
            "quantizer.codebook_size": 1024,
            "encoder.name": "maskgit",
            "encoder.image_size": 256,
            "encoder.widths": [128, 128, 256, 256, 512],
            "decoder.name": "maskgit",
            "decoder.widths": [512, 256, 256, 128, 128],
            **CROP,
        },
    ),
    "llamagen-vq16": Format("llamagen", "llamagen", {}),
    "beit2-vqkd-clip": Format("beit", "vqkd", {"data.use_size": 224}, feature_dim=512),
    "beit2-vqkd-dino": Format("beit", "vqkd", {"data.use_size": 224, "teacher.name": "dino"}, feature_dim=768),
}


def main(options: Options, *, kind: str, file: Path, sets: dict[str, Any] | None = None) -> Artifact | Plan:
    """Import a checkpoint; see `tok import --help`.

    Args:
        sets: further recipe keys, for networks of another size (tests).
    """
    form = lookup("format", FORMATS, kind)
    method = method_class(form.method)
    options = replace(
        options,
        sets={**form.sets, **(sets or {}), **options.sets},
        preset=Preset("imagenet", "it was published for it"),
    )
    recipe = load_recipe(
        options,
        method.recipe_model,
        f"tokenizer-{form.method}",
        method.families,
        resolve,
        say=log.debug,  # the recipe's own components were never meant
    )
    if options.dry_run:
        tokenizer = build.build_tokenizer(resolved(recipe), form.feature_dim)
        modules = dict(tokenizer.named_children())
        return plan.describe(
            options,
            recipe,
            modules,
            reads={kind: str(file)},
            writes="tokenizer",
            facts=_facts(kind, form, recipe, tokenizer, None),
            inputs=_inputs(options, file, "checkpoint-unknown"),
        )
    with session(options) as device:
        state = load_tensors(file)
        tokenizer = build.build_tokenizer(resolved(recipe), form.feature_dim)
        tokenizer.load_exported(convert(state, form.layout, tokenizer, str(file)), str(file))
        digest = sha256(file)
        facts, inputs = _facts(kind, form, recipe, tokenizer, digest), _inputs(options, file, digest)
        options = replace(options, preset=None)  # of later stages on other images: by these
        draft = begin(options, "tokenizer", kind, resolved(recipe), inputs, device)
        if isinstance(draft, Artifact):
            return draft
        save_tensors(draft.path / loading.WEIGHTS, tokenizer.export_state())
        write_text(draft.path / "recipe.yaml", to_yaml(recipe))
        return draft.finish(facts, payload=[loading.WEIGHTS], extras=["recipe.yaml"])


def _inputs(options: Options, file: Path, digest: str) -> dict[str, dict[str, str]]:
    # what it was trained on is known by name only; commands that need images ask for --data
    data = {"id": "data-unknown", "path": options.data or "imagenet/train"}
    return {"data": data, "checkpoint": {"id": digest, "path": str(file.resolve())}}


def _facts(
    kind: str, form: Format, recipe: TokenizerRecipe, tokenizer: Tokenizer, digest: str | None
) -> dict[str, Any]:
    """The facts of the tokenizer; digest: of the file, None where it was not read."""
    use_size = recipe.data.use_size or recipe.data.size
    known = resolved(recipe).get("teacher")
    return {
        "method": recipe.method,
        "name": kind,
        "codebook_size": tokenizer.quantizer.codebook_size,
        "code_dim": tokenizer.quantizer.code_dim,
        "train_size": recipe.data.size,
        "use_size": use_size,
        "grid": list(tokenizer.grid(use_size)),
        "has_decoder": tokenizer.pixel_decoder is not None,
        "classes": [],
        "teacher": {"name": known["name"], "sha256": None, "feature_dim": form.feature_dim} if known else None,
        "imported": {"format": kind, "sha256": digest},
        "parameters": {name: build.parameter_count(part) for name, part in tokenizer.named_children()},
    }
