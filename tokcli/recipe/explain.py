"""What the keys of a recipe's sections mean: type, range and default from annotations, the meaning from docstrings."""

import inspect
import json
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

from tokcli.recipe.check import BOUNDS, bound_in_words, component_model
from tokcli.recipe.sections import Component, Recipe, Section

NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "any", type(None): "null"}
ENTRY = re.compile(r"^    (\w+(?:, \w+)*): (.*)")  # of a docstring's Args


class Key(NamedTuple):
    """One key of a section."""

    name: str
    type: str
    range: str  # "" where the type says all
    default: str
    meaning: str


WEIGHT = Key("weight", "number", "at least 0", "1.0", "weight of the term in the sum of losses.")


@dataclass(frozen=True)
class Topic:
    """Something that can be explained: a section, or one of the components that it may name."""

    title: str
    keys: list[Key]
    file: str  # where it is written

    def only(self, key: str) -> "Topic":
        """It with one of its keys, or with none."""
        return Topic(self.title, [known for known in self.keys if known.name == key], self.file)


def topics(
    stages: Mapping[str, tuple[type[Recipe], Mapping[str, Mapping[str, Callable[..., Any]]]]],
) -> dict[str, Topic]:
    """Everything that a recipe may hold, by the name to ask for: `optim`, `gan`, `quantizer.vq`, `recipe.decoder`.

    Args:
        stages: by the names of their recipes, the models and the families of components; see `check`.
    """
    models: dict[str, type[BaseModel]] = {}  # each once, under the first path that leads to it
    for name, (model, _) in stages.items():
        if model in models.values():
            continue  # methods that share their recipe
        models[f"recipe.{name}"] = model
        for path, part in _sections(model):
            known = models.get(path)
            if part not in models.values() and (known is None or issubclass(part, known)):
                models[path] = part
    found: dict[str, Topic] = {
        path: Topic(_title(model), keys(model, model), _file(model)) for path, model in models.items()
    }
    for model, families in stages.values():
        for section, table in families.items():
            one = len({*table.values()}) == 1 and len(table) > 1  # all names are of one class, as all teachers are
            for component, factory in table.items():
                path = section if one else f"{section}.{component}"
                weighed = [WEIGHT] if _is_sum(model, section) else []
                own = keys(component_model(factory), factory)
                found.setdefault(path, Topic(_title(factory), [*weighed, *own], _file(factory)))
    return dict(sorted(found.items()))


def _is_sum(model: type[BaseModel], section: str) -> bool:
    """Whether a section is a sum of named terms, each with a weight."""
    field = model.model_fields.get(section)
    return field is not None and typing.get_origin(field.annotation) is dict


def _sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        for kind in _kinds(field.annotation):
            if inspect.isclass(kind) and issubclass(kind, Section):
                yield f"{prefix}{name}", kind
                yield from _sections(kind, f"{prefix}{name}.")


def keys(model: type[BaseModel], documented: Any) -> list[Key]:
    """The keys of a model, explained by the docstring of the model or of the constructor that it was made from."""
    meanings = meaning_of(documented)
    return [
        Key(
            name,
            type_of(field.annotation),
            range_of(field),
            default_of(field),
            field.description or meanings.get(name, ""),
        )
        for name, field in model.model_fields.items()
    ]


def meaning_of(documented: Any) -> dict[str, str]:
    """The entries under `Args:` in the docstring of a class or function, and of the classes that it inherits from."""
    found: dict[str, str] = {}
    for owner in reversed(getattr(documented, "__mro__", [documented])):
        if owner not in (object, BaseModel):
            own = _entries(inspect.cleandoc(owner.__doc__ or ""))
            found |= {name: text for name, text in own.items() if name not in found or not text.startswith("see `")}
    return found


