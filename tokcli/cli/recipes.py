"""The recipes that come with tok: list, show and check them against every stage."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokcli.errors import TokError
from tokcli.recipe import explain
from tokcli.recipe.check import InvalidRecipe
from tokcli.recipe.check import check as check_recipe
from tokcli.recipe.yaml import find_recipe, read_yaml, recipe_files, recipe_name
from tokcli.registry import nearest


def listing() -> str:
    """Every recipe with the first line of its header."""
    lines = []
    for path in recipe_files():
        first = path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
        lines.append(f"{recipe_name(path):<36}{first}")
    return "\n".join(lines)


def text(name: str) -> str:
    """A recipe's file as it is, header included."""
    path = find_recipe(name, preset="", name="")
    read_yaml(path)
    return path.read_text(encoding="utf-8").rstrip()


def check(name: str | None) -> str:
    """Check one recipe, or all of them, against the code, up to building their networks.

    Raises:
        InvalidRecipe: with every fault of every file.
    """
    paths = [find_recipe(name, preset="", name="")] if name else recipe_files()
    faults = []
    for path in paths:
        try:
            recipe = check_file(path)
        except TokError as error:
            faults += str(error).split("\n")
            continue
        try:
            rehearse(recipe)
        except TokError as error:
            faults.append(f"{path}: {error}")
    if faults:
        raise InvalidRecipe(faults)
    return f"{len(paths)} recipes are valid" if len(paths) != 1 else f"{paths[0]} is valid"


def check_file(path: Path) -> Any:
    """The validated recipe in a file.

    Raises:
        TokError: of an unknown stage or method, or invalid.
    """
    from tokcli.methods import resolve

    tree = read_yaml(path)
    model, families = model_of(tree, str(path))
    return check_recipe(model, tree, str(path), families, resolve)


def rehearse(recipe: Any) -> None:
    """Build what a checked recipe asks for, without numbers and inputs.

    Raises:
        TokError: values that do not go together, as the command of its stage would say.
    """
    from tokcli.measure.extractors import check_extractors
    from tokcli.methods import method_class
    from tokcli.stages import train_decoder, train_proposal, train_tokenizer

    if recipe.stage == "tokenizer":
        kind = method_class(recipe.method)
        train_tokenizer.rehearse(kind, kind.settled(recipe))
    elif recipe.stage == "decoder":
        train_decoder.rehearse(recipe)
    elif recipe.stage == "proposal":
        train_proposal.rehearse(recipe)
    elif recipe.stage == "eval":
        check_extractors(recipe.eval.extractors, None)
    elif recipe.stage == "sample":
        _sampled(recipe)


def _sampled(recipe: Any) -> None:
    """A recipe of stage sample must fit one kind of proposal network."""
    from tokcli.proposals import PROPOSALS
    from tokcli.sampling.sample_recipe import sampling_of

    refused = []
    for network in PROPOSALS.values():
        try:
            sampling_of(recipe.sample, network)
            return
        except TokError as error:
            refused.append(error)
    raise refused[-1]


def _models() -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """The recipe model and the component families of each stage but tokenizer, whose methods have their own."""
    from tokcli.methods import pixel_decoder
    from tokcli.sampling.sample_recipe import SampleRecipe
    from tokcli.stages import evaluate, tokenize, train_proposal, viz_codebook

    return {
        "decoder": (pixel_decoder.DecoderRecipe, pixel_decoder.FAMILIES),
        "tokens": (tokenize.TokensRecipe, {}),
        "proposal": (train_proposal.ProposalRecipe, train_proposal.FAMILIES),
        "sample": (SampleRecipe, {}),
        "eval": (evaluate.EvalRecipe, {}),
        "viz": (viz_codebook.VizRecipe, {}),
    }


def topics() -> dict[str, explain.Topic]:
    """Everything that `tok recipes --explain` explains, by name."""
    from tokcli.methods import METHODS

    methods = {f"tokenizer-{name}": (method.recipe_model, method.families) for name, method in METHODS.items()}
    return explain.topics(methods | _models())


def explanation(name: str | None) -> str:
    """The keys of a section or component, with type, range, default and meaning; without a name, what can be explained.

    The name of a family lists its components, and `quantizer.decay` is that key of every quantizer that has it.

    Raises:
        TokError: there is no such section, component or key.
    """
    known = topics()
    if name is None or name in known:
        return explain.contents(known) if name is None else explain.text(name, known[name])
    if family := {path: topic for path, topic in known.items() if path.startswith(f"{name}.")}:
        return explain.contents(family)
    section, _, key = name.rpartition(".")
    section = section or "recipe"  # of a key that stands in no section
    holders = {path: topic for path, topic in known.items() if f"{path}.".startswith(f"{section}.")}
    if found := {path: one for path, topic in holders.items() if (one := topic.only(key)).keys}:
        once = {tuple(one.keys): explain.text(path, one) for path, one in reversed(found.items())}
        return "\n\n".join(reversed(once.values()))
    of_section = [f"{section}.{key.name}" for topic in holders.values() for key in topic.keys]
    raise TokError(f"section '{name}'", "no such section or key", next=nearest(name, [*known, *of_section]))


def model_of(tree: Mapping[str, Any], where: str) -> tuple[Any, Mapping[str, Any]]:
    """The recipe model of a recipe's stage (and method), and its component families.

    Raises:
        TokError: there is no such stage or method.
    """
    from tokcli.methods import method_class

    stage, models = str(tree.get("stage")), _models()
    if stage == "tokenizer":
        method = method_class(str(tree.get("method")), f"{where}: method")
        return method.recipe_model, method.families
    if stage not in models:
        raise TokError(where, f"no such stage '{stage}'", next=f"Choose one of tokenizer, {', '.join(models)}")
    return models[stage]
