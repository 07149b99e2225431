"""Recipes: strict YAML in, every error at once, a resolved recipe out that repeats the run.

A stage describes its recipe by a pydantic model. A section that names a component (`quantizer: {name: vq, ...}`) is checked
against the keyword-only arguments of that component's constructor, so that a new component needs no second declaration.
"""

import functools
import inspect
import json
import logging
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError, create_model

from tokcli.errors import TokError
from tokcli.registry import nearest
from tokcli.schema import Recipe, Section

M = TypeVar("M", bound=BaseModel)
R = TypeVar("R", bound=Recipe)
Factory = Callable[..., Any]
log = logging.getLogger("tok")
KEPT = ("image_size", "grid", "projection", "codebook_size", "code_dim")  # what a component takes and gives
LARGEST_FILE = 1 << 20  # a recipe is a page of text; a larger file is a mistake or an attack


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and aliases, and reads `1e-4` as a float (YAML 1.1 reads text)."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # ten lines of aliases can stand for gigabytes, or for themselves
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "a recipe has no anchors and aliases", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is no single word", key_node.start_mark)
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def recipes_root() -> Path:
    """The folder of shipped recipes: inside the installed package, or beside it in a checkout."""
    installed = Path(__file__).parent / "recipes"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "recipes"


def find_recipe(choice: str | None, *, folder: str, name: str) -> Path:
    """The file of a recipe: a path, a NAME or FOLDER/NAME among the shipped ones, or the default `folder/name`.

    Args:
        choice: what `--recipe` was given, or None.
        folder: the data set's folder of recipes; one without its own uses `folder`, which is said once.
        name: the stage and its variant, such as `tokenizer-vqkd`.

    Raises:
        TokError: there is no such recipe.
    """
    root = recipes_root()
    if choice is None:
        home = folder if (root / folder / f"{name}.yaml").is_file() else "folder"
        if home != folder:
            _say_fallback(home, folder, name)
        path = root / home / f"{name}.yaml"
        if not path.is_file():
            raise TokError(f"recipe {home}/{name}", "there is no such recipe", next="tok recipes lists them")
        return path
    path = Path(choice)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise TokError(f"--recipe {choice}", "no such file", next="tok recipes lists those that come with tok")
    for candidate in (root / f"{choice}.yaml", root / folder / f"{choice}.yaml"):
        if candidate.is_file():
            return candidate
    close = nearest(choice, [str(p.relative_to(root))[:-5] for p in root.glob("*/*.yaml")])
    hint = close if close.startswith("Did") else "tok recipes lists them"
    raise TokError(f"--recipe {choice}", "no such recipe", next=hint)


@functools.cache  # `tok sample --sweep` looks for it once a point
def _say_fallback(home: str, folder: str, name: str) -> None:
    log.info("recipe: %s/%s (%s has none)", home, name, folder)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        TokError: missing, too large, not YAML, a key given twice, or no mapping.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise TokError(str(path), "is too large for a recipe", got=f"{path.stat().st_size} bytes")
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  a SafeLoader
    except OSError as error:
        raise TokError(str(path), "cannot be read", got=error.strerror or str(error)) from None
    except RecursionError:
        raise TokError(str(path), "is not a valid recipe", got="brackets nested too deeply") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise TokError(where, "is not a valid recipe", got=problem) from None
    if not isinstance(loaded, dict):
        raise TokError(str(path), "is not a mapping of recipe keys", got=type(loaded).__name__)
    return loaded


