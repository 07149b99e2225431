"""Teachers' features against transformers written out here and against the libraries' own transforms; see docs/fidelity.md."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_teachers import clip, images, load, with_random_weights  # noqa: F401  fixtures
from torch import Tensor
from torch.nn import functional as F

from tokcli.pretrained import build_network
from tokcli.pretrained.network import Network, resampled
from tokcli.pretrained.teacher import TEACHERS, _resized, build_teacher

State = dict[str, Tensor]
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALVES = ([0.5] * 3, [0.5] * 3)
# OpenAI's CLIP, clip/clip.py, `_transform`
OPENAI = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
# Caffe's SqueezeNet 1.1, its deploy transform: the mean of 0..255, no scaling
CAFFE = ([122.7 / 255, 116.7 / 255, 104.0 / 255], [1 / 255] * 3)
TIMM = {
    "norm1": "norm1", "qkv": "attn.qkv.", "out": "attn.proj", "norm2": "norm2", "up": "mlp.fc1", "down": "mlp.fc2",
    "blocks": "blocks.{}.",
}  # fmt: skip
CLIP = {
    "norm1": "ln_1", "qkv": "attn.in_proj_", "out": "attn.out_proj", "norm2": "ln_2", "up": "mlp.c_fc", "down": "mlp.c_proj",
    "blocks": "transformer.resblocks.{}.",
}  # fmt: skip


def norm(w: State, name: str, x: Tensor, eps: float) -> Tensor:
    away = x - x.mean(-1, keepdim=True)
    return away / (away.square().mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(w: State, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def blocks(w: State, x: Tensor, names: dict[str, str], eps: float, activation: Any) -> Tensor:
    """Twelve blocks of 12 heads (ViT, arXiv 2010.11929, equations 2 and 3) of one image's tokens (n, 768)."""
    for i in range(12):
        b = names["blocks"].format(i)
        qkv = norm(w, b + names["norm1"], x, eps) @ w[f"{b}{names['qkv']}weight"].T + w[f"{b}{names['qkv']}bias"]
        q, k, v = qkv.view(-1, 3, 12, 64).permute(1, 2, 0, 3)
        mixed = (q @ k.transpose(1, 2) / 8).softmax(-1) @ v
        x = x + linear(w, b + names["out"], mixed.transpose(0, 1).flatten(1))
        hidden = activation(linear(w, b + names["up"], norm(w, b + names["norm2"], x, eps)))
        x = x + linear(w, b + names["down"], hidden)
    return x