def _entries(docstring: str) -> dict[str, str]:
    _, _, rest = docstring.partition("\nArgs:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in rest.splitlines():
        entry = ENTRY.match(line)
        if line.strip() and not line.startswith("    "):
            break
        if entry:
            names = entry[1].split(", ")
        for name in names if line.strip() else ():
            found[name] = f"{found.get(name, '')} {entry[2] if entry else line.strip()}".strip()
    return {name: _as_yaml(text) for name, text in found.items()}


def _as_yaml(text: str) -> str:
    for python, yaml in (("None", "null"), ("True", "true"), ("False", "false")):
        text = re.sub(rf"\b{python}\b", yaml, text)
    return text


def _file(documented: Any) -> str:
    return f"{inspect.unwrap(documented).__module__.replace('.', '/')}.py"


def _title(documented: Any) -> str:
    return inspect.cleandoc(documented.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def _kinds(annotation: Any) -> list[Any]:
    """The types that a value may have, without their ranges."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _kinds(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(annotation) for kind in _kinds(part)]
    return [annotation]


def type_of(annotation: Any) -> str:
    """A type in words: "integer or null", "list of numbers", `cosine` or `euclidean`."""
    return " or ".join(dict.fromkeys(_named(kind) for kind in _kinds(annotation)))


def _named(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " or ".join(json.dumps(value).strip('"') for value in inner)
    if origin is tuple:
        return f"[{', '.join(map(type_of, inner))}]"
    if origin is list:
        return f"list of {type_of(inner[0])}"
    if origin is dict:
        return f"{type_of(inner[0])} to {type_of(inner[1])}"
    if inspect.isclass(kind) and issubclass(kind, Component):
        return "a component by name"
    if inspect.isclass(kind) and issubclass(kind, BaseModel):
        return "a section"
    return NAMES[kind]


def range_of(field: FieldInfo) -> str:
    """A field's range in words: "at least 1", "over 0 and under 1"; empty where its type says all."""
    return "; ".join(dict.fromkeys(_ranges(field.annotation, field.metadata)))


def _ranges(annotation: Any, metadata: Any) -> Iterator[str]:
    bounds = [part for data in metadata for part in (data.metadata if isinstance(data, FieldInfo) else [data])]
    given = {name: getattr(b, name) for name in BOUNDS for b in bounds if hasattr(b, name)}
    said = [bound_in_words(name, value, whole=int in _kinds(annotation)) for name, value in given.items()]
    if said:
        yield " and ".join(said)
    for bound in bounds:
        if hasattr(bound, "min_length"):
            yield f"at least {bound.min_length} of them"
        if isinstance(bound, AfterValidator) and hasattr(bound.func, "text"):
            yield bound.func.text
    if typing.get_origin(annotation) is Annotated:
        inner, *own = typing.get_args(annotation)
        yield from _ranges(inner, own)
    elif typing.get_origin(annotation) is not Literal:
        for part in typing.get_args(annotation):
            yield from _ranges(part, [])


def default_of(field: FieldInfo) -> str:
    """A field's default as YAML, or "required"."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
    return json.dumps(value, ensure_ascii=False)


def contents(known: Mapping[str, Topic]) -> str:
    """Topics by name, a line each."""
    width = max(map(len, known)) + 2
    return "\n".join(f"{path:<{width}}{topic.title}" for path, topic in known.items())


def text(name: str, topic: Topic) -> str:
    """A topic for a terminal: a line of type, range and default for each key, its meaning under it."""
    lines = [f"{name}: {topic.title} ({topic.file})", ""]
    width = max((len(key.name) for key in topic.keys), default=0)
    for key in topic.keys:
        facts = [key.type, key.range, "required" if key.default == "required" else f"default {key.default}"]
        lines.append(f"{key.name:<{width}}  {', '.join(filter(None, facts))}")
        lines += textwrap.wrap(key.meaning, 100, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines if topic.keys else [*lines, "It has no keys."])


def markdown(name: str, topic: Topic) -> str:
    """A topic as a heading and a table."""
    lines = [f"### {name}", "", topic.title, ""]
    if topic.keys:
        lines += ["| key | type | range | default | meaning |", "|---|---|---|---|---|"]
    for key in topic.keys:
        default = key.default if key.default == "required" else f"`{key.default}`"
        cells = [f"`{key.name}`", key.type, key.range, default, key.meaning]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines).rstrip() + "\n"
