"""Losses: what they rank, where their gradients go, and which balance of terms our own recipes keep."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tokcli.artifact.draft import begin
from tokcli.build import build_losses
from tokcli.errors import TokError
from tokcli.losses import LOSSES, L1Loss, L2Loss, PerceptualLoss, cosine
from tokcli.methods import pixel_decoder
from tokcli.metrics.lpips import lpips
from tokcli.recipe.check import check, resolved
from tokcli.recipe.yaml import read_yaml, recipe_files, recipe_name, recipes_root

# what the numbers in the headers of our own recipes were measured with: differences on [0, 1], and these weights of them
UNIT_TERMS = {"l1": torch.abs, "l2": torch.square}
UNIT_WEIGHTS = {
    "fashion-mnist": {"l1": 3.0, "l2": 6.0}, "openmoji": {"l1": 3.0, "l2": 6.0},
    "folder/base": {"l1": 1.0, "l2": 1.0}, "toy": {"l1": 1.0},
}  # fmt: skip
OWN = sorted(
    f"{recipe_name(f)}.yaml"
    for f in recipe_files()
    if recipe_name(f.parent) in UNIT_WEIGHTS and UNIT_TERMS.keys() & read_yaml(f).get("loss", {}).keys()
)


def photo(size: int = 64) -> torch.Tensor:
    """A picture with edges and shading, (1, 3, size, size)."""
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    disc = ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.06).float()
    return torch.stack([0.2 + 0.6 * disc, 0.3 + 0.5 * y, 0.8 - 0.5 * x * disc])[None]


def real_or_skip(network: str) -> PerceptualLoss:
    try:
        return PerceptualLoss(network=network)
    except TokError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=["squeezenet", "efflite0", "vgg16"])
def random_perceptual(request):
    return PerceptualLoss("random", network=request.param)


def test_l1_and_l2_are_means_over_pixels_of_differences_on_the_range():
    a, b = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.25)
    assert L1Loss()(a, b) == 0.5 and L2Loss()(a, b) == 0.25  # on [-1, 1]
    assert L1Loss(range="unit")(a, b) == 0.25 and L2Loss(range="unit")(a, b) == 0.0625


@pytest.mark.parametrize("recipe", OWN)
def test_own_recipes_pull_at_pixels_as_when_they_were_measured_on_the_unit_range(recipe):
    image, prediction = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8, requires_grad=True)
    section = {name: keys for name, keys in read_yaml(recipes_root() / recipe)["loss"].items() if name in UNIT_TERMS}
    for name, weight, loss in build_losses(section, None, torch.device("cpu")):
        old = UNIT_WEIGHTS[recipe.rpartition("/")[0]][name] * UNIT_TERMS[name](prediction - image).mean()
        new = weight * loss(prediction, image)
        gradients = [torch.autograd.grad(term, prediction)[0] for term in (old, new)]
        assert torch.equal(old, new) and torch.equal(*gradients)


def test_a_run_begun_before_pixel_losses_named_their_range_is_not_gone_on_with(tmp_path):
    tree = read_yaml(recipes_root() / "toy" / "decoder-conv.yaml")
    recipe = resolved(check(pixel_decoder.DecoderRecipe, tree, "", pixel_decoder.FAMILIES))
    old = {**recipe, "loss": {**recipe["loss"], "l1": {"weight": recipe["loss"]["l1"]["weight"]}}}
    begin(tmp_path, "decoder", old, {}, {}).close()
    (tmp_path / "state.pt").write_bytes(b"steps")
    with pytest.raises(TokError, match=r"made by another recipe.*loss\.l1\.range: None, not 'signed'"):
        begin(tmp_path, "decoder", recipe, {}, {})


def test_cosine_of_equal_orthogonal_and_opposite_features():
    a = torch.tensor([[[1.0, 0.0]]])
    for b, expected in (([2.0, 0.0], 0.0), ([0.0, 3.0], 1.0), ([-1.0, 0.0], 2.0), ([0.0, 0.0], 1.0)):
        assert cosine(a, torch.tensor([[b]])).item() == pytest.approx(expected, abs=1e-6)


def test_cosine_of_bfloat16_features_is_computed_in_float32():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1, 64, 32, generator=g)
    with torch.autocast("cpu", torch.bfloat16):
        value = cosine(a.bfloat16(), b)
    torch.testing.assert_close(value, 1 - F.cosine_similarity(a.bfloat16().float(), b, dim=-1).mean())


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_flow_to_the_prediction_only(name):
    loss = LOSSES[name]("random") if name == "perceptual" else LOSSES[name]()
    prediction, target = (torch.rand(1, 3, 64, 64, requires_grad=True), torch.rand(1, 3, 64, 64, requires_grad=True))
    value = loss(prediction, target)
    value.backward()
    assert value.shape == () and value.dtype == torch.float32
    assert prediction.grad is not None and prediction.grad.abs().sum() > 0 and target.grad is None
    assert not any(p.requires_grad for p in loss.parameters())


def test_perceptual_is_zero_for_equal_images_and_symmetric(random_perceptual):
    a, b = photo(), photo().flip(3)
    assert random_perceptual(a, a) == 0
    torch.testing.assert_close(random_perceptual(a, b), random_perceptual(b, a))
    assert random_perceptual(a, b) > 0


def test_perceptual_is_finite_where_all_features_are_zero():
    loss = PerceptualLoss("random")
    for p in loss.network.parameters():
        p.zero_()
    prediction = torch.rand(1, 3, 64, 64, requires_grad=True)
    value = loss(prediction, photo())
    value.backward()
    assert value == 0 and prediction.grad is not None and prediction.grad.isfinite().all()


def test_perceptual_never_wakes_dropout(random_perceptual):
    model = nn.ModuleDict({"loss": random_perceptual}).train()
    assert not any(m.training for m in model["loss"].modules())
    assert random_perceptual(photo(), photo().flip(3)) == random_perceptual(photo(), photo().flip(3))


def test_perceptual_is_the_mean_of_its_images(random_perceptual):
    a, b = photo(), photo().flip(2)
    both = random_perceptual(torch.cat([a, b]), torch.cat([b, b]))
    torch.testing.assert_close(both, random_perceptual(a, b) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("network", ["squeezenet", "efflite0"])
def test_perceptual_orders_noise_and_blur(network):
    loss, image = real_or_skip(network), photo()
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    noisy = [loss((image + s * noise).clamp(0, 1), image).item() for s in (0.02, 0.05, 0.1, 0.2)]
    blurred = [loss(F.avg_pool2d(F.pad(image, [k // 2] * 4, "replicate"), k, 1), image).item() for k in (3, 5, 9)]
    assert noisy == sorted(noisy) and blurred == sorted(blurred) and min(noisy[0], blurred[0]) > 0


def test_perceptual_tolerates_a_shift_better_than_pixels_do():
    loss, image = real_or_skip("squeezenet"), photo()
    shifted, blurred = image.roll(1, 3), F.avg_pool2d(F.pad(image, [4] * 4, "replicate"), 9, 1)
    shift_to_blur = loss(shifted, image) / loss(blurred, image)
    assert shift_to_blur < L2Loss()(shifted, image) / L2Loss()(blurred, image)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_the_loss_is_the_metric_also_where_features_are_faint(scale):
    loss, a, b = PerceptualLoss("random", network="vgg16"), torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    for p in loss.network.parameters():
        p.mul_(scale)
    heads = [loss.get_buffer(name) for name in loss.heads]
    measured = lpips(loss.network.maps(a, loss.layers), loss.network.maps(b, loss.layers), heads)
    assert loss(a, b).item() == pytest.approx(measured.item(), rel=1e-4, abs=0)


def test_layers_and_image_size_change_the_distance():
    a, b = photo(), photo().flip(3)
    values = {
        PerceptualLoss("random", **keys)(a, b).item()
        for keys in ({}, {"layers": ["features.4"]}, {"layers": [12, 4]}, {"image_size": 128})
    }
    assert len(values) == 4


def test_lpips_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("tokcli.losses.perceptual.package_folder", lambda name: None)
    with pytest.raises(TokError, match=r"heads not found. Run pip install lpips"):
        PerceptualLoss("random", network="vgg16")


def test_missing_vgg_weights_name_their_flag(tmp_path, monkeypatch):
    monkeypatch.setenv("TOK_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    refused = OSError("no network")
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: (_ for _ in ()).throw(refused))
    with pytest.raises(TokError, match=r"vgg16: weights not found \(hub unreachable\). Give --vgg-weights PATH"):
        PerceptualLoss(network="vgg16")