def patches(image: Tensor, published: tuple[list[float], list[float]]) -> Tensor:
    """Normalised 16 px patches in raster order, (196, 768)."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in published)
    return F.unfold(((image - mean) / std)[None], 16, stride=16)[0].T


@torch.no_grad()
def test_clips_features_are_its_patch_tokens_normalised_and_projected(clip, images):  # noqa: F811
    # CLIP (arXiv 2103.00020) and openai/CLIP's model.py: norms around the blocks, x sigmoid(1.702 x), ln_post, projection
    tower, teacher = clip
    w = tower.state_dict()
    x = patches(images[0], OPENAI) @ w["conv1.weight"].flatten(1).T
    x = torch.cat([w["class_embedding"][None], x]) + w["positional_embedding"]
    x = blocks(w, norm(w, "ln_pre", x, 1e-5), CLIP, 1e-5, lambda y: y * torch.sigmoid(1.702 * y))
    wanted = norm(w, "ln_post", x[1:], 1e-5) @ w["proj"]
    torch.testing.assert_close(teacher(images)[0], wanted, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_maes_features_are_the_patch_tokens_after_the_norm(tmp_path, images):  # noqa: F811
    # MAE (arXiv 2111.06377), nothing masked: ViT-B/16 (arXiv 2010.11929), exact GELU, eps 1e-6; DINO's class is the same
    from timm import create_model

    w = with_random_weights(lambda: create_model("vit_base_patch16_224", num_classes=0)).state_dict()
    x = patches(images[0], IMAGENET) @ w["patch_embed.proj.weight"].flatten(1).T + w["patch_embed.proj.bias"]
    x = torch.cat([w["cls_token"][0], x]) + w["pos_embed"][0]
    x = blocks(w, x, TIMM, 1e-6, lambda y: y * (1 + torch.erf(y / 2**0.5)) / 2)
    torch.testing.assert_close(load("mae", w, tmp_path)(images)[0], norm(w, "norm", x[1:], 1e-6), rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", ["timm:test_vit", "timm:convnext_atto", "timm:vit_pwee_patch16_reg1_gap_256"])
def test_any_network_of_timm_gives_timms_own_features(name):
    # plain transformers without prefix tokens, others' last map; `reg4` and DINOv2: test_teachers.py
    teacher = build_teacher(name, {}, "random")
    body, side = teacher.network.body, teacher.image_size
    image = torch.rand(1, 3, side, side)
    mean, std = (torch.tensor(body.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    theirs = body.forward_features((image - mean) / std)
    # convolutional networks norm in their head, which a teacher leaves out
    theirs = theirs[:, body.num_prefix_tokens :] if theirs.ndim == 3 else theirs.flatten(2).transpose(1, 2)
    torch.testing.assert_close(teacher(image), theirs, rtol=1e-4, atol=1e-4)


PUBLISHED = {
    "efflite0": HALVES, "vits14": IMAGENET, "clip": OPENAI, "vit": IMAGENET, "dino": IMAGENET, "mae": IMAGENET,
    "dinov2-s": IMAGENET, "dinov2-b": IMAGENET, "dinov2-l": IMAGENET, "dinov2-g": IMAGENET, "dinov3-s": IMAGENET,
    "dinov3-b": IMAGENET, "dinov3-l": IMAGENET, "siglip2-b": HALVES, "convnext-b": IMAGENET, "eva02-clip-b": OPENAI,
    "squeezenet": CAFFE, "vgg16": IMAGENET, "inception": HALVES,
    "clip-l": OPENAI, "openclip-l": HALVES, "openclip-h": OPENAI, "openclip-bigg": OPENAI,
}  # fmt: skip


@pytest.mark.parametrize("name", TEACHERS)
def test_every_teacher_sees_the_mean_and_std_that_its_weights_were_trained_with(name, monkeypatch):
    # the publishers' preprocessing, by hand: a library may change its own
    given: dict[str, Any] = {}
    signature, build = inspect.signature(Network.__init__), Network.__init__

    def spy(*args: Any, **keys: Any) -> None:
        found = signature.bind(*args, **keys)
        found.apply_defaults()
        given.update(found.arguments)
        build(*args, **keys)

    monkeypatch.setattr(Network, "__init__", spy)
    with torch.device("meta"):
        build_network(name, "random")
    assert (list(given["mean"]), list(given["std"])) == PUBLISHED[name]


def pictures(side: int) -> Tensor:
    """Smooth noise in [0, 1] that leaves the range where bicubic filters overshoot, (1, 3, side, side)."""
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(side))


def by_pillow(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Each channel (1, c, h, w) resized by Pillow's bicubic filter, which averages where it shrinks."""
    made = [Image.fromarray(m.numpy()).resize(size[::-1], Image.Resampling.BICUBIC) for m in maps[0]]
    return torch.from_numpy(np.stack([np.asarray(m) for m in made]))[None]


@pytest.mark.parametrize("side", [150, 256, 300])
def test_images_are_resized_as_the_publishers_preprocessing_resizes_them(side):
    # CLIP's, DINO's and MAE's published transforms: Pillow's bicubic to 224, normalised; here of float values
    network = build_network("timm:test_vit", "random")
    wanted = (by_pillow(pictures(side), (160, 160)).clamp(0, 1) - network.mean) / network.std
    torch.testing.assert_close(network.prepare(pictures(side), 160), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("grid", [(16, 16), (8, 8), (12, 20)])
def test_features_meet_the_students_grid_by_pillows_bicubic_filter(grid):
    # the papers leave it open; official code of arXiv 2411.04406 points a filter without averaging: docs/fidelity.md
    maps = torch.randn(1, 5, 14, 14, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(_resized(maps, grid), by_pillow(maps, grid), rtol=0, atol=1e-4)


@pytest.mark.parametrize("grid", [(16, 16), (7, 7)])
def test_positions_at_another_size_are_timms(grid):
    from timm.layers import resample_abs_pos_embed

    positions = torch.randn(1, 1 + 14 * 14, 6, generator=torch.Generator().manual_seed(0))
    theirs = resample_abs_pos_embed(positions, list(grid), old_size=[14, 14])
    torch.testing.assert_close(resampled(positions, (14, 14), grid), theirs)
