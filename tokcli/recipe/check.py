"""A recipe against the code: unknown keys, wrong types and values out of range, all at once."""

import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, NonNegativeFloat, ValidationError, create_model

from tokcli.errors import TokError
from tokcli.recipe.sections import Recipe, Section
from tokcli.registry import nearest
from tokcli.terminal import printable

Factory = Callable[..., Any]


R = TypeVar("R", bound=Recipe)


M = TypeVar("M", bound=BaseModel)


BOUNDS = {"gt": "over", "ge": "at least", "lt": "under", "le": "at most"}
"""A range's ends, as pydantic names them, in words."""


def bound_in_words(name: str, bound: float, *, whole: bool) -> str:
    """An end of the range of whole numbers or of any: "at least 1", "under 0.5"."""
    if whole and (name, bound) == ("gt", 0):
        return "at least 1"
    return f"{BOUNDS[name]} {bound:,}" if isinstance(bound, int) else f"{BOUNDS[name]} {bound:g}"


class InvalidRecipe(TokError):
    """All faults of one recipe, a line each."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("recipe", "is not valid", next="Mend these keys")
        self.args = ("\n".join(dict.fromkeys(map(printable, lines))),)


def _constructors(factory: Factory) -> list[Callable[..., Any]]:
    """What takes a component's keys, base classes first: a constructor that hands `**keys` on hands them to the next class."""
    if not inspect.isclass(factory):
        return [factory]
    found: list[Callable[..., Any]] = []
    for owner in factory.__mro__:
        if "__init__" in vars(owner):
            found.insert(0, vars(owner)["__init__"])
            if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(found[0]).parameters.values()):
                break
    return found


def key_parameters(factory: Factory) -> dict[str, inspect.Parameter]:
    """The keys that a recipe may give a component: keyword-only arguments, annotated with types and ranges.

    A class whose constructor takes `**keys` has those of the class it inherits from too, without the ones in its `fixed_keys`.
    """
    found: dict[str, inspect.Parameter] = {}
    for function in _constructors(factory):
        hints = typing.get_type_hints(function, include_extras=True)
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                found[name] = parameter.replace(annotation=hints.get(name, Any))
    fixed = getattr(factory, "fixed_keys", {})
    return {name: parameter for name, parameter in found.items() if name not in fixed}


def component_model(factory: Factory) -> type[Section]:
    """A strict model of `key_parameters`."""
    fields: dict[str, Any] = {
        name: (p.annotation, ... if p.default is p.empty else p.default) for name, p in key_parameters(factory).items()
    }
    return create_model(getattr(factory, "__name__", "keys"), __base__=Section, **fields)


def _as_given(name: str, keys: dict[str, Any]) -> dict[str, Any]:
    return keys


def leaving_out(factory: type, key: str) -> Factory:
    """A component whose recipe may leave out a required key, or say null, because it follows from others.

    What builds the component says which value it has then.
    """

    def build(*supplied: Any, **keys: Any) -> Any:
        return factory(*supplied, **keys)

    parameters = key_parameters(factory)
    parameters[key] = parameters[key].replace(default=None, annotation=parameters[key].annotation | None)
    build.settled = getattr(factory, "settled", _as_given)  # type: ignore[attr-defined]
    build.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    build.__annotations__ = {name: p.annotation for name, p in parameters.items()}
    return build


def _validate(model: type[M], tree: Mapping[str, Any]) -> M:
    # JSON mode: strict about types, yet a YAML list may stand for a tuple and 1 for 1.0
    return model.model_validate_json(json.dumps(dict(tree), default=str), strict=True)


