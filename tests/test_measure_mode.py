"""What is measured, is measured in eval mode, and is left in the mode that it was in."""

import torch
from torch import nn

from tokcli.measure import evaluating
from tokcli.measure.decoding import reconstruct


class Codes(nn.Module):
    """As much of a tokenizer as a reconstruction asks for."""

    encode = staticmethod(lambda images: torch.zeros(len(images), 4, dtype=torch.int64))
    codes = staticmethod(lambda indices: torch.ones(len(indices), 3, 8, 8))


def test_reconstructions_are_made_without_dropout_and_training_goes_on_with_it() -> None:
    decoder = nn.Dropout(0.5).train()
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    made = reconstruct(Codes(), decoder, images, torch.device("cpu"))
    assert (made == 255).all() and decoder.training


def test_a_network_that_fails_is_back_in_its_mode() -> None:
    network, other = nn.Linear(1, 1).train(), nn.Linear(1, 1).eval()
    try:
        with evaluating(network, other):
            assert not network.training and not torch.is_grad_enabled()
            raise ValueError
    except ValueError:
        assert network.training and not other.training
