"""Adversarial losses of pixel decoders: hinge, the adaptive weight of VQGAN, and LeCAM's regulariser."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tokcli import distributed

LARGEST_WEIGHT = 1e4
LECAM_DECAY = 0.99


def hinge_discriminator(real: Float[Tensor, "b m"], fake: Float[Tensor, "b m"]) -> Float[Tensor, ""]:
    """(mean relu(1 - real) + mean relu(1 + fake)) / 2; 1 for a discriminator that says 0 to all.

    Lim and Ye, "Geometric GAN", arXiv 1705.02894; halved as in VQGAN's published code.
    """
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def hinge_generator(fake: Float[Tensor, "b m"]) -> Float[Tensor, ""]:
    """-mean(fake): lower where the discriminator takes a reconstruction for real."""
    return -fake.float().mean()


def adaptive_weight(
    reconstruction: Float[Tensor, ""], adversarial: Float[Tensor, ""], last_layer: Tensor
) -> Float[Tensor, ""]:
    """|d reconstruction / d last layer| / (|d adversarial / d last layer| + 1e-4), within [0, 1e4]; a constant.

    With it both terms pull equally hard at the decoder's last layer (Esser et al., arXiv 2012.09841, equation 7). Gradients
    are averaged over ranks, so that the weight is that of one process on the joint batch.

    Args:
        reconstruction, adversarial: terms of one graph, which stays alive.
        last_layer: the weight of the decoder's last layer.
    """
    terms = (reconstruction, adversarial)
    gradients = [torch.autograd.grad(term, last_layer, retain_graph=True)[0].float().flatten() for term in terms]
    wanted, given = (distributed.all_reduce_sum(torch.stack(gradients)) / distributed.world_size()).norm(dim=1)
    return (wanted / (given + 1e-4)).clamp(0, LARGEST_WEIGHT).detach()


class LeCam(nn.Module):
    """Holds a discriminator's logits near the running mean of the other side's (Tseng et al., arXiv 2104.03310, equation 3).

    It keeps a discriminator that has seen few images from memorising them. The means are those of all ranks and
    move when `observe` is called, once an update.
    """

    real: Tensor
    fake: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    def forward(self, real: Float[Tensor, "b m"], fake: Float[Tensor, "b m"]) -> Float[Tensor, ""]:
        """mean (real - running fake)^2 + mean (fake - running real)^2, not yet weighted."""
        return (real.float() - self.fake).square().mean() + (fake.float() - self.real).square().mean()

    @torch.no_grad()
    def observe(self, real: Float[Tensor, ""], fake: Float[Tensor, ""]) -> None:
        """Move the running means towards this rank's mean logits, averaged over ranks."""
        means = distributed.all_reduce_sum(torch.stack([real.float(), fake.float()])) / distributed.world_size()
        self.real.lerp_(means[0], 1 - LECAM_DECAY)
        self.fake.lerp_(means[1], 1 - LECAM_DECAY)
