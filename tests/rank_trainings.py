"""Tiny trainings of every kind, for what ranks, parts and states must not change."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tokcli import distributed
from tokcli.data.batches import TrainBatches
from tokcli.data.token_batches import TokenBatches
from tokcli.data.transforms import TRANSFORMS, unit
from tokcli.losses import LOSSES
from tokcli.methods.clustering import ClusterLoss
from tokcli.methods.reconstruction import PixelLoss, Reconstruction, TokenizerLoss
from tokcli.models import DECODERS, ENCODERS, FeatureDecoder, Tokenizer
from tokcli.proposals import PROPOSALS
from tokcli.quantizers import QUANTIZERS
from tokcli.recipe.sections import GAN, Component, Optim, Train
from tokcli.stages.train_proposal import Likelihood
from tokcli.training.adversary import Adversary, update
from tokcli.training.state import Stateful
from tokcli.training.updater import Updater

STEPS = 5
DEVICE = torch.device("cpu")  # of trainings that are made; test_gpu.py sets it
State = dict[str, Tensor]
OPTIM = Optim(lr=3e-3, weight_decay=0.05, warmup_steps=2, clip=1.0)
GENTLE = Optim(lr=2e-4, weight_decay=0.05, warmup_steps=2, clip=1.0)  # Adam turns rounding of tiny gradients into steps


class Photos:
    """20 images of 16 px in memory, as an ImageSource."""

    name, id, classes, problems = "photos", "data-0", ["any"], ()

    def __init__(self) -> None:
        self.pixels = torch.randint(
            0, 256, (20, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def key(self, i: int) -> str:
        return str(i)

    def label(self, i: int) -> int:
        return 0

    def captions(self, i: int) -> list[str]:
        return []

    def image(self, i: int) -> Tensor:
        return self.pixels[i]


def settings(**keys: Any) -> Train:
    return Train(**{"steps": STEPS, "batch_size": 8, "ema": 0.9, "log_every": 1, **keys})


class Training(NamedTuple):
    updater: Updater
    batches: Any
    step: Callable[[int, Any], dict[str, Any]]
    others: dict[str, Stateful] = {}


def photo_batches(train: Train) -> TrainBatches:
    return TrainBatches(
        Photos(), TRANSFORMS["center-crop"](16, flip=True), batch_size=train.batch_size, seed=0,
        rank=distributed.rank(), world=distributed.world_size(),
    )  # fmt: skip


def tokenizer_training(train: Train, revive_after: int | None = 2) -> Training:
    """VQ-KD with an EMA codebook, k-means start and revival; the teacher is a fixed projection of patches."""
    torch.manual_seed(0)
    encoder = ENCODERS["vit"](8, image_size=16, patch_size=4, width=16, depth=1, heads=2)
    quantizer = QUANTIZERS["vq"](
        codebook_size=12, code_dim=8, decay=0.8, rescue="revive" if revive_after else None, rescue_after=revive_after
    )
    tokenizer = Tokenizer(encoder, quantizer, FeatureDecoder(8, 6, (4, 4), width=16, heads=2))
    teacher = torch.randn(3 * 4 * 4, 6).to(DEVICE)
    updater = Updater(TokenizerLoss(tokenizer).to(DEVICE), OPTIM, train, DEVICE)

    def step(number: int, batch: Any) -> dict[str, Any]:
        images = unit(batch.images, DEVICE)
        if not quantizer.initialised:
            with torch.no_grad(), updater.whole():
                quantizer.initialise(tokenizer.encoder(images))
        targets = nn.functional.unfold(images, 4, stride=4).transpose(1, 2) @ teacher
        values = updater.update(number, [images, targets])
        with updater.guarding(quantizer):
            quantizer.after_step(number)
        return values

    return Training(updater, photo_batches(train), step)


def pixel_training(train: Train, tokenizer: Tokenizer, adversary: Adversary | None) -> Training:
    """A tokenizer that reconstructs pixels by L1."""
    objective = TokenizerLoss(tokenizer, PixelLoss([("l1", 1.0, LOSSES["l1"]())], adversary)).to(DEVICE)
    updater = Updater(objective, GENTLE, train, DEVICE)

    def step(number: int, batch: Any) -> dict[str, Any]:
        images = unit(batch.images, DEVICE)
        values = update(updater, adversary, number, [images], images)
        with updater.guarding(tokenizer.quantizer):
            tokenizer.quantizer.after_step(number)
        return values

    return Training(updater, photo_batches(train), step)


def adversarial_training(train: Train, adaptive: bool = False) -> Training:
    """A tokenizer that reconstructs pixels under a discriminator which starts in the second step.

    64 channels: a bias before a norm of one channel has no gradient but noise, which Adam would blow up.
    """
    torch.manual_seed(0)
    encoder = ENCODERS["conv"](8, image_size=16, widths=[64, 64, 64], blocks=1, channels=8)
    decoder = DECODERS["conv"](8, (4, 4), 16, widths=[64, 64, 64], blocks=1, channels=8)
    quantizer = QUANTIZERS["vq"](codebook_size=12, code_dim=8, decay=0.8, init="uniform")
    tokenizer = Tokenizer(encoder, quantizer, pixel_decoder=decoder)
    gan = GAN(
        discriminator=Component(name="patch", depth=1, width=32), optim=GENTLE, weight=0.5, adaptive=adaptive, start=1,
        warmup=1, ramp=2, lecam=0.1,
    )  # fmt: skip
    adversary = Adversary(gan, train, DEVICE, 0)
    return pixel_training(train, tokenizer, adversary)._replace(others={"adversary": adversary.updater})


def gradient_training(train: Train) -> Training:
    """A tokenizer of pixels whose codes learn by gradient, and by anchors outside of the forward pass."""
    torch.manual_seed(0)
    encoder = ENCODERS["conv"](8, image_size=16, widths=[64, 64], blocks=1, channels=8)
    decoder = DECODERS["conv"](8, (8, 8), 16, widths=[64, 64], blocks=1, channels=8)
    quantizer = QUANTIZERS["vq"](codebook_size=12, code_dim=8, learning="gradient", rescue="anchors", init="uniform")
    tokenizer = Tokenizer(encoder, quantizer, pixel_decoder=decoder)
    return pixel_training(train, tokenizer, None)


def cluster_training(train: Train) -> Training:
    """Codes over a frozen teacher's features, here patches: all that is trained is the quantizer's."""
    torch.manual_seed(0)
    quantizer = QUANTIZERS["vq"](codebook_size=12, code_dim=48, learning="gradient", rescue="anchors")
    updater = Updater(ClusterLoss(quantizer).to(DEVICE), OPTIM, train, DEVICE)

    def step(number: int, batch: Any) -> dict[str, Any]:
        features = nn.functional.unfold(unit(batch.images, DEVICE), 4, stride=4).transpose(1, 2)
        quantizer.initialise(features)
        values = updater.update(number, [features])
        with updater.guarding(quantizer):
            quantizer.after_step(number)
        return values

    return Training(updater, photo_batches(train), step)


def decoder_training(train: Train) -> Training:
    """A decoder of frozen codes, by transformer blocks."""
    torch.manual_seed(0)
    decoder = DECODERS["vit"](8, (4, 4), 16, width=16, depth=2, heads=2)
    projection = torch.randn(48, 8).to(DEVICE)
    loss = PixelLoss([("l1", 1.0, LOSSES["l1"]())], None)
    updater = Updater(Reconstruction(decoder, loss).to(DEVICE), OPTIM, train, DEVICE)

    def step(number: int, batch: Any) -> dict[str, Any]:
        images = unit(batch.images, DEVICE)
        codes = nn.functional.unfold(images, 4, stride=4).transpose(1, 2) @ projection
        return update(updater, None, number, [codes, images], images)

    return Training(updater, photo_batches(train), step)


def proposal_training(train: Train, optim: Optim = OPTIM, kind: str = "nar", **keys: Any) -> Training:
    """A proposal network on random tokens; without dropout, which is a rank's own."""
    torch.manual_seed(0)
    tokens = torch.randint(0, 12, (20, 16))
    store: Any = SimpleNamespace(rows=20, views=1, labels=np.arange(20) % 3, batch=lambda rows, views: tokens[rows])
    network = PROPOSALS[kind](
        12, (4, 4), 3, width=16, depth=1, heads=2, mlp_width=32, dropout=0.0, label_drop=0.3, **keys
    )
    if network.head is not None:
        nn.init.normal_(network.head.weight, std=0.02)  # not zero, so that the first gradient reaches every weight
    updater = Updater(Likelihood(network).to(DEVICE), optim, train, DEVICE)
    batches = TokenBatches(
        store, batch_size=train.batch_size, seed=0, rank=distributed.rank(), world=distributed.world_size()
    )

    def step(number: int, batch: Any) -> dict[str, Any]:
        given = [batch.indices, batch.labels, batch.seeds, torch.zeros(len(batch.seeds))]
        return updater.update(number, [t.to(DEVICE, non_blocking=True) for t in given])

    return Training(updater, batches, step)


def muon_training(train: Train) -> Training:
    """The same network under Muon."""
    return proposal_training(train, OPTIM.model_copy(update={"name": "muon", "muon_lr": 1e-2}))


TRAININGS = {
    "tokenizer": tokenizer_training,
    "adversarial": adversarial_training,
    "proposal": proposal_training,
    "muon": muon_training,
}
# trained with all parameters on each rank elsewhere, and here with parts of them
SHARDED = {
    "gradient": gradient_training,
    "cluster": cluster_training,
    "decoder": decoder_training,
    "ar": lambda train: proposal_training(train, kind="ar", head="tied", checkpointing=True),
}
# each micro-batch has a ratio of gradients of its own, so these are compared on whole batches only
ADAPTIVE = {"adaptive": lambda train: adversarial_training(train, adaptive=True)}
# ranks that disagree on which codes are dead would wait for each other, so the negative control revives none
UNREVIVED = {"unrevived": lambda train: tokenizer_training(train, revive_after=None)}
