"""Which columns of a Parquet file hold images, labels and captions: as one says, by Hugging Face's features, or by their usual names."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from tokcli.errors import TokError
from tokcli.limits import parse_json
from tokcli.registry import nearest

IMAGE_NAMES = ("image", "img", "picture", "photo", "png", "jpg", "jpeg", "webp")
LABEL_NAMES = ("label", "class", "cls", "target")
CAPTION_NAMES = r"captions?|text|(caption|text)_\d+"
BYTES = ("binary", "large_binary", "binary_view")


class Columns(NamedTuple):
    """The columns that are read; `label` is "" where there is none. `names` are the classes of numbers, [] where nobody says."""

    image: str
    label: str
    captions: tuple[str, ...]
    names: tuple[str, ...]

    def parts(self, schema: Any) -> dict[str, str]:
        """Where in the column of images their `bytes` and their `path` are, such as {"bytes": "image.bytes"}."""
        kind = schema.field(self.image).type
        if str(kind).startswith("struct<"):
            names = [kind.field(i).name for i in range(kind.num_fields)]
            names = [name for name in names if str(kind.field(name).type) != "null"]
            return {name: f"{self.image}.{name}" for name in ("bytes", "path") if name in names}
        return {"path" if _is_text(kind) else "bytes": self.image}

    def read(self) -> list[str]:
        """The columns that are read."""
        return [self.image, *([self.label] if self.label else []), *self.captions]

    def described(self) -> str:
        """As `--columns` says it."""
        named = [f"label={self.label}" if self.label else "", *(f"caption={name}" for name in self.captions)]
        return ",".join(part for part in (f"image={self.image}", *named) if part)


def choose_columns(schema: Any, roles: Mapping[str, list[str]], where: str) -> Columns:
    """The columns of an Arrow schema that are read.

    Args:
        schema: a `pyarrow.Schema`.
        roles: the columns that are named by hand, see `roles_of`.
        where: the data set, for messages.

    Raises:
        TokError: a column is not there or of another type, or there are several to choose from.
    """
    features = _features(schema)
    for role, names in roles.items():
        for name in names:
            if name not in schema.names:
                raise TokError(f"{where}: --columns {role}={name}", "no such column", next=nearest(name, schema.names))
            if not _FITS[role](schema.field(name).type):
                raise TokError(
                    f"{where}: --columns {role}={name}",
                    f"is no column of {role}s",
                    got=str(schema.field(name).type),
                    next=f"Name a column of {role}s: --columns {role}=NAME",
                )
    fitting = {role: [name for name in schema.names if _FITS[role](schema.field(name).type)] for role in _FITS}
    images = roles.get("image") or _guess(
        [name for name in fitting["image"] if _kind(features, name) == "Image"],
        [name for name in fitting["image"] if name.lower() in IMAGE_NAMES and not _is_text(schema.field(name).type)],
        [name for name in fitting["image"] if not _is_text(schema.field(name).type)],
    )
    if len(images) != 1:
        what = "has several columns of images" if images else "has no column of images"
        listed = ", ".join(images or schema.names)
        raise TokError(where, what, got=listed, next=f"Name it: --columns image={images[0] if images else 'NAME'}")
    labels = (
        roles["label"]
        if "label" in roles
        else _guess(
            [name for name in fitting["label"] if _kind(features, name) == "ClassLabel"],
            [name for name in fitting["label"] if name.lower() in LABEL_NAMES],
        )
    )
    if len(labels) > 1:
        ways = f"--columns label={labels[0]}, or label= for none"
        raise TokError(where, "has several columns of labels", got=", ".join(labels), next=f"Name one: {ways}")
    captions = (
        roles["caption"]
        if "caption" in roles
        else [
            name
            for name in fitting["caption"]
            if re.fullmatch(CAPTION_NAMES, name.lower()) and name not in (*images, *labels)
        ]
    )
    label = next(iter(labels), "")
    said = features.get(label, {}).get("names")
    names = said if isinstance(said, list) and all(isinstance(name, str) for name in said) else []
    if len(set(names)) < len(names):
        raise TokError(
            f"{where}: column {label}", "two classes have one name", next="Name another column: --columns label=NAME"
        )
    return Columns(images[0], label, tuple(captions), tuple(names))


def _guess(*ways: list[str]) -> list[str]:
    """The columns that the first way finds that finds any."""
    return next((found for found in ways if found), [])


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Hugging Face's features by column; {} where the schema has none."""
    try:
        found = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in found.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _kind(features: Mapping[str, dict[str, Any]], name: str) -> Any:
    return features.get(name, {}).get("_type")


def _is_text(kind: Any) -> bool:
    return str(_plain(kind)) in ("string", "large_string", "string_view")


def _plain(kind: Any) -> Any:
    """The type of the values of a column of categories; any other type as it is."""
    return getattr(kind, "value_type", kind) if str(kind).startswith("dictionary<") else kind


def _is_image(kind: Any) -> bool:
    """Bytes, the path of a file, or Hugging Face's struct of both."""
    if not str(kind).startswith("struct<"):
        return _is_text(kind) or str(_plain(kind)) in BYTES
    parts = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
    return (
        bool(parts.keys() & {"bytes", "path"})
        and ("bytes" not in parts or str(_plain(parts["bytes"])) in (*BYTES, "null"))
        and ("path" not in parts or _is_text(parts["path"]) or str(parts["path"]) == "null")
    )


def _is_label(kind: Any) -> bool:
    """Texts and numbers; 2.0 is the class 2, as where pandas had labels missing."""
    return _is_text(kind) or bool(re.fullmatch(r"u?int\d+|halffloat|float|double|decimal\d+\(.*\)", str(_plain(kind))))


def _is_caption(kind: Any) -> bool:
    return _is_text(kind.value_type if str(kind).startswith(("list<", "large_list<")) else kind)


_FITS = {"image": _is_image, "label": _is_label, "caption": _is_caption}
