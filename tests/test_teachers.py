"""Teachers: the right layer, the right tokens, the right normalisation, and never a gradient."""

import argparse
import re
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from test_docs import PAGES
from torch import nn

from tokcli import distributed
from tokcli.artifact.weights import save_tensors
from tokcli.data.sources import open_source
from tokcli.data.transforms import CenterCrop
from tokcli.errors import TokError
from tokcli.pretrained import READY, build_network, feature_cache
from tokcli.pretrained.feature_cache import TeacherCache
from tokcli.pretrained.teacher import TEACHERS, Teacher, build_teacher

IMAGENET = (torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))


def with_random_weights(build: Callable[[], nn.Module]) -> nn.Module:
    """A module under whose weights norms, biases and positions all matter; skips the slow initialisation."""
    with torch.device("meta"):
        module = build()
    g = torch.Generator().manual_seed(1)
    state = {
        k: torch.empty(t.shape).uniform_(-0.05, 0.05, generator=g) + float(t.ndim == 1 and k.endswith("weight"))
        for k, t in module.state_dict().items()
    }
    module.load_state_dict(state, assign=True)
    for parent in module.modules():  # constants that are no weights: mean and std of images
        for name in parent._non_persistent_buffers_set:
            parent.register_buffer(name, torch.full(parent.get_buffer(name).shape, 0.5), persistent=False)
    return module.eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(2))


