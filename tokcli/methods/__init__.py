"""Methods of training a tokenizer, by name. A new one is a subclass of `Method` in its own file and a line here."""

from typing import Any

from tokcli.methods.autoencoder import Pixels
from tokcli.methods.clustering import Clustering
from tokcli.methods.distillation import Distillation
from tokcli.methods.joint import Joint
from tokcli.methods.method import Families, Method, TokenizerRecipe
from tokcli.pretrained.teacher import teacher_class
from tokcli.registry import lookup

__all__ = ["METHODS", "Families", "Method", "TokenizerRecipe", "method_class", "resolve"]

METHODS: dict[str, type[Method]] = {
    "vqkd": Distillation,
    "vqgan": Pixels,
    "fsq": Pixels,
    "cvq": Pixels,
    "llamagen": Pixels,
    "cluster": Clustering,
    "joint": Joint,
}


def method_class(name: str, where: str = "--method") -> type[Method]:
    """The class of a method.

    Raises:
        TokError: no such method.
    """
    return lookup(where, METHODS, name)


def resolve(name: str) -> Any:
    """The class of a component whose name stands in no dict: `timm:NAME`, `open_clip:NAME/PRETRAINED`."""
    return teacher_class(name) if ":" in name else None
