"""How samples were drawn, in words: only equal requests are comparable."""

from collections.abc import Mapping
from typing import Any

from tokcli.artifact.manifest import canonical_hash
from tokcli.artifact.opening import Artifact

LEGIBLE = 60  # characters of captions or classes that are said, and not counted


def mode_of(a: Artifact) -> str | None:
    """`ar` or `nar`, `t2i` of samples that were drawn for captions; None where an artifact has none."""
    return "t2i" if a.recipe.get("sample", {}).get("prompts") else a.facts.get("mode")


def asked_for(sample: Mapping[str, Any]) -> str | None:
    """What samples were asked to show, in words, unless it is all classes in rotation: only equal requests are comparable."""
    for key, called in (("prompts", "captions"), ("classes", "classes")):
        asked = sample.get(key)
        if isinstance(asked, str):
            return f"{called} as in the {asked}"
        if asked:
            said = ", ".join(map(str, asked))
            many = f"{len(asked):,} {called} ({canonical_hash(asked)[:8]})"
            return f"{called} {said}" if len(said) <= LEGIBLE else many
    return None