def load(name, state, folder, **keys) -> Teacher:
    save_tensors(folder / "weights.safetensors", state)
    return build_teacher(name, keys, folder / "weights.safetensors")


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """The library's supervised ViT with random weights, and our teacher with the same, from a file."""
    from torchvision.models import vit_b_16

    theirs = with_random_weights(lambda: vit_b_16(weights=None))
    return theirs, load("vit", theirs.state_dict(), tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Open_clip's image tower with random weights, and our teacher from a file of a whole CLIP."""
    from open_clip.model import _build_vision_tower

    config = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16}
    theirs = with_random_weights(lambda: _build_vision_tower(512, config, quick_gelu=True))
    whole = {f"visual.{k}": t for k, t in theirs.state_dict().items()}
    whole |= {"logit_scale": torch.ones(()), "text_projection": torch.ones(512, 512)}
    return theirs, load("clip", whole, tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """Timm's ViT-B/16 with random weights, and our teacher from its file."""
    from timm import create_model

    theirs = with_random_weights(lambda: create_model("vit_base_patch16_224", num_classes=0))
    return theirs, load("dino", theirs.state_dict(), tmp_path_factory.mktemp("dino"))


GRIDS = dict.fromkeys(("clip", "vit", "dino", "mae", "vgg16"), (14, 14)) | {"squeezenet": (13, 13)}
GRIDS |= dict.fromkeys(("efflite0", "vits14", "inception"), (8, 8))


@pytest.mark.parametrize("name", [name for name in TEACHERS if name not in READY])
def test_every_teacher_has_the_features_its_facts_promise(name):
    with torch.device("meta"):
        teacher = build_teacher(name, {}, "random")
        h, w = teacher.grid()
        features = teacher(torch.empty(2, 3, 64, 64))
    assert features.shape == (2, h * w, teacher.feature_dim) and features.dtype == torch.float32
    (told,) = re.findall(rf"^\| `{name}`[^|]*\|[^|]*\| (\d+) \|", PAGES["docs/tokenizers.md"], re.MULTILINE)
    assert teacher.feature_dim == int(told) and (h, w) == (GRIDS.get(name) or (h, w))
    assert teacher.name == name and teacher.image_size == teacher.network.image_size


@pytest.mark.parametrize("name", ["dinov2-s", "dinov3-s", "siglip2-b", "convnext-b", "eva02-clip-b", "clip-l"])
def test_teachers_with_ready_names_give_a_feature_per_patch_and_nothing_else(name):
    with torch.device("meta"):
        teacher = build_teacher(name, {}, "random")
        h, w = teacher.grid()
        assert teacher(torch.empty(2, 3, 64, 64)).shape == (2, h * w, teacher.feature_dim)
    patch = 32 if name == "convnext-b" else 14 if name in ("dinov2-s", "clip-l") else 16
    assert (h, w) == (teacher.image_size // patch,) * 2


def test_openais_larger_clip_also_uses_quickgelu():
    with torch.device("meta"):
        body = build_teacher("clip-l", {}, "random").network.body
    assert any(type(m).__name__ == "QuickGELU" for m in body.modules())


@torch.no_grad()
def test_vit_drops_the_class_token_and_keeps_the_last_patch(vit, images):
    theirs, teacher = vit
    captured = {}
    handle = theirs.encoder.ln.register_forward_hook(lambda m, i, out: captured.update(tokens=out))
    theirs((images - IMAGENET[0]) / IMAGENET[1])
    handle.remove()
    tokens, features = captured["tokens"], teacher(images)
    torch.testing.assert_close(features, tokens[:, 1:], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(features, tokens[:, :-1], atol=1e-2)  # the shift by one that others fell for
    torch.testing.assert_close(teacher.network.pooled(images), tokens[:, 0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_clip_projects_normalised_patch_tokens(clip, images):
    theirs, teacher = clip
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    theirs.output_tokens, pooled_and_tokens = True, None
    pooled_and_tokens = theirs((images - mean) / std)  # open_clip gives tokens after ln_post, before the projection
    theirs.output_tokens = False
    torch.testing.assert_close(teacher(images), pooled_and_tokens[1] @ theirs.proj, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(teacher.network.pooled(images), pooled_and_tokens[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_clip_without_projection_gives_its_tokens_after_the_last_norm(clip, images, tmp_path):
    theirs, projected = clip
    whole = {f"visual.{k}": t for k, t in theirs.state_dict().items()}
    teacher = load("clip", whole, tmp_path, projection=False)
    assert teacher.feature_dim == 768 and teacher.projection is False and projected.projection is True
    torch.testing.assert_close(teacher(images) @ theirs.proj, projected(images), rtol=1e-4, atol=1e-4)


def test_features_are_cached_apart_with_and_without_projection(clip, photos):
    source, transform = open_source(str(photos / "train"), size=8), SimpleNamespace(describe=lambda: "centre")
    teachers = [clip[1], *(build_teacher("clip", {"projection": p}, "random") for p in (True, False))]
    for teacher in teachers[1:]:
        teacher.network.sha256 = teachers[0].sha256
    folders = [TeacherCache(teacher, source, transform, (2, 2), "float32").cache.folder for teacher in teachers]
    assert folders[0] == folders[1] != folders[2]
    assert TeacherCache(teachers[0], source, transform, (2, 2), "bfloat16").cache.folder != folders[0]


@pytest.mark.parametrize("name", ["vit", "efflite0", "timm:test_vit"])
def test_networks_without_a_projection_give_the_same_without_it(name):
    with torch.device("meta"):
        teachers = [build_teacher(name, {"projection": p}, "random") for p in (True, False)]
    assert teachers[0].feature_dim == teachers[1].feature_dim and teachers[1].projection is None


def test_clip_uses_quickgelu(clip):
    from open_clip.transformer import QuickGELU

    network = clip[1].network
    assert all(isinstance(block.mlp.gelu, QuickGELU) for block in network.body.transformer.resblocks)
    with torch.device("meta"):  # also where the name alone would build GELU
        plain = build_network("open_clip:ViT-B-16/openai", "random").body
        laion = build_network("open_clip:ViT-B-16/laion2b_s34b_b88k", "random").body
    assert isinstance(plain.transformer.resblocks[0].mlp.gelu, QuickGELU)
    assert not isinstance(laion.transformer.resblocks[0].mlp.gelu, QuickGELU)


@torch.no_grad()
def test_dino_gives_the_last_layers_patch_tokens_after_the_norm(dino, images):
    theirs, teacher = dino
    tokens = theirs.forward_features((images - IMAGENET[0]) / IMAGENET[1])
    torch.testing.assert_close(teacher(images), tokens[:, 1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(teacher.network.pooled(images), tokens[:, 0], rtol=1e-4, atol=1e-4)


def test_the_layouts_of_dinos_and_maes_releases_are_understood(tmp_path):
    own = build_network("timm:test_vit", "random").body.state_dict()  # of the class that dino and mae are too
    full = {f"module.backbone.{k}": t for k, t in own.items()} | {"module.head.mlp.0.weight": torch.ones(2)}
    mae = own | {"mask_token": torch.zeros(1, 1, 64), "decoder_embed.weight": torch.zeros(32, 64)}
    torch.save({"teacher": full, "epoch": 1}, tmp_path / "dino.pth")
    torch.save({"model": mae, "args": argparse.Namespace(lr=1.0)}, tmp_path / "mae.pth")
    for file in ("dino.pth", "mae.pth"):
        loaded = build_network("timm:test_vit", tmp_path / file).body.state_dict()
        assert loaded.keys() == own.keys() and all(torch.equal(t, own[k]) for k, t in loaded.items())


@torch.no_grad()
def test_register_tokens_are_dropped():
    network = build_network("timm:vit_small_patch14_reg4_dinov2", "random")
    assert network.body.num_prefix_tokens == 5
    images = torch.rand(1, 3, 28, 28)
    tokens = network.body.forward_features((images - IMAGENET[0]) / IMAGENET[1])
    patches = network.maps(images)[0].flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches, tokens[:, 5:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "clip", "dino"])
def test_other_image_sizes_interpolate_positions(name, request, images):
    teacher = request.getfixturevalue(name)[1]
    small = teacher.network.maps(images, size=112)[0]
    assert small.shape[-2:] == (7, 7) and small.isfinite().all()
    # features of the small image resemble those of the large one more than another place's
    pooled = nn.functional.avg_pool2d(teacher.network.maps(images)[0], 2).flatten(2)
    cosine = torch.einsum("bcn,bcm->nm", *(nn.functional.normalize(t, dim=1) for t in (small.flatten(2), pooled)))
    assert cosine.diagonal().mean() > cosine.mean()


# --- keys ---


@pytest.fixture(scope="module")
def tiny():
    return build_teacher("timm:test_vit", {"image_size": 64}, "random")


def test_several_layers_weigh_the_same_and_meet_on_the_largest_grid():
    teacher = build_teacher("efflite0", {"layers": ["head", "blocks.2"], "image_size": 64}, "random")
    features = teacher(torch.rand(2, 3, 64, 64))
    assert teacher.grid() == (8, 8) and features.shape == (2, 64, 1280 + 40) and teacher.feature_dim == 1320
    halves = features[..., :1280].norm(dim=-1), features[..., 1280:].norm(dim=-1)
    for half in halves:
        torch.testing.assert_close(half, torch.full((2, 64), 0.5**0.5), rtol=1e-4, atol=1e-4)


def test_patches_come_in_raster_order():
    teacher = build_teacher("efflite0", {"layers": ["stem"], "image_size": 32}, "random")
    images = torch.full((1, 3, 32, 32), 0.5)
    images[..., 2:6, 26:30] = 1.0  # top right
    moved = (teacher(images) - teacher(torch.full((1, 3, 32, 32), 0.5))).norm(dim=-1).view(16, 16)
    row, column = divmod(int(moved.argmax()), 16)
    assert row < 4 and column > 11


def test_a_fine_layer_on_a_coarse_grid_sees_the_whole_patch():
    teacher = build_teacher("efflite0", {"layers": ["stem"], "image_size": 64}, "random")
    grey = torch.full((1, 3, 64, 64), 0.5)
    images = grey.repeat(16, 1, 1, 1)  # a dot at each of 4x4 places within the patch at row 1, column 2
    for i in range(16):
        y, x = 16 + i // 4 * 4, 32 + i % 4 * 4
        images[i, :, y + 1 : y + 3, x + 1 : x + 3] = 1.0
    moved = (teacher(images, (4, 4)) - teacher(grey, (4, 4))).norm(dim=-1)
    assert moved.shape == (16, 16) and (moved.argmax(1) == 1 * 4 + 2).all()
    assert moved[:, 6].min() > 0.25 * moved[:, 6].max()  # a point sample would miss most of them


def test_norm_false_gives_the_blocks_own_output(tiny):
    raw = build_teacher("timm:test_vit", {"image_size": 64, "norm": False}, "random")
    images = torch.rand(1, 3, 64, 64)
    assert not torch.allclose(raw(images), tiny(images), atol=1e-3)
    normed = tiny.network.body.norm(raw(images))
    torch.testing.assert_close(normed, tiny(images), rtol=1e-4, atol=1e-4)


def test_norm_false_is_refused_where_it_changes_nothing():
    with pytest.raises(TokError, match="teacher efflite0: norm: false changes nothing"):
        build_teacher("efflite0", {"norm": False}, "random")


def test_the_grid_does_not_depend_on_the_size_of_the_images(tiny):
    assert tiny.grid() == tiny.grid(17) == (4, 4)
    assert tiny(torch.rand(1, 3, 17, 17)).shape[1] == 16


@pytest.mark.parametrize(
    ("name", "grid", "size"), [("timm:test_vit", 3, 48), ("efflite0", 4, 128), ("vits14", 4, 56), ("clip", 16, 256)]
)
def test_a_grid_chooses_the_size_of_the_images(name, grid, size):
    with torch.device("meta"):
        teacher = build_teacher(name, {"grid": [grid, grid]}, "random")
        assert teacher.image_size == size and teacher.grid() == (grid, grid)
        assert teacher.network.maps(torch.empty(1, 3, size, size), teacher.layers)[0].shape[2:] == (grid, grid)


@pytest.mark.parametrize(("name", "grid"), [("siglip2-b", (16, 16)), ("timm:test_vit", (2, 4))])
def test_where_no_size_gives_the_grid_maps_are_resized_to_it(name, grid):
    with torch.device("meta"):
        teacher = build_teacher(name, {"grid": grid}, "random")
        n = grid[0] * grid[1]
        assert teacher(torch.empty(1, 3, 64, 64)).shape == (1, n, teacher.feature_dim) and teacher.grid() == grid
    assert teacher.image_size == teacher.network.image_size


def test_maps_that_are_resized_are_told_of(tmp_path, caplog):
    state = build_network("timm:test_vit", "random").body.state_dict()
    load("timm:test_vit", state, tmp_path, grid=(4, 4))
    assert not caplog.messages
    load("timm:test_vit", state, tmp_path, grid=(2, 4))
    assert caplog.messages == [
        "teacher timm:test_vit: takes no images that give it 2x4 patches: its features at 160 px are resized to them"
    ]


def test_a_grid_and_an_image_size_are_one_too_many():
    with pytest.raises(TokError, match="teacher.grid: image_size = 64 decides already. Got 4x4. Give one of the two"):
        build_teacher("timm:test_vit", {"image_size": 64, "grid": [4, 4]}, "random")


def test_a_teacher_stays_in_eval_mode_and_has_no_gradients(tiny):
    student = nn.Sequential(tiny, nn.Linear(tiny.feature_dim, 2)).train()
    assert student.training and not any(m.training for m in tiny.modules())
    assert not any(p.requires_grad for p in tiny.parameters())
    assert not tiny(torch.rand(1, 3, 64, 64, requires_grad=True)).requires_grad


@pytest.mark.parametrize(
    "name", [*(n for n in TEACHERS if n not in READY), "timm:convnext_atto", "open_clip:ViT-B-32/openai"]
)
def test_features_of_an_image_do_not_depend_on_the_rest_of_the_batch(name):
    size = {"vits14": 56, "inception": 80}.get(name, 64)
    early = {"squeezenet": {"layers": ["features.1"]}, "inception": {"layers": ["Mixed_5b"]}}.get(name, {})
    build = partial(build_teacher, name, {"image_size": size, **early}, "random")
    teacher = (
        build() if name in ("efflite0", "inception", "squeezenet") else with_random_weights(build)
    )  # which would make it give nearly zeros
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(3))
    together = teacher(images)
    alone = torch.cat([teacher(images[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-2 * together.abs().max()  # or the test could not fail


def test_an_unknown_teacher_names_the_nearest():
    with pytest.raises(TokError, match=r"teacher 'effllite0': no such teacher. Did you mean 'efflite0'"):
        build_teacher("effllite0", {})


def test_real_vits14_tells_photos_apart_by_patch():
    data = pytest.importorskip("skimage.data", reason="scikit-image's photos")
    try:
        teacher = build_teacher("vits14", {})
    except TokError as error:
        pytest.skip(str(error))
    photos = [torch.from_numpy(photo).permute(2, 0, 1)[None] / 255 for photo in (data.chelsea(), data.coffee())]
    cat, cup = (nn.functional.normalize(teacher(photo)[0], dim=-1) for photo in photos)
    within, across = (cat @ cat.T).mean(), (cat @ cup.T).mean()
    assert within > across + 0.1


def test_ranks_leave_no_shard_to_nobody_and_a_damaged_one_is_made_again(photos, monkeypatch):
    source, transform = open_source(str(photos / "train"), size=8), CenterCrop(8)
    teacher = build_teacher("timm:test_vit", {"grid": [2, 2]}, "random")
    monkeypatch.setattr(feature_cache, "TEACHER_SHARD", 2)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    for rank in (1, 0):  # the second finds what the first has written
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        cache = TeacherCache(teacher, source, transform, (2, 2), "float32")
        cache.fill(torch.device("cpu"))
    wanted = cache.rows(torch.arange(6))
    file = cache.cache.folder / "features-00001.npy"
    file.write_bytes(file.read_bytes()[:-2])
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        again = TeacherCache(teacher, source, transform, (2, 2), "float32")
        again.fill(torch.device("cpu"))
    assert wanted.any() and torch.equal(again.rows(torch.arange(6)), wanted)
