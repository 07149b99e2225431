"""Networks: every one freezes, names its layers, and computes what its own library computes."""

import pytest
import timm
import torch
from torch import nn

from tokcli.artifact.weights import save_tensors
from tokcli.errors import TokError
from tokcli.pretrained import NETWORKS, READY, build_network


def scrambled(module: nn.Module) -> dict[str, torch.Tensor]:
    """Weights under which every parameter matters: norms and layer scales away from 1 and 0."""
    g = torch.Generator().manual_seed(1)
    state = module.state_dict()
    return {
        k: t + 0.1 * t.abs().mean().clamp(min=0.1) * torch.rand(t.shape, generator=g) if t.is_floating_point() else t
        for k, t in state.items()
    }


@pytest.mark.parametrize("name", [*NETWORKS, "timm:test_vit", "timm:convnext_atto", "open_clip:ViT-B-32/openai"])
def test_every_network_builds_on_the_meta_device_frozen_and_in_eval_mode(name):
    with torch.device("meta"):
        network = build_network(name, "random")
    network.train()
    assert not any(p.requires_grad for p in network.parameters())
    assert not any(m.training for m in network.modules())
    assert network.sha256 == "random"
    size = network.image_size
    (shape,) = network.shapes(size)
    assert shape == tuple(network.maps(torch.empty(2, 3, size, size, device="meta"))[0].shape[1:])
    pooled = network.pooled(torch.empty(2, 3, 40, 50, device="meta"))
    assert pooled.ndim == 2 and pooled.dtype == torch.float32


@pytest.mark.parametrize("name", ["efflite0", "squeezenet", "vgg16", "inception", "vits14", "timm:test_vit"])
def test_layers_are_returned_in_the_order_asked_for(name):
    with torch.device("meta"):
        network = build_network(name, "random")
        names = [network.layer_names[-1], network.layer_names[0], network.layer_names[-1]]
        size = network.image_size
        last, first, again = network.shapes(size, names)
    assert last == again == network.shapes(size, names[:1])[0] and first == network.shapes(size, names[1:2])[0]


def test_efflite0_gives_maps_at_the_documented_widths_and_strides():
    with torch.device("meta"):
        network = build_network("efflite0", "random")
    found = network.shapes(256, list(network.layer_names))
    assert found[0] == (32, 128, 128) and found[-2:] == [(320, 8, 8), (1280, 8, 8)]
    assert network.shapes(256, [6, -1, "blocks.6"]) == [(320, 8, 8)] * 3


def test_efflite0_folds_its_norms_and_equals_timms_own_forward(tmp_path):
    timms = timm.create_model("tf_efficientnet_lite0").eval()
    timms.load_state_dict(scrambled(timms))
    save_tensors(tmp_path / "w.safetensors", timms.state_dict())
    network = build_network("efflite0", tmp_path / "w.safetensors")
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
    assert not any(p.requires_grad for p in network.parameters())
    images, network.extractor_size = torch.rand(2, 3, 64, 64), 64
    head = network.maps(images, ["head"])[0]
    with torch.no_grad():
        features = timms.forward_features(images * 2 - 1)
    nearly = 1e-4 * float(features.abs().max())
    torch.testing.assert_close(head, features, rtol=0, atol=nearly)
    torch.testing.assert_close(network.pooled(images), features.mean((2, 3)), rtol=0, atol=nearly)


def test_efflite0_is_channels_last():
    network = build_network("efflite0", "random")
    features = network.maps(torch.rand(2, 3, 64, 64))[0]
    assert network.body.conv_head.weight.stride(1) == features.stride(1) == 1


def test_features_are_float32_under_autocast():
    network = build_network("efflite0", "random")
    images = torch.rand(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert network.maps(images)[0].dtype == network.pooled(images).dtype == torch.float32


def test_squeezenet_sees_bgr_in_0_to_255_minus_caffes_mean():
    network = build_network("squeezenet", "random")
    x = network.prepare(torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1))
    torch.testing.assert_close(x.flatten(), torch.tensor([0 - 104.0, 127.5 - 116.7, 255 - 122.7]))


def test_prepare_resizes_with_antialiasing_and_stays_in_range():
    network = build_network("efflite0", "random")
    checkers = (torch.arange(64).view(-1, 1) + torch.arange(64)).remainder(2).float().expand(1, 3, 64, 64)
    assert network.prepare(checkers, 16)[..., 2:-2, 2:-2].abs().max() < 0.05  # grey, where aliasing keeps a pattern
    assert network.prepare(checkers.roll(3), 100).abs().max() <= 1.0  # mean and std 0.5


@pytest.fixture(scope="module")
def inception_s_weights():
    return scrambled(build_network("inception", "random").body)


