"""Fresh networks from recipes."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from tokcli.data.transforms import TRANSFORMS, Pad, Transform
from tokcli.errors import TokError
from tokcli.losses import LOSSES
from tokcli.models import (
    DECODERS,
    DISCRIMINATORS,
    ENCODERS,
    CodesAsFeatures,
    FeatureDecoder,
    LinearFeatures,
    TeacherEncoder,
    Tokenizer,
)
from tokcli.pretrained.teacher import build_teacher, teacher_file
from tokcli.proposals import CONDITIONS, PROPOSALS, Condition, NoCondition, Proposal, TextCondition
from tokcli.quantizers import QUANTIZERS
from tokcli.recipe.check import component_model
from tokcli.recipe.sections import Component, Data
from tokcli.registry import lookup

M = TypeVar("M", bound=nn.Module)


FEATURE_DECODERS = {"feature": FeatureDecoder, "linear": LinearFeatures}


WEIGHTS_FLAGS = {"vgg16": "vgg", "inception": "inception"}  # networks whose file has a flag of its own


def component(family: str, table: Mapping[str, Any], section: Mapping[str, Any], *supplied: Any) -> Any:
    """`table[section["name"]](*supplied, **other keys)`."""
    factory = lookup(family, table, section["name"])
    keys = {key: value for key, value in section.items() if key != "name"}
    # the recipe's lists become tuples where the constructor wants them
    checked = dict(component_model(factory).model_validate_json(json.dumps(keys)))
    try:
        return factory(*supplied, **checked)
    except (ValueError, RuntimeError, TypeError) as error:
        large = "overflow" in str(error).lower()  # PyTorch's word for more bytes than 64 bits count
        if not large and not isinstance(error, ValueError):  # which says that values do not go together
            raise
        fault = "its sizes make a network that no memory holds" if large else str(error)
        step = f"Change its keys: tok recipes --explain {family}.{section['name']} lists them"
        raise TokError(f"{family} {section['name']}", fault, next=step) from None


def build_transform(data: Data) -> Transform:
    """The transform that a recipe's section `data` names, for its size."""
    transform: Transform = component("transform", TRANSFORMS, data.transform.model_dump(), data.size)
    return transform


def padding_fact(data: Data) -> dict[str, str]:
    """The fact that the transform of a recipe lays whole pictures on a square; {} where it crops them."""
    transform = build_transform(data)
    return {"padding": transform.colour} if isinstance(transform, Pad) else {}


def build_tokenizer(
    recipe: Mapping[str, Any], feature_dim: int | None, weights: Mapping[str, Path] | None = None
) -> Tokenizer:
    """A tokenizer with fresh weights.

    Args:
        recipe: a resolved recipe of stage tokenizer.
        feature_dim: width of the teacher's features that it learns; None: it learns none.
        weights: files given by flags, for an encoder made of a pretrained network; None: random ones, for plans and where weights are
            loaded later.
    """
    torch.manual_seed(recipe["seed"])
    size = recipe["data"]["size"]
    if recipe["encoder"].get("image_size", size) != size:
        raise TokError(
            "encoder.image_size",
            f"must be data.size = {size}",
            got=str(recipe["encoder"]["image_size"]),
            next=f"Set one to the other: --set encoder.image_size={size}, or --set data.size={recipe['encoder']['image_size']}",
        )
    quantizer = component("quantizer", QUANTIZERS, recipe["quantizer"])
    own = _weights_of(recipe["encoder"], weights, teacher_file)
    encoder = component("encoder", ENCODERS, recipe["encoder"], quantizer.code_dim, *own)
    grid, code_dim = encoder.grid(size), quantizer.code_dim
    to_features, to_pixels = decoder_sections(recipe, feature_dim)
    features = pixels = None
    if to_features is not None:
        features = component("decoder", FEATURE_DECODERS, to_features, code_dim, feature_dim, grid)
    if to_pixels is not None:
        pixels = component("decoder", DECODERS, to_pixels, code_dim, grid, size)
    return Tokenizer(encoder, quantizer, features, pixels)


def decoder_sections(
    recipe: Mapping[str, Any], feature_dim: int | None
) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """The sections of the decoder to features and of that to pixels; None: there is none."""
    if recipe["method"] == "joint":
        pixels = recipe["decoder"] if recipe["objective"]["pixels"] else None
        return (recipe["feature_decoder"] if feature_dim is not None else None), pixels
    return (None, recipe["decoder"]) if feature_dim is None else (recipe["decoder"], None)


def build_clustering(recipe: Mapping[str, Any], weights: Path | Literal["random"] | None) -> Tokenizer:
    """A tokenizer whose encoder is a frozen teacher, with a fresh codebook.

    Args:
        recipe: a resolved recipe of method cluster; `quantizer.code_dim` null is the width of the teacher's features.
        weights: the teacher's file; "random" where they are loaded or not needed; None: looked for.

    Raises:
        TokError: codes and features differ in width.
    """
    torch.manual_seed(recipe["seed"])
    section = {key: value for key, value in recipe["teacher"].items() if key != "name"}
    teacher = build_teacher(recipe["teacher"]["name"], section, weights)
    encoder = TeacherEncoder(teacher, recipe["data"]["size"], tuple(recipe["grid"]) if recipe.get("grid") else None)
    width = recipe["quantizer"].get("code_dim")
    if width not in (None, encoder.code_dim):
        raise TokError(
            "quantizer.code_dim",
            f"must be the width of the teacher's features, {encoder.code_dim}",
            got=str(width),
            next="Leave it out: --set quantizer.code_dim=null",
        )
    quantizer = component("quantizer", QUANTIZERS, {**recipe["quantizer"], "code_dim": encoder.code_dim})
    return Tokenizer(encoder, quantizer, CodesAsFeatures())


