"""Pretrained networks by name: what teachers, Fréchet extractors and perceptual losses are made of."""

from pathlib import Path
from typing import Literal

import torch

from tokcli.networks.efflite0 import EffLite0
from tokcli.networks.inception import FIDInception
from tokcli.networks.network import Network
from tokcli.networks.open_clip_models import CLIP, OpenCLIP
from tokcli.networks.sources import find_weights
from tokcli.networks.squeezenet_vgg import VGG16, SqueezeNet
from tokcli.networks.supervised_vit import SupervisedViT
from tokcli.networks.timm_models import DINO, MAE, Timm, ViTS14
from tokcli.registry import lookup

__all__ = ["NETWORKS", "Network", "build_network", "network_class"]

NETWORKS: dict[str, type[Network]] = {
    "efflite0": EffLite0,
    "vits14": ViTS14,
    "clip": CLIP,
    "vit": SupervisedViT,
    "dino": DINO,
    "mae": MAE,
    "squeezenet": SqueezeNet,
    "vgg16": VGG16,
    "inception": FIDInception,
}

OPEN: dict[str, type[Network]] = {"timm": Timm, "open_clip": OpenCLIP}  # families named PREFIX:NAME


def network_class(name: str, *, role: str = "network") -> type[Network]:
    """The class of a network by name, also `timm:NAME` and `open_clip:NAME/PRETRAINED`.

    Raises:
        TokError: no such network.
    """
    prefix, colon, _ = name.partition(":")
    if colon and prefix in OPEN:
        return OPEN[prefix]
    return lookup(role, NETWORKS, name)


def build_network(
    name: str,
    weights: Path | Literal["random"] | None = None,
    *,
    role: str = "network",
    weights_flag: str | None = "--teacher-weights",
) -> Network:
    """A frozen network with its weights.

    Args:
        name: a key of NETWORKS, `timm:NAME`, or `open_clip:NAME/PRETRAINED`.
        weights: a file; "random" for tests and for the meta device; None: cache, installed package, hub.
        role: what it is here ("teacher", "extractor"), for messages.
        weights_flag: the option that takes the file, for messages; None where there is none.

    Raises:
        TokError: no such network, weights found nowhere, or a file that does not fit.
    """
    cls, where = network_class(name, role=role), f"{role} {name}"
    path = None  # found first, so that what is missing is told within seconds
    if weights != "random":
        path = Path(weights) if weights else find_weights(name, cls.source(name), where=where, flag=weights_flag)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers do not depend on which network it loads
        torch.manual_seed(0)
        network = cls(name)  # type: ignore[call-arg]
    if path is None:
        network.sha256 = "random"
    else:
        network.load(path, where)
    return network
