"""Measurements and previews that training and evaluation share, and the mode that networks are measured in."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Networks in eval mode and without gradients; afterwards each is in the mode that it was in.

    Without it dropout would be active, and a quantizer's bookkeeping would count what is only measured.
    """
    modes = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)