def decoder_sizes(data: Data, decoder: Component, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a recipe of stage decoder that must be others for a tokenizer's images and tokens, as dotted key -> value.

    Stages of convolutions are left out, or the first one is repeated, where the grid is doubled to the image: those at the
    image's resolution stay.

    Args:
        data, decoder: sections of the recipe.
        facts: of the tokenizer: pixels of its images, what they are laid on, its tokens.
    """
    size, grid, padding = facts["use_size"], facts["grid"], facts.get("padding")
    found: dict[str, Any] = {} if data.size == size else {"data.size": size}
    if (data.transform.keys.get("colour", "white") if data.transform.name == "pad" else None) != padding and padding:
        found["data.transform"] = {"name": "pad", "colour": padding, "flip": data.transform.keys.get("flip", False)}
    widths, doublings = decoder.keys.get("widths"), (size // grid[0]).bit_length() - 1
    if isinstance(widths, list) and widths and grid[0] << doublings == size and len(widths) != doublings + 1:
        found["decoder.widths"] = ([widths[0]] * (doublings + 1 - len(widths)) + widths)[-doublings - 1 :]
    return found


def build_decoder(recipe: Mapping[str, Any], code_dim: int, grid: tuple[int, int], size: int) -> nn.Module:
    """A pixel decoder with fresh weights.

    Args:
        recipe: a resolved recipe of stage decoder.
        code_dim, grid: of the codes that it reads.
        size: pixels of the images that it writes.

    Raises:
        TokError: the network writes images of another size.
    """
    torch.manual_seed(recipe["seed"])
    decoder: nn.Module = component("decoder", DECODERS, recipe["decoder"], code_dim, grid, size)
    return decoder


def condition_of(recipe: Mapping[str, Any]) -> Condition:
    """What a recipe of stage proposal conditions its network on; classes, where it is older than that section."""
    condition: Condition = component("condition", CONDITIONS, recipe.get("condition", {"name": "class"}))
    return condition


def build_proposal(recipe: Mapping[str, Any], codebook_size: int, grid: tuple[int, int], classes: int) -> Proposal:
    """A proposal network with fresh weights, for tokens of that codebook and grid and images of so many classes."""
    torch.manual_seed(recipe["seed"])
    condition = condition_of(recipe)
    text = condition if isinstance(condition, TextCondition) else None
    classes = 0 if isinstance(condition, NoCondition) else classes
    proposal: Proposal = component("proposal", PROPOSALS, recipe["proposal"], codebook_size, grid, classes, text)
    return proposal


def build_losses(
    terms: Mapping[str, Mapping[str, Any]], weights: Mapping[str, Path] | None, device: torch.device
) -> list[tuple[str, float, nn.Module]]:
    """The recipe's loss terms as (name, weight, frozen module).

    Args:
        terms: the recipe's section `loss`.
        weights: files given by flags; None: random ones, for plans.
        device: where they run.
    """
    built: list[tuple[str, float, nn.Module]] = []
    for name, section in terms.items():
        keys = {key: value for key, value in section.items() if key not in ("weight",)}
        loss = lookup("loss", LOSSES, name)(*_weights_of(keys, weights), **keys)
        built.append((name, float(section["weight"]), frozen_on(loss, device)))
    return built


def build_discriminator(section: Mapping[str, Any], weights: Mapping[str, Path] | None, seed: int) -> nn.Module:
    """The discriminator that a recipe's section names, with fresh weights; arguments as in `build_losses`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built: nn.Module = component("discriminator", DISCRIMINATORS, section, *_weights_of(section, weights))
    return built


def _network_file(weights: Mapping[str, Path], network: str) -> Path | None:
    """The file that a flag of its own gives for a network of losses and discriminators."""
    return weights.get(WEIGHTS_FLAGS.get(network, ""))


def _weights_of(
    keys: Mapping[str, Any],
    weights: Mapping[str, Path] | None,
    file_of: Callable[[Mapping[str, Path], str], Path | None] = _network_file,
) -> list[Any]:
    """The argument `weights` of a component made of a pretrained network; nothing for any other."""
    if "network" not in keys:
        return []
    return ["random" if weights is None else file_of(weights, keys["network"])]


def frozen_on(module: M, device: torch.device) -> M:
    """The module on the device, in eval mode, without gradients."""
    return module.to(device).eval().requires_grad_(False)


def parameter_count(module: nn.Module | None, trainable: bool | None = None) -> int:
    """How many parameters a module has; only the trainable or only the frozen ones if asked."""
    if module is None:
        return 0
    return sum(p.numel() for p in module.parameters() if trainable is None or p.requires_grad == trainable)
