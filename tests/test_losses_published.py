"""What the published pixel recipes train: the gradient of each term at the decoder's last layer, over a second formulation's.

That one is written down here as taming-transformers (arXiv 2012.09841) and LlamaGen (arXiv 2406.06525) have it: images on
[-1, 1], L1 or MSE of them, LPIPS by its own package, PatchGAN, hinge and the adaptive weight, with the published numbers. Its
norms are GroupNorm as ours: that difference stands in the recipes' headers. `pytest -s` prints the table of ratios.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokcli import build
from tokcli.losses import PerceptualLoss
from tokcli.losses.adversarial import LeCam
from tokcli.methods import pixel_decoder
from tokcli.methods.autoencoder import Pixels
from tokcli.methods.reconstruction import PixelLoss, Reconstruction
from tokcli.recipe.check import check, resolved
from tokcli.recipe.yaml import read_yaml, recipes_root
from tokcli.training.adversary import Adversary

lpips = pytest.importorskip("lpips")
CPU = torch.device("cpu")


class Published(NamedTuple):
    """An objective in its source's numbers; every other weight in it is 1."""

    pixels: str
    distance: Callable[[Tensor, Tensor], Tensor]
    gan: float
    adaptive: bool
    depth: int  # of PatchGAN, 64 wide
    start: int  # the first step whose decoder hears of the discriminator


VQGAN = Published("l1", F.l1_loss, 0.75, True, 2, 0)
LLAMAGEN = Published("l2", F.mse_loss, 0.5, False, 3, 20_000)
OBJECTIVES = {f"tokenizer-{name}": VQGAN for name in ("vqgan", "fsq", "cvq")} | {
    "tokenizer-llamagen": LLAMAGEN, "decoder-conv": VQGAN, "decoder-llamagen": LLAMAGEN,
}  # fmt: skip
RECIPES = [f"{data}/{name}" for data in ("imagenet", "coco") for name in OBJECTIVES]


@pytest.fixture(scope="module")
def package() -> nn.Module:
    """The package's own LPIPS, with random weights until `same_weights`."""
    network: nn.Module = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    return network


def same_weights(theirs: nn.Module, ours: PerceptualLoss) -> nn.Module:
    """The package's LPIPS on the weights of our VGG16, which it cuts into slices that keep torchvision's numbers."""
    weights = ours.network.body.state_dict()
    theirs.net.load_state_dict({name: weights[f"features.{name.split('.', 1)[1]}"] for name in theirs.net.state_dict()})
    return theirs


