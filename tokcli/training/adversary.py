"""Adversarial training: a discriminator beside the network that makes images, each with its own optimizer.

Both gradients of a step are computed before either network changes, so that a step happens wholly or not at all. The
discriminator sees the reconstructions that the decoder's loss was computed on: no second forward, which would also count
codes twice.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from tokcli import build
from tokcli.losses.adversarial import LeCam, adaptive_weight, hinge_discriminator, hinge_generator
from tokcli.recipe.sections import GAN, Train
from tokcli.training.updater import Updater


class Discrimination(nn.Module):
    """The discriminator's objective: hinge, and LeCAM's regulariser where it has a weight."""

    def __init__(self, discriminator: nn.Module, lecam: float) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.lecam_weight = lecam
        self.lecam = LeCam() if lecam else None

    def forward(self, real: Float[Tensor, "b 3 h w"], fake: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        """Terms of a batch of images and their reconstructions."""
        on_real, on_fake = self.discriminator(torch.cat([real, fake])).chunk(2)
        terms = {"discriminator": hinge_discriminator(on_real, on_fake)}
        if self.lecam is not None:
            terms["lecam"] = self.lecam_weight * self.lecam(on_real, on_fake)
        means = {"logit_real": on_real.float().mean(), "logit_fake": on_fake.float().mean()}
        return {"loss": torch.stack(list(terms.values())).sum(), **terms, **means}


class Adversary:
    """The discriminator of a run, with what it says to the decoder and how it learns.

    Args:
        gan: the recipe's section.
        train: the decoder's section; steps, batch size, micro-batches and arithmetic are shared. Each rank
            has a copy of the discriminator.
        device: where it runs; "meta" for its parameter count.
        seed: of its first weights.
        weights: files given by flags, for one made of a pretrained network; None: random ones, for plans.
    """

    def __init__(
        self, gan: GAN, train: Train, device: torch.device, seed: int, weights: Mapping[str, Path] | None = None
    ) -> None:
        self.gan = gan
        self.discriminator = build.build_discriminator(gan.discriminator.model_dump(), weights, seed).to(device)
        self.objective = Discrimination(self.discriminator, gan.lecam).to(device)
        shared = train.model_copy(update={"ema": None, "parallel": "ddp"})
        self.updater = Updater(self.objective, gan.optim, shared, device, "gan.optim")
        self.active, self.scale = False, torch.zeros((), device=device)

    def begin(self, step: int) -> None:
        """Set the weight of the decoder's adversarial term for a step: 0 before `start`, then rising over `ramp` steps."""
        past = step + 1 - self.gan.start
        self.active = past > 0
        self.scale.fill_(self.gan.weight * min(1.0, max(0.0, past / max(1, self.gan.ramp))))

    def term(
        self, decoded: Float[Tensor, "b 3 h w"], reconstruction: Float[Tensor, ""], last_layer: Tensor
    ) -> dict[str, Tensor]:
        """The decoder's adversarial term "gan", weighted, and "gan_weight"; nothing before it starts."""
        if not self.active:
            return {}
        # constants in place of the discriminator's parameters: they get no gradient here, and need not be frozen and thawed
        frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        term = hinge_generator(functional_call(self.discriminator, frozen, (decoded,)))
        weight = self.scale
        if self.gan.adaptive:
            weight = weight * adaptive_weight(reconstruction, term, last_layer)
        return {"gan": weight * term, "gan_weight": weight}

    def learns(self, step: int) -> bool:
        """Whether the discriminator is trained in a step."""
        return step >= self.gan.start - self.gan.warmup


def update(
    updater: Updater, adversary: Adversary | None, step: int, inputs: list[Tensor], real: Float[Tensor, "b 3 h w"]
) -> dict[str, Tensor]:
    """One update of a network and, where there is one, of the adversary that judges its images.

    Args:
        inputs: arguments of the updater's module, whose terms hold the images it made, if any, under "decoded".
        real: the images that they should be.

    Returns:
        The terms of both, without the images.

    Raises:
        NonFinite: before either has changed.
    """
    if adversary is not None:
        adversary.begin(step)
        adversary.updater.watch = updater.watch  # both update, or neither
    terms = updater.gradients(step, inputs)
    decoded = terms.pop("decoded", None)  # of those that make images
    judged: Mapping[str, Tensor] = {}
    learns = adversary is not None and adversary.learns(step)
    if adversary is not None and learns:
        assert decoded is not None
        judged = adversary.updater.gradients(step, [real, decoded])
    updater.apply(step)
    if adversary is not None and learns:
        adversary.updater.apply(step)
        if adversary.objective.lecam is not None:
            with updater.guarding(adversary.objective.lecam):
                adversary.objective.lecam.observe(judged["logit_real"], judged["logit_fake"])
    return terms | {name: value for name, value in judged.items() if name not in ("loss", "gradient_norm")}