def _unknown_key(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    owner: Any = model
    for part in location[:-1]:
        field = getattr(owner, "model_fields", {}).get(str(part))
        owner = field.annotation if field else None
    return _sentence(nearest(str(location[-1]), getattr(owner, "model_fields", None) or model.model_fields))


def _sentence(advice: str) -> str:
    return advice if advice.endswith("?") else f"{advice}."


def _bare(kind: Any) -> Any:
    """A type without its range."""
    return _bare(typing.get_args(kind)[0]) if typing.get_origin(kind) is typing.Annotated else kind


def _key(model: Any, location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A fault's location up to a value of several types, of which pydantic names each that it tried."""
    kind = model
    for depth, part in enumerate(location):
        kind = _bare(kind)
        kinds = [k for k in typing.get_args(kind) if k is not type(None)]
        union = typing.get_origin(kind) in (typing.Union, types.UnionType)
        if union and len(kinds) > 1:
            return location[:depth]
        kind = _bare(kinds[0]) if union else kind
        fields, inner = getattr(kind, "model_fields", {}), typing.get_args(kind)
        if part in fields:
            kind = fields[part].annotation
        else:  # of a list, or of a mapping
            kind = inner[0 if isinstance(part, int) else -1] if inner else None
    return location


def _faults(error: ValidationError, model: type[BaseModel], prefix: str) -> list[str]:
    lines = []
    tried: dict[str, list[Any]] = {}
    for item in error.errors():
        key = _key(model, item["loc"])
        path = ".".join(filter(None, [prefix, *map(str, key)]))
        if key != item["loc"]:
            tried.setdefault(path, []).append(item)
            continue
        if item["type"] == "extra_forbidden":
            lines.append(f"{path}: unknown key. {_unknown_key(model, item['loc'])}")
        elif item["type"] == "missing":
            lines.append(f"{path}: this key is missing. Set it: --set {path}=VALUE.")
        elif item["type"] == "value_error":  # a validator of ours: its own words
            lines.append(f"{path or 'recipe'}: {item['msg'].removeprefix('Value error, ').rstrip('.')}.{_advice(path)}")
        else:
            lines.append(f"{path}: {_message(item)}. Got {_shown(item['input'])}.{_advice(path)}")
    for path, items in tried.items():
        wanted = dict.fromkeys(_message(item).removeprefix("should be ") for item in items)
        outermost = min(items, key=lambda item: len(item["loc"]))
        lines.append(f"{path}: should be {' or '.join(wanted)}. Got {_shown(outermost['input'])}.{_advice(path)}")
    return lines


def _message(item: Any) -> str:
    """What a value should be; of ranges in the words that explain a key."""
    for name in BOUNDS:
        if name in item.get("ctx", {}):
            bound = item["ctx"][name]  # a float where the key takes floats
            return f"should be {bound_in_words(name, bound, whole=isinstance(bound, int))}"
    text = str(item["msg"]).removeprefix("Input ").removeprefix("List ")
    return text.partition(" after validation")[0].rstrip(".")


def _advice(path: str) -> str:
    """Where the range of a key is written."""
    keys = [part for part in path.split(".") if part and not part.isdigit()]  # digits: places in a list
    topic = ".".join(keys[:-1] if keys[1:] and keys[-1] == "name" else keys)
    return f" Run tok recipes --explain {topic}." if topic else ""


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)[:80]


class _Checked(typing.NamedTuple):
    """A section's keys with its defaults filled in, what is wrong with them, and the keys that `settled` gave a value."""

    keys: dict[str, Any]
    faults: list[str]
    settled: dict[str, Any]


def _check_component(
    path: str,
    name: str,
    keys: Any,
    table: Mapping[str, Factory],
    resolve: Callable[[str], Factory | None],
    **others: Any,
) -> _Checked:
    """One component.

    Args:
        others: keys that are not its constructor's: their types and defaults.
    """
    factory = table.get(name)
    if factory is None and (other := resolve(name)) in table.values():  # a teacher's name is no quantizer's
        factory = other
    if factory is None:
        kind = path.removesuffix(f".{name}").split(".")[-1]
        return _Checked({}, [f"{path}: no such {kind} '{name}'. {_sentence(nearest(name, table))}"], {})
    if not isinstance(keys, Mapping):
        return _Checked({}, [f"{path}: expected keys and values. Got {json.dumps(keys, default=str)}."], {})
    model = create_model("keys", __base__=component_model(factory), **others)
    try:
        filled = _validate(model, keys).model_dump(mode="json")
        values = getattr(factory, "settled", _as_given)(name, filled)
    except ValidationError as error:
        return _Checked({}, _faults(error, model, path), {})
    except TokError as error:
        return _Checked({}, [str(error)], {})
    return _Checked(values, [], {f"{path}.{key}": v for key, v in values.items() if v != filled[key]})


def _check_terms(
    section: str, value: Mapping[str, Any], table: Mapping[str, Factory], resolve: Callable[[str], Factory | None]
) -> _Checked:
    """A weighted sum of named terms; `l1: 1.0` is short for `l1: {weight: 1.0}`."""
    terms: dict[str, Any] = {}
    lines: list[str] = []
    settled: dict[str, Any] = {}
    for name, entry in value.items():
        keys = dict(entry) if isinstance(entry, Mapping) else {"weight": entry}
        weight = (NonNegativeFloat, 1.0)
        found = _check_component(f"{section}.{name}", str(name), keys, table, resolve, weight=weight)
        terms[str(name)] = {"weight": found.keys.pop("weight", 1.0), **found.keys}
        lines += found.faults
        settled |= found.settled
    return _Checked(terms, lines, settled)


def check(
    model: type[R],
    tree: Mapping[str, Any],
    where: str,
    families: Mapping[str, Mapping[str, Factory]],
    resolve: Callable[[str], Factory | None] = lambda name: None,
) -> R:
    """Validate a recipe against its stage's model and its components' constructors, defaults filled in.

    A component whose default for a key is null, where that stands for a value which the other keys or its name decide, has a
    static method `settled(name, keys)` that returns the keys with these values: a recipe records them.

    Args:
        model: the stage's recipe.
        tree: what the YAML file and the command line say.
        where: the file, for messages.
        families: section (`data.transform` for a nested one) -> the family's dict. A section is `{name: vq, ...}`, or `{term: {weight: 1.0, ...}, ...}`
            for a sum of named terms.
        resolve: constructors of names outside the dicts, such as `timm:NAME`.

    Raises:
        InvalidRecipe: with one line per fault.
    """
    tree = json.loads(json.dumps(dict(tree), default=str))
    lines: list[str] = []
    settled: dict[str, Any] = {}
    for section, table in families.items():
        *above, last = section.split(".")
        owner: Any = tree
        for part in above:
            owner = owner.get(part) if isinstance(owner, Mapping) else None
        value = owner.get(last) if isinstance(owner, Mapping) else None
        if not isinstance(value, Mapping) or not isinstance(value.get("name", ""), str):
            continue  # missing or of a wrong type: the stage's model says so
        if "name" in value:
            keys = {k: v for k, v in value.items() if k != "name"}
            found = _check_component(section, value["name"], keys, table, resolve)
            owner[last] = {"name": value["name"], **found.keys}
        else:
            found = _check_terms(section, value, table, resolve)
            owner[last] = found.keys
        lines += found.faults
        settled |= found.settled
    try:
        recipe = _validate(model, tree)
    except ValidationError as error:
        lines = _faults(error, model, "") + lines
    if lines:
        raise InvalidRecipe([f"{where}: {line}" for line in lines])
    recipe.settled.update(settled)
    return recipe


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain YAML values: complete, and itself a valid recipe."""
    plain: dict[str, Any] = recipe.model_dump(mode="json")
    return plain