def override(
    tree: dict[str, Any],
    assignments: Mapping[str, Any],
    families: Mapping[str, Mapping[str, Factory]] | None = None,
    resolve: Callable[[str], Factory | None] = lambda name: None,
    say: Callable[..., None] = log.info,
) -> None:
    """Set dotted keys (`optim.lr`) in a nested mapping, making sections that are missing.

    Naming another component (`teacher.name=clip`) keeps what the one before takes and gives (`KEPT`: pixels, grid, codes),
    where the new one has such a key. The other keys say how the old one works inside (layers, widths, weights of terms); they
    are dropped.

    Args:
        families, resolve: see `check`; of a component that stands in neither nothing is kept.
        say: is told what was kept and dropped.
    """
    names_first = sorted(assignments.items(), key=lambda item: not item[0].endswith(".name"))
    for dotted, value in names_first:
        *sections, last = dotted.split(".")
        node = tree
        for section in sections:
            child = node.setdefault(section, {})
            if not isinstance(child, dict):
                raise TokError(f"--set {dotted}", f"'{section}' is a value, not a section", got=repr(child))
            node = child
        before = node.get(last)
        if last == "name" and before not in (None, value):
            section = ".".join(sections)
            table = (families or {}).get(section, {})
            factory = (table.get(value) or resolve(value)) if isinstance(value, str) else None
            given = [key.removeprefix(f"{section}.") for key in assignments]
            _succeed(section, node, value, component_model(factory).model_fields if factory else {}, given, say)
        elif isinstance(before, Mapping) and isinstance(value, Mapping):
            gone = {key: v for key, v in before.items() if key not in value and v is not None}
            if gone:
                say("%s: replaced as a whole. Dropped: %s", dotted, _pairs(gone))
        node[last] = value


def _succeed(
    section: str, node: dict[str, Any], name: Any, fields: Mapping[str, Any], given: Collection[str],
    say: Callable[..., None],
) -> None:  # fmt: skip
    """Clear a section for another component but for what it shares with the one before.

    Args:
        fields: the keys that the new one has.
        given: those that are set anew anyway.
    """
    old = {key: value for key, value in node.items() if key != "name" and key not in given}
    kept = {key: value for key, value in old.items() if key in KEPT and key in fields}
    lost = {key: v for key, v in old.items() if key not in kept and v != getattr(fields.get(key), "default", None)}
    if kept or lost:
        parts = [f"{word}: {_pairs(keys)}." for word, keys in (("Kept", kept), ("Dropped", lost)) if keys]
        say("%s: %s in place of %s. %s", section, name, node["name"], " ".join(parts))
    node.clear()
    node.update(kept)


def _pairs(keys: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_shown(value)}" for key, value in keys.items())


def parse_set(assignments: tuple[str, ...], flag: str = "") -> dict[str, Any]:
    """`("optim.lr=1e-4", ...)` as {dotted key: value}, values read as YAML.

    Args:
        flag: what was written, where it is not `--set` and an assignment.

    Raises:
        TokError: an assignment without "=" or with a value that is no YAML.
    """
    parsed = {}
    for text in assignments:
        key, sign, value = text.partition("=")
        if not sign or not all(key.strip().split(".")):
            raise TokError(f"--set {text}", "expected KEY=VALUE", next="for example --set optim.lr=1e-4")
        try:
            parsed[key.strip()] = yaml.load(value, Loader=_Loader)  # noqa: S506  a SafeLoader
        except yaml.YAMLError as error:
            problem = str(getattr(error, "problem", None) or error).splitlines()[0]
            raise TokError(flag or f"--set {text}", "the value is not YAML", got=problem) from None
    return parsed


class InvalidRecipe(TokError):
    """All faults of one recipe, a line each."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("recipe", "invalid")
        self.args = ("\n".join(dict.fromkeys(lines)),)


def component_model(factory: Factory) -> type[Section]:
    """A strict model of a constructor's keyword-only arguments: the keys a recipe may give it."""
    function = factory.__init__ if inspect.isclass(factory) else factory  # type: ignore[misc]
    hints = typing.get_type_hints(function, include_extras=True)  # with their ranges
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            fields[parameter.name] = (hints.get(parameter.name, Any), default)
    return create_model(getattr(factory, "__name__", "keys"), __base__=Section, **fields)


def leaving_out(factory: type, key: str) -> Factory:
    """A component whose recipe may leave out a required key, or say null, because it follows from others.

    What builds the component says which value it has then.
    """

    def build(*supplied: Any, **keys: Any) -> Any:
        return factory(*supplied, **keys)

    signature = inspect.signature(factory)
    hints = typing.get_type_hints(factory.__init__, include_extras=True)  # type: ignore[misc]
    parameters = [p.replace(default=None) if p.name == key else p for p in signature.parameters.values()]
    build.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    build.__annotations__ = {**hints, key: hints[key] | None}
    return build


def _validate(model: type[M], tree: Mapping[str, Any]) -> M:
    # JSON mode: strict about types, yet a YAML list may stand for a tuple and 1 for 1.0
    return model.model_validate_json(json.dumps(dict(tree), default=str), strict=True)


