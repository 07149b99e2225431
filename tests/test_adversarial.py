"""Discriminators, adversarial losses and their schedule."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tokcli.losses import LOSSES
from tokcli.losses.adversarial import LeCam, adaptive_weight, hinge_discriminator, hinge_generator
from tokcli.methods.reconstruction import PixelLoss, Reconstruction, TokenizerLoss
from tokcli.models import DECODERS, DISCRIMINATORS, ENCODERS, Tokenizer
from tokcli.quantizers import QUANTIZERS
from tokcli.recipe.sections import GAN, Component, Optim, Train
from tokcli.training.adversary import Adversary, update
from tokcli.training.finite import NonFinite
from tokcli.training.updater import Updater

CPU = torch.device("cpu")
TRAIN = Train(steps=20, batch_size=4)
OPTIM = Optim(lr=1e-3, weight_decay=0.0)
KEYS: dict[str, dict[str, Any]] = {"patch": {"depth": 1, "width": 8}, "features": {"network": "squeezenet", "width": 8}}


def adversary(train: Train = TRAIN, **keys: Any) -> Adversary:
    section = {"weight": 0.5, "discriminator": Component(name="patch", depth=1, width=8), "optim": OPTIM, **keys}
    return Adversary(GAN(**section), train, CPU, 0)


def images(seed: int = 0, b: int = 4) -> Tensor:
    return torch.rand(b, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def decoding(gan: Adversary | None, train: Train = TRAIN) -> Updater:
    torch.manual_seed(0)
    decoder = DECODERS["conv"](8, (4, 4), 16, widths=[8, 8, 8], blocks=1, channels=8)
    loss = PixelLoss([("l1", 2.0, LOSSES["l1"]())], gan)
    return Updater(Reconstruction(decoder, loss), OPTIM, train, CPU)  # type: ignore[arg-type]


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def moved(module: nn.Module, before: dict[str, Tensor]) -> bool:
    return any(not torch.equal(p, before[name]) for name, p in module.named_parameters())


def codes(b: int = 4) -> Tensor:
    return torch.randn(b, 16, 8, generator=torch.Generator().manual_seed(3))


def test_hinge_of_known_logits() -> None:
    real, fake = torch.tensor([[2.0, 0.5]]), torch.tensor([[-3.0, 1.0]])
    assert hinge_discriminator(real, fake) == pytest.approx((0.25 + 1.0) / 2)  # relu(1-.5)/2, relu(1+1)/2, halved
    assert hinge_generator(fake) == pytest.approx(1.0)
    assert hinge_discriminator(real, fake) < hinge_discriminator(fake, real)


def test_the_adaptive_weight_is_the_ratio_of_gradients_and_a_constant() -> None:
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    ratio = adaptive_weight((6 * weight).sum(), (weight * torch.tensor([0.0, 2.0])).sum(), weight)
    assert ratio == pytest.approx(72**0.5 / (2 + 1e-4)) and not ratio.requires_grad
    assert weight.grad is None
    assert adaptive_weight((1e9 * weight).sum(), (0 * weight).sum(), weight) == 1e4


def test_lecam_holds_logits_near_the_other_sides_mean() -> None:
    lecam, real, fake = LeCam(), torch.full((2, 3), 2.0), torch.full((2, 3), -1.0)
    assert lecam(real, fake) == pytest.approx(4 + 1)
    for _ in range(2000):
        lecam.observe(real.mean(), fake.mean())
    assert lecam.real == pytest.approx(2, abs=1e-3) and lecam.fake == pytest.approx(-1, abs=1e-3)
    assert lecam(fake, real) == pytest.approx(0, abs=1e-2)


def test_every_discriminator_is_tested() -> None:
    assert set(KEYS) == set(DISCRIMINATORS)


def discriminator(name: str) -> nn.Module:
    torch.manual_seed(0)
    supplied: list[Any] = ["random"] if "network" in KEYS[name] else []
    return DISCRIMINATORS[name](*supplied, **KEYS[name])


@pytest.mark.parametrize("name", KEYS)
def test_a_discriminators_word_on_an_image_does_not_depend_on_the_batch(name: str) -> None:
    network, batch = discriminator(name), torch.rand(3, 3, 32, 32)
    together = network(batch)
    assert together.ndim == 2 and len(together) == 3
    for row, image in zip(together, batch, strict=True):
        torch.testing.assert_close(network(image[None])[0], row, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", KEYS)
def test_a_discriminator_learns_to_tell_noise_from_grey(name: str) -> None:
    network = discriminator(name)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, 3e-3)
    for step in range(30):
        noise = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = hinge_discriminator(network(noise), network(noise.mean((1, 2, 3), keepdim=True).expand_as(noise)))
        loss.backward()
        optimizer.step()
    assert loss < 0.5


def test_the_adversarys_weight_starts_and_ramps_as_the_recipe_says() -> None:
    gan, weights = adversary(start=3, warmup=2, ramp=4, adaptive=False), []
    decoded = images().requires_grad_()
    for step in range(9):
        gan.begin(step)
        weights.append(float(gan.term(decoded, decoded.sum(), decoded).get("gan_weight", 0.0)))
    assert weights == [0, 0, 0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    assert [gan.learns(step) for step in range(5)] == [False, True, True, True, True]


def test_the_discriminator_learns_before_the_decoder_hears_of_it() -> None:
    gan = adversary(start=3, warmup=2)
    with_gan, without = decoding(gan), decoding(None)
    for step in range(3):
        before = snapshot(gan.discriminator)
        terms = update(with_gan, gan, step, [codes(), images()], images())
        update(without, None, step, [codes(), images()], images())
        assert moved(gan.discriminator, before) == (step >= 1)
        assert "gan" not in terms and ("discriminator" in terms) == (step >= 1)
    torch.testing.assert_close(snapshot(with_gan.module), snapshot(without.module), atol=0, rtol=0)
    terms = update(with_gan, gan, 3, [codes(), images()], images())
    update(without, None, 3, [codes(), images()], images())
    assert terms["gan_weight"] > 0 and moved(with_gan.module, snapshot(without.module))


def test_the_decoders_step_gives_the_discriminator_no_gradient() -> None:
    gan = adversary()
    gan.begin(0)
    before = snapshot(gan.discriminator)
    decoding(gan).update(0, [codes(), images()])
    assert all(p.grad is None for p in gan.discriminator.parameters()) and not moved(gan.discriminator, before)


def test_terms_add_up_to_the_loss() -> None:
    gan = adversary()
    gan.begin(0)
    terms = decoding(gan).gradients(0, [codes(), images()])
    assert terms["loss"] == pytest.approx(float(terms["l1"] + terms["gan"]), rel=1e-5)
    assert terms["decoded"].shape == (4, 3, 16, 16)


def test_nothing_has_changed_when_the_discriminators_gradient_is_not_finite() -> None:
    gan = adversary(start=5, warmup=5)
    run = decoding(gan)
    before = [snapshot(run.module), snapshot(gan.discriminator)]
    poisoned = images()
    poisoned[0, 0, 0, 0] = torch.nan
    with pytest.raises(NonFinite):
        update(run, gan, 0, [codes(), images()], poisoned)  # the decoder's own loss is fine
    assert not moved(run.module, before[0]) and not moved(gan.discriminator, before[1])


def test_micro_batches_with_a_fixed_weight_add_up_to_the_whole_batch() -> None:
    found = []
    for pieces in (1, 2):
        train = Train(steps=20, batch_size=4, accumulate=pieces)
        gan = adversary(train, adaptive=False, lecam=0.1)
        run = decoding(gan, train)
        gan.begin(0)
        decoded = run.gradients(0, [codes(), images()])["decoded"]
        gan.updater.gradients(0, [images(), decoded])
        parameters = [*run.module.parameters(), *gan.objective.parameters()]
        found.append([decoded, *(p.grad for p in parameters)])
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-4)


def test_codes_are_counted_once_a_step_although_two_networks_learn() -> None:
    torch.manual_seed(0)
    quantizer = QUANTIZERS["vq"](codebook_size=6, code_dim=8, init="uniform")
    encoder = ENCODERS["conv"](8, image_size=16, widths=[8, 8, 8], blocks=1, channels=8)
    decoder = DECODERS["conv"](8, (4, 4), 16, widths=[8, 8, 8], blocks=1, channels=8)
    tokenizer = Tokenizer(encoder, quantizer, pixel_decoder=decoder)
    gan = adversary(lecam=0.1)
    objective = TokenizerLoss(tokenizer, PixelLoss([("l1", 1.0, LOSSES["l1"]())], gan))
    update(Updater(objective, OPTIM, TRAIN, CPU), gan, 0, [images()], images())
    assert int(quantizer.collect("counts", (6,), torch.int64).sum()) == 4 * 16


def test_a_restored_adversary_continues_bit_for_bit() -> None:
    first, second = adversary(lecam=0.1), adversary(lecam=0.1)
    run = decoding(first)
    update(run, first, 0, [codes(), images()], images())
    second.updater.load_state_dict(deepcopy(first.updater.state_dict()))
    for gan in (first, second):
        gan.updater.gradients(1, [images(1), images(2)])
        gan.updater.apply(1)
    torch.testing.assert_close(first.objective.state_dict(), second.objective.state_dict(), atol=0, rtol=0)
    assert float(second.objective.lecam.real) == float(first.objective.lecam.real) != 0  # type: ignore[union-attr]
