"""`--sweep`: every combination of values, and its folder's name."""

import itertools
from collections.abc import Container, Mapping, Sequence
from typing import Any

from tokcli.errors import Misuse, TokError
from tokcli.recipe.overrides import parse_set
from tokcli.recipe.sample_options import SampleOptions, declared


def sweep_points(sweeps: Sequence[str], sets: Container[str] = ()) -> list[dict[str, Any]]:
    """Every combination of `("cfg_scale=1,1.5", "temperature=0.9,1")`, as recipe keys; one empty point without sweeps.

    Args:
        sets: recipe keys that other flags name.

    Raises:
        TokError: not KEY=VALUE,VALUE, or a key or a value given twice.
        Misuse: another flag says a value too.
    """
    axes: dict[str, list[Any]] = {}
    for text in sweeps:
        key, sign, values = text.partition("=")
        if not sign or not key.strip() or not values.strip():
            raise TokError(
                f"--sweep {text}", "expected KEY=VALUE,VALUE", next="Write for example --sweep cfg_scale=1,1.5,2"
            )
        key = key.strip()
        key = key if "." in key or key == "seed" else f"sample.{key}"
        if key in axes:
            raise TokError(f"--sweep {text}", "is given twice", next="List all values behind one --sweep")
        one = declared(SampleOptions).get(key.removeprefix("sample."))
        if one and not one.sweeps:
            known = ", ".join(key for key, one in declared(SampleOptions).items() if one.sweeps)
            raise TokError(f"--sweep {text}", f"{key} changes no image", next=f"Sweep one of {known}, seed")
        if key in sets:
            raise Misuse(f"--sweep {text}", f"{key} is given by another flag too", next="Leave one of them out")
        axes[key] = found = parse_set((f"{key}=[{values}]",), flag=f"--sweep {text}")[key]
        if any(one in found[:i] for i, one in enumerate(found)):  # 1 and 1.0 are one
            raise TokError(
                f"--sweep {text}", "names a value twice, which would make the same images", next="Name it once"
            )
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


def point_name(point: Mapping[str, Any]) -> str:
    """A point of a sweep as a folder's name: `cfg_scale=1.5,temperature=0.9`."""
    parts = [f"{key.removeprefix('sample.')}={value}" for key, value in point.items()]
    return ",".join(parts).replace("/", "-").replace(" ", "")