def test_inception_equals_pytorch_fids_from_resizing_to_logits(monkeypatch, inception_s_weights):
    from pytorch_fid import inception as theirs

    network = build_network("inception", "random")
    network.body.load_state_dict(inception_s_weights)
    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *a, **k: inception_s_weights)
    pooling, whole = theirs.InceptionV3([3]).eval(), theirs.fid_inception_v3().eval()
    images, spatial = torch.rand(1, 3, 320, 310), []  # made smaller, where antialiasing would show
    whole.Mixed_6d.register_forward_hook(lambda module, given, found: spatial.append(found[:, :7].flatten(1)))
    with torch.no_grad():
        expected = pooling(images)[0].flatten(1)
        logits = whole(network.prepare(images, 299)) - whole.fc.bias
    for ours, other in zip(network.judged(images), (expected, spatial[0], logits), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("counters", [True, False], ids=["torch counts batches", "it did not yet"])
def test_inception_s_weights_are_never_fetched_by_its_package_and_load_in_both_layouts(
    tmp_path, monkeypatch, inception_s_weights, counters
):
    from pytorch_fid import inception as theirs

    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *a, **k: pytest.fail("fetched"))
    kept = {k: t for k, t in inception_s_weights.items() if counters or not k.endswith("num_batches_tracked")}
    torch.save(kept, tmp_path / "w.pth")
    network = build_network("inception", tmp_path / "w.pth")
    assert all(torch.equal(t, inception_s_weights[k]) for k, t in network.body.state_dict().items())
    assert network.source("inception").url == theirs.FID_WEIGHTS_URL


def test_an_unknown_layer_names_the_nearest():
    network = build_network("efflite0", "random")
    with pytest.raises(TokError, match=r"efflite0: there is no layer 'haed'. Did you mean 'head'"):
        network.resolve(["haed"])
    for wrong in ([7], [-8], []):
        with pytest.raises(TokError):
            network.resolve(wrong)


def test_a_size_that_the_patch_does_not_divide_is_one_line():
    with torch.device("meta"):
        network = build_network("vits14", "random")
    with pytest.raises(TokError, match="multiple of 14"):
        network.shapes(64)


def test_building_a_network_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    build_network("efflite0", "random")
    assert torch.equal(torch.rand(3), expected)


def test_a_network_of_another_name_names_the_nearest():
    with pytest.raises(TokError, match="Did you mean 'efflite0'"):
        build_network("eflite0")
    with pytest.raises(TokError, match=r"timm:test_vitt: timm has no such model. Did you mean 'timm:test_vit"):
        build_network("timm:test_vitt")
    with pytest.raises(TokError, match=r"no weights 'opnai' of ViT-B-32. Did you mean 'openai'"):
        build_network("open_clip:ViT-B-32/opnai")
    with pytest.raises(TokError, match="no patch tokens"):
        build_network("open_clip:RN50/openai", "random")


@pytest.mark.parametrize("name", ["efflite0", "squeezenet"])
def test_real_weights_see_a_cat_and_an_espresso(name):
    data = pytest.importorskip("skimage.data", reason="scikit-image's photos")
    try:
        network = build_network(name)
    except TokError as error:
        pytest.skip(str(error))
    cats, espresso = {281, 282, 285}, {967}  # tabby, tiger and Egyptian cat
    for photo, classes in ((data.chelsea(), cats), (data.coffee(), espresso)):
        image = torch.from_numpy(photo).permute(2, 0, 1)[None] / 255
        assert int(network.logits(network.prepare(image, 224)).argmax()) in classes


WIDTHS = {
    "dinov2-s": 384, "dinov2-b": 768, "dinov2-l": 1024, "dinov2-g": 1536, "dinov3-s": 384, "dinov3-b": 768, "dinov3-l": 1024,
    "siglip2-b": 768, "convnext-b": 1024, "eva02-clip-b": 768, "clip-l": 768, "openclip-l": 768, "openclip-h": 1024,
    "openclip-bigg": 1280,
}  # fmt: skip


@pytest.mark.parametrize("name", READY)
def test_ready_names_build_square_maps_of_patch_features(name):
    """On the meta device: no weights, no memory. Tokens that are no patches would not fill the grid."""
    with torch.device("meta"):
        network = build_network(name, "random")
    channels, height, width = network.shapes(network.image_size)[0]
    assert channels == WIDTHS[name] and height == width > 1
    if name.startswith("dinov2"):  # a teacher's images stay timm's; Fréchet distances are published at 224 px
        assert (network.image_size, network.extractor_size) == (518, 224)


def test_an_open_clip_whose_blocks_would_attend_across_the_batch_is_refused(monkeypatch):
    import open_clip.model

    build = open_clip.model._build_vision_tower

    def older(*args, **keys):
        body = build(*args, **keys)
        del body.transformer.batch_first  # before 2.26 there was no such thing
        return body

    monkeypatch.setattr(open_clip.model, "_build_vision_tower", older)
    with torch.device("meta"), pytest.raises(TokError, match="mixes the images of a batch. Got open_clip_torch"):
        build_network("clip", "random")