def _unknown_key(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    owner: Any = model
    for part in location[:-1]:
        field = getattr(owner, "model_fields", {}).get(str(part))
        owner = field.annotation if field else None
    return nearest(str(location[-1]), getattr(owner, "model_fields", None) or model.model_fields)


def _key(model: Any, location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A fault's location up to a value of several types, of which pydantic names each that it tried."""
    kind = model
    for depth, part in enumerate(location):
        kinds = [k for k in typing.get_args(kind) if k is not type(None)]
        union = typing.get_origin(kind) in (typing.Union, types.UnionType)
        if union and len(kinds) > 1:
            return location[:depth]
        kind = kinds[0] if union else kind
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
            lines.append(f"{path}: this key is missing.")
        elif item["type"] == "value_error":  # a validator of ours: its own words
            lines.append(f"{path or 'recipe'}: {item['msg'].removeprefix('Value error, ').rstrip('.')}.")
        else:
            message = item["msg"].removeprefix("Input ").rstrip(".")
            lines.append(f"{path}: {message}. Got {_shown(item['input'])}.")
    for path, items in tried.items():
        wanted = dict.fromkeys(item["msg"].removeprefix("Input should be ") for item in items)
        outermost = min(items, key=lambda item: len(item["loc"]))
        lines.append(f"{path}: should be {' or '.join(wanted)}. Got {_shown(outermost['input'])}.")
    return lines


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)[:80]


def _check_component(
    path: str, name: str, keys: Any, table: Mapping[str, Factory], resolve: Callable[[str], Factory | None]
) -> tuple[dict[str, Any], list[str]]:
    """One component's keys with its defaults filled in, and what is wrong with them."""
    factory = table.get(name) or resolve(name)
    if factory is None:
        kind = path.removesuffix(f".{name}").split(".")[-1]
        return {}, [f"{path}: no such {kind} '{name}'. {nearest(name, table)}"]
    if not isinstance(keys, Mapping):
        return {}, [f"{path}: expected keys and values. Got {json.dumps(keys, default=str)}."]
    model = component_model(factory)
    try:
        return _validate(model, keys).model_dump(mode="json"), []
    except ValidationError as error:
        return {}, _faults(error, model, path)


def _check_terms(
    section: str, value: Mapping[str, Any], table: Mapping[str, Factory], resolve: Callable[[str], Factory | None]
) -> tuple[dict[str, Any], list[str]]:
    """A weighted sum of named terms; `l1: 1.0` is short for `l1: {weight: 1.0}`."""
    terms, lines = {}, []
    for name, entry in value.items():
        keys = dict(entry) if isinstance(entry, Mapping) else {"weight": entry}
        weight = keys.pop("weight", 1.0)
        filled, faults = _check_component(f"{section}.{name}", str(name), keys, table, resolve)
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            faults.append(f"{section}.{name}.weight: should be a number. Got {json.dumps(weight, default=str)}.")
        elif not 0 <= weight < math.inf:
            faults.append(f"{section}.{name}.weight: should be finite and at least 0. Got {weight}.")
        terms[str(name)] = {"weight": weight, **filled}
        lines += faults
    return terms, lines


def check(
    model: type[R],
    tree: Mapping[str, Any],
    where: str,
    families: Mapping[str, Mapping[str, Factory]],
    resolve: Callable[[str], Factory | None] = lambda name: None,
) -> R:
    """Validate a recipe against its stage's model and its components' constructors, defaults filled in.

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
            filled, faults = _check_component(section, value["name"], keys, table, resolve)
            owner[last] = {"name": value["name"], **filled}
        else:
            owner[last], faults = _check_terms(section, value, table, resolve)
        lines += faults
    try:
        recipe = _validate(model, tree)
    except ValidationError as error:
        lines = _faults(error, model, "") + lines
    if lines:
        raise InvalidRecipe([f"{where}: {line}" for line in lines])
    return recipe


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain YAML values: complete, and itself a valid recipe."""
    plain: dict[str, Any] = recipe.model_dump(mode="json")
    return plain


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML text."""
    return yaml.safe_dump(resolved(recipe), sort_keys=False, allow_unicode=True, width=120)