def patchgan(depth: int, weights: dict[str, Tensor]) -> nn.Module:
    """Isola et al.'s discriminator, 64 wide, for images on [-1, 1]."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 4, 2, 1), nn.LeakyReLU(0.2)]
    for stage in range(1, depth + 1):
        given, made = 64 * 2 ** (stage - 1), 64 * 2**stage
        convolution = nn.Conv2d(given, made, 4, 2 if stage < depth else 1, 1, bias=False)
        layers += [convolution, nn.GroupNorm(32, made, eps=1e-6), nn.LeakyReLU(0.2)]
    network = nn.Sequential(*layers, nn.Conv2d(64 * 2**depth, 1, 4, 1, 1))
    network.load_state_dict(weights)  # strict: another depth or width is an error
    return network


def built(name: str) -> tuple[Any, Adversary, list[Any]]:
    """A shipped recipe with its decoder made tiny; its sections `loss` and `gan` are what the file says."""
    tree = read_yaml(recipes_root() / f"{name}.yaml")
    tree["decoder"] |= {"widths": [8] * len(tree["decoder"]["widths"]), "blocks": 1, "channels": 8}
    model: Any = pixel_decoder.DecoderRecipe if tree["stage"] == "decoder" else Pixels.recipe_model
    recipe = check(model, tree, name, pixel_decoder.FAMILIES if tree["stage"] == "decoder" else Pixels.families)
    torch.manual_seed(0)
    decoder = build.build_decoder(resolved(recipe), 8, (2, 2), 32)
    adversary = Adversary(recipe.gan, recipe.train, CPU, 0)
    return decoder, adversary, build.build_losses(recipe.loss, None, CPU)


def gradients(terms: dict[str, Tensor], layer: Tensor) -> dict[str, Tensor]:
    return {name: torch.autograd.grad(term, layer, retain_graph=True)[0].flatten() for name, term in terms.items()}


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, dict[str, float]]]:
    """Ratios by recipe and term, printed when all are there."""
    rows: dict[str, dict[str, float]] = {}
    yield rows
    columns = ("l1", "l2", "perceptual", "gan", "loss", "discriminator")
    print(
        "\n\nours over the second formulation, gradient at the last layer" + "\n" + " " * 28,
        *map("{:>13}".format, columns),
    )
    for name, row in rows.items():
        print(f"{name:28}", *(f"{row[c]:13.6f}" if c in row else f"{'-':>13}" for c in columns))


@pytest.mark.parametrize("name", RECIPES)
def test_each_term_pulls_at_the_last_layer_as_published(
    name: str, package: nn.Module, table: dict[str, dict[str, float]]
) -> None:
    published = OBJECTIVES[name.split("/")[1]]
    decoder, adversary, losses = built(name)
    adversary.begin(published.start - 1)
    assert not adversary.active and not adversary.learns(published.start - 1) and adversary.learns(published.start)
    assert adversary.objective.lecam is None  # published later than these
    torch.manual_seed(1)
    codes, images = torch.randn(2, 4, 8), torch.rand(2, 3, 32, 32)
    raw: list[Tensor] = []
    decoder.layers[-1].register_forward_hook(lambda module, given, made: raw.append(made))  # on [-1, 1]
    adversary.begin(published.start)
    terms = Reconstruction(decoder, PixelLoss(losses, adversary))(codes, images)
    judged = adversary.objective(images, terms.pop("decoded"))
    terms.pop("gan_weight")
    ours = gradients(terms, decoder.last_layer)
    ours |= gradients({"discriminator": judged["loss"]}, adversary.discriminator.layers[-1].weight)

    x, y = 2 * images - 1, raw[0]
    discriminator = patchgan(published.depth, adversary.discriminator.layers.state_dict())
    perceptual = same_weights(package, next(loss for term, _, loss in losses if term == "perceptual"))
    second = {published.pixels: published.distance(y, x), "perceptual": perceptual(y, x).mean()}
    reconstruction, term = sum(second.values()), -discriminator(y).mean()
    weight = torch.tensor(published.gan)
    if published.adaptive:
        wanted, given = (
            torch.autograd.grad(t, decoder.last_layer, retain_graph=True)[0].norm() for t in (reconstruction, term)
        )
        weight = weight * (wanted / (given + 1e-4)).clamp(0, 1e4)
    second |= {"gan": weight * term, "loss": reconstruction + weight * term}
    expected = gradients(second, decoder.last_layer)
    hinge = 0.5 * (F.relu(1 - discriminator(x)).mean() + F.relu(1 + discriminator(y.detach())).mean())
    expected |= gradients({"discriminator": hinge}, discriminator[-1].weight)

    assert set(ours) == set(expected)
    table[name] = {term: float(ours[term] @ expected[term] / expected[term].square().sum()) for term in expected}
    for term, gradient in expected.items():
        assert table[name][term] == pytest.approx(1, abs=1e-4), term
        assert (ours[term] - gradient).norm() <= 1e-3 * gradient.norm(), term  # rounding flips a ReLU now and then


@pytest.mark.parametrize("name", RECIPES)
def test_what_differs_from_the_published_discriminator_stands_in_the_header(name: str) -> None:
    header = (recipes_root() / f"{name}.yaml").read_text().partition("\nstage:")[0]
    assert "# differs: GroupNorm for the published BatchNorm in the discriminator" in header
    assert ("depth 3, weight .8" in header) == name.endswith("fsq")


def test_every_recipe_of_the_papers_sets_that_has_a_discriminator_is_compared() -> None:
    found = {
        f"{f.parent.name}/{f.stem}"
        for d in ("imagenet", "coco")
        for f in recipes_root().glob(f"{d}/*.yaml")
        if "gan" in read_yaml(f)
    }
    assert found == set(RECIPES)


def test_vgg16_is_lpips(package: nn.Module) -> None:
    ours = PerceptualLoss("random", network="vgg16")
    a, b = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    expected = same_weights(package, ours)(a, b, normalize=True).mean()
    torch.testing.assert_close(ours(a, b), expected, rtol=1e-4, atol=1e-6)


def test_lecam_pulls_at_logits_as_its_paper_says() -> None:
    real, fake = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    lecam = LeCam()
    lecam.observe(torch.tensor(2.0), torch.tensor(-3.0))  # equation 3's running means, of decay .99 from 0
    second = ((real + 0.03) ** 2).mean() + ((fake - 0.02) ** 2).mean()
    ours = torch.autograd.grad(lecam(real, fake), (real, fake))
    torch.testing.assert_close(ours, torch.autograd.grad(second, (real, fake)), rtol=1e-4, atol=1e-7)
