"""Pretrained networks by name, used as teachers, as extractors and in perceptual losses."""

import functools
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from tokcli.device import on_meta
from tokcli.pretrained.efflite0 import EffLite0
from tokcli.pretrained.inception import FIDInception
from tokcli.pretrained.network import Network
from tokcli.pretrained.open_clip_models import CLIP, OpenCLIP
from tokcli.pretrained.published_weights import find_weights
from tokcli.pretrained.squeezenet_vgg import VGG16, SqueezeNet
from tokcli.pretrained.supervised_vit import SupervisedViT
from tokcli.pretrained.timm_models import DINO, MAE, Timm, ViTS14
from tokcli.registry import lookup

__all__ = ["NETWORKS", "READY", "Network", "build_network", "network_class", "network_file", "usual"]

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

# Short names for networks of timm and open_clip, whose own names carry tags.
READY: dict[str, str] = {
    "dinov2-s": "timm:vit_small_patch14_dinov2.lvd142m",
    "dinov2-b": "timm:vit_base_patch14_dinov2.lvd142m",
    "dinov2-l": "timm:vit_large_patch14_dinov2.lvd142m",
    "dinov2-g": "timm:vit_giant_patch14_dinov2.lvd142m",
    "dinov3-s": "timm:vit_small_patch16_dinov3.lvd1689m",
    "dinov3-b": "timm:vit_base_patch16_dinov3.lvd1689m",
    "dinov3-l": "timm:vit_large_patch16_dinov3.lvd1689m",
    "siglip2-b": "open_clip:ViT-B-16-SigLIP2/webli",
    "convnext-b": "timm:convnext_base.fb_in22k_ft_in1k",
    "eva02-clip-b": "open_clip:EVA02-B-16/merged2b_s8b_b131k",
    "clip-l": "open_clip:ViT-L-14-quickgelu/openai",
    "openclip-l": "open_clip:ViT-L-14/laion2b_s32b_b82k",
    "openclip-h": "open_clip:ViT-H-14/laion2b_s32b_b79k",
    "openclip-bigg": "open_clip:ViT-bigG-14/laion2b_s39b_b160k",
}
OPEN: dict[str, type[Network]] = {"timm": Timm, "open_clip": OpenCLIP}  # families named PREFIX:NAME


def network_class(name: str, *, role: str = "network") -> type[Network]:
    """The class of a network by name, also one of READY, `timm:NAME` and `open_clip:NAME/PRETRAINED`.

    Raises:
        TokError: no such network.
    """
    name = READY.get(name, name)
    prefix, colon, _ = name.partition(":")
    if colon and prefix in OPEN:
        return OPEN[prefix]
    return lookup(role, NETWORKS | dict.fromkeys(READY, Network), name)


class Usual(NamedTuple):
    """What a network is run with where nothing else is asked for."""

    image_size: int
    layers: list[str]
    perceptual_layers: list[str]


@functools.cache
def usual(name: str, role: str) -> Usual:
    """What a network is run with where nothing else is asked for; it is built without numbers.

    Raises:
        TokError: no such network.
    """
    with on_meta():
        network = build_network(name, "random", role=role)
    return Usual(network.image_size, list(network.default_layers), list(network.perceptual_layers))


def network_file(name: str, given: Path | None, *, role: str, flag: str | None) -> Path:
    """The file of a network's weights: the one given, else that of cache, installed package or hub.

    Raises:
        TokError: no such network, or weights found nowhere.
    """
    cls, full = network_class(name, role=role), READY.get(name, name)
    return Path(given) if given else find_weights(full, cls.source(full), where=f"{role} {name}", flag=flag)


def build_network(
    name: str,
    weights: Path | Literal["random"] | None = None,
    *,
    role: str = "network",
    weights_flag: str | None = "--teacher-weights",
) -> Network:
    """A frozen network with its weights.

    Args:
        name: a key of NETWORKS or READY, `timm:NAME`, or `open_clip:NAME/PRETRAINED`.
        weights: a file; "random" for tests and for the meta device; None: cache, installed package, hub.
        role: what it is here ("teacher", "extractor"), for messages.
        weights_flag: the option that takes the file, for messages; None where there is none.

    Raises:
        TokError: no such network, weights found nowhere, or a file that does not fit.
    """
    cls, where = network_class(name, role=role), f"{role} {name}"
    asked, name = name, READY.get(name, name)
    path = None  # found first, so that what is missing is told within seconds
    if weights != "random":
        path = network_file(asked, weights, role=role, flag=weights_flag)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers do not depend on which network it loads
        torch.manual_seed(0)
        network = cls(name)  # type: ignore[call-arg]
    if path is None:
        network.sha256 = "random"
    else:
        network.load(path, where)
    network.fold()
    return network
