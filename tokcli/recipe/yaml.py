"""Recipes on disk: found by name or path, read strictly, written so that they repeat the run."""

import functools
import json
import logging
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from tokcli.errors import TokError
from tokcli.recipe.check import _shown, component_model, resolved
from tokcli.recipe.sections import Recipe
from tokcli.registry import nearest

log = logging.getLogger("tok")


FALLBACK = "folder/base"  # has a recipe for every method
LARGEST_FILE = 1 << 18  # bytes: a recipe is a page of text; a larger file is a mistake or an attack


OCTAL = re.compile(r"[-+]?0[0-7_]+")


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys, aliases and numbers in base 8 or 60, and reads `1e-4` as a float (YAML 1.1 reads text)."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # ten lines of aliases can stand for gigabytes, or for themselves
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "a recipe has no anchors and aliases", mark)
        return super().compose_node(parent, index)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = int(super().construct_yaml_int(self._as_written(node)))
        if abs(value) >= 1 << 64:  # no key holds more; a seed beyond 63 bits is refused by its range
            raise yaml.constructor.ConstructorError(None, None, "a whole number of more than 64 bits", node.start_mark)
        return value

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        return float(super().construct_yaml_float(self._as_written(node)))

    def _as_written(self, node: yaml.ScalarNode) -> yaml.ScalarNode:
        """Refuse numbers that YAML 1.1 reads as others than they seem: 010 as 8, 1:30 as 90."""
        text = str(node.value)
        if ":" in text or OCTAL.fullmatch(text):
            problem = f"{text} would be read as another number, by YAML's rule for base {60 if ':' in text else 8}; write it in decimal, or in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is no single word", key_node.start_mark)
            key = self.construct_object(key_node, deep=deep)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"a key is no text: {key}", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def recipes_root() -> Path:
    """The folder of shipped recipes: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def recipe_files() -> list[Path]:
    """All shipped recipes."""
    return sorted(recipes_root().rglob("*.yaml"))


def recipe_name(path: Path) -> str:
    """What `--recipe` calls a shipped recipe, such as `folder/small/tokenizer-vqkd`."""
    return path.relative_to(recipes_root()).with_suffix("").as_posix()


def presets() -> list[str]:
    """The presets: folders with a recipe for every stage, such as `openmoji` or `folder/small`."""
    return sorted({recipe_name(path).rpartition("/")[0] for path in recipe_files()})


def is_preset(choice: str) -> bool:
    """Whether `--recipe` names a preset, not a recipe."""
    return choice.rstrip("/") in presets() and not Path(choice).is_file()


def preset_named(choice: str | None) -> str | None:
    """The preset that `--recipe` names, by itself or by one of its recipes; None where it names a file of one's own."""
    if choice is None or is_preset(choice):
        return choice and choice.rstrip("/")
    head = choice.rpartition("/")[0]
    return head if head and (recipes_root() / f"{choice}.yaml").is_file() else None


def find_recipe(choice: str | None, *, preset: str, name: str) -> Path:
    """The file of a recipe: a path, a NAME or PRESET/NAME among the shipped ones, or the one of a preset for this stage.

    Args:
        choice: what `--recipe` was given, or None.
        preset: the preset of a run without `--recipe`; one without this recipe uses that of `FALLBACK`, which is said once.
        name: the stage and its variant, such as `tokenizer-vqkd`.

    Raises:
        TokError: there is no such recipe.
    """
    root = recipes_root()
    if choice is None or is_preset(choice):
        preset = choice.rstrip("/") if choice else preset
        home = preset if (root / preset / f"{name}.yaml").is_file() else FALLBACK
        if home != preset:
            _say_fallback(home, preset, name)
        path = root / home / f"{name}.yaml"
        if not path.is_file():
            raise TokError(f"recipe {home}/{name}", "there is no such recipe", next="Run tok recipes to list them")
        return path
    path = Path(choice)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise TokError(f"--recipe {choice}", "no such file", next="Run tok recipes to list those that come with tok")
    for candidate in (root / f"{choice}.yaml", root / preset / f"{choice}.yaml"):
        if candidate.is_file():
            return candidate
    close = nearest(choice, [*presets(), *map(recipe_name, recipe_files())])
    hint = close if close.startswith("Did") else "Run tok recipes to list them"
    raise TokError(f"--recipe {choice}", "no such recipe", next=hint)


@functools.cache  # `tok sample --sweep` looks for it once a point
def _say_fallback(home: str, preset: str, name: str) -> None:
    log.info("recipe: %s/%s (%s has none)", home, name, preset or "the data set")


def parse_yaml(text: str) -> Any:
    """What a text of YAML says, strictly.

    Raises:
        YAMLError: it is none.
        ValueError: so it is, in another way: a date that there is not, thousands of digits, a thousand brackets, half a character.
    """
    try:
        loaded = yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader
        repr(loaded)  # which fails at integers of too many digits, written in another base
        json.dumps(loaded, default=str, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("half a character (a lone surrogate)") from None
    except yaml.YAMLError:
        raise
    except Exception as error:  # constructors of scalars raise what Python's types raise
        raise ValueError(str(error) or type(error).__name__) from None
    return loaded


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        TokError: missing, too large, not YAML, a key given twice, or no mapping.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise TokError(
                str(path),
                "is too large for a recipe",
                got=f"{path.stat().st_size} bytes",
                next="Give a recipe: tok recipes lists them",
            )
        loaded = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TokError(
            str(path), "cannot be read", why=error.strerror or str(error), next="Check the path and its permissions"
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise TokError(where, "is not a valid recipe", why=problem, next="Mend that line") from None
    if not isinstance(loaded, dict):
        raise TokError(
            str(path),
            "is not a mapping of recipe keys",
            got=type(loaded).__name__,
            next="Write it as KEY: VALUE lines; tok recipes shows one",
        )
    return loaded


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML text."""
    return yaml.safe_dump(resolved(recipe), sort_keys=False, allow_unicode=True, width=120)


Factory = Callable[..., Any]


KEPT = ("image_size", "grid", "projection", "codebook_size", "code_dim")  # what a component takes and gives


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
    are dropped. `optim.name` keeps all, but Muon's rate where it becomes AdamW.

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
                raise TokError(
                    f"--set {dotted}",
                    f"'{section}' is a value, not a section",
                    got=repr(child),
                    next="Set the key itself",
                )
            node = child
        before = node.get(last)
        section = ".".join(sections)
        if last == "name" and sections[-1:] == ["optim"]:  # no component: both optimizers share all keys but one
            if value == "adamw" and node.get("muon_lr") is not None and f"{section}.muon_lr" not in assignments:
                say("%s: adamw in place of muon. Dropped: %s.", section, _pairs({"muon_lr": node.pop("muon_lr")}))
        elif last == "name" and before not in (None, value):
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
    section: str,
    node: dict[str, Any],
    name: Any,
    fields: Mapping[str, Any],
    given: Collection[str],
    say: Callable[..., None],
) -> None:
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
            raise TokError(f"--set {text}", "expected KEY=VALUE", next="Write for example --set optim.lr=1e-4")
        try:
            parsed[key.strip()] = parse_yaml(value)
        except (yaml.YAMLError, ValueError) as error:
            problem = (str(getattr(error, "problem", None) or error).splitlines() or ["?"])[0]
            raise TokError(
                flag or f"--set {text}",
                "the value is not YAML",
                why=problem,
                next="Quote the value for the shell and for YAML",
            ) from None
    return parsed
