"""Changes to a recipe from the command line: `--set`, and another component in place of one."""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

import yaml

from tokcli.errors import TokError
from tokcli.recipe.check import _shown, component_model
from tokcli.recipe.yaml import parse_yaml

log = logging.getLogger("tok")


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
