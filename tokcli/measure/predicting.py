"""How well a proposal network predicts held-out tokens.

Of a masked network also the order-agnostic bound (Uria et al. 2014; arXiv 2110.02037, section 3). A network that predicts any tokens from
any others is an autoregressive one in every order of the tokens. For the mean over all orders, -log p(x) is at most
n E[mean cross-entropy of m masked tokens], with m uniform in 1 to n and the m tokens at random.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from tokcli.data.reading import BATCH, read_batches
from tokcli.data.sources import ImageSource, evenly
from tokcli.data.token_store import TokenStore
from tokcli.data.transforms import evaluation_transform, unit
from tokcli.measure import evaluating
from tokcli.metrics.reported import Found, Judged, Reported, ask
from tokcli.models import Tokenizer
from tokcli.pretrained.feature_cache import BytePairTable, FeatureTable
from tokcli.progress import passing
from tokcli.proposals import Proposal
from tokcli.proposals.noise import Purpose, uniform

DRAWS = 4
"""Masks of each image, one in each quarter of the numbers of masked tokens: passes over all images."""


def any_order_nats(
    network: Proposal, indices: Int64[Tensor, "b n"], condition: Shaped[Tensor, "b *c"], seeds: Int64[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """An unbiased estimate of the bound on -log p of each image's tokens, in nats, from DRAWS masks of each.

    Args:
        network: of mode nar, in eval mode.
        indices, condition: as in `Proposal.loss`.
        seeds: numbers of the images, which choose the masks.
    """
    n, total = indices.shape[1], torch.zeros(len(indices), dtype=torch.float64, device=indices.device)
    for draw in range(DRAWS):
        at = torch.full((1, 1), draw, device=seeds.device)
        counts = (n * (draw + uniform(seeds, Purpose.MASK_RATIO, at)[:, 0]) / DRAWS).floor() + 1
        ratio = (counts.clamp(max=n) - 0.5) / n  # half a token less: rounding must not make ceil(ratio n) one more
        total += network.judged(indices, condition, seeds, ratio).nats.double()
    return (total * (n / DRAWS)).float()


MASK_RATIO = 0.5  # of masked_ce, where a recipe says nothing else


class HeldOut(NamedTuple):
    """Tokens of held-out images, and what a proposal network is given with them."""

    numbers: Int64[Tensor, " b"]  # of the images: what a masked network is not shown is a function of them
    indices: Int64[Tensor, "b n"]
    condition: Tensor  # (b, ...), see `Proposal`


def class_numbers(known: Sequence[str], names: Sequence[str]) -> Int64[Tensor, " n"]:
    """The numbers that a network calls other data's classes by: -1 for one that it does not know; the last is for none."""
    return torch.tensor([*(known.index(name) if name in known else -1 for name in names), -1])


@torch.no_grad()
def held_out_tokens(
    tokenizer: Tokenizer,
    source: ImageSource,
    device: torch.device,
    *,
    size: int,
    classes: Sequence[str] = (),
    captions: Callable[[Sequence[str]], Tensor] | None = None,
) -> Iterator[HeldOut]:
    """Held-out images as a proposal network reads them.

    Args:
        classes: names of the classes that the network knows; images of any other are predicted without class.
        captions: texts to conditions, for a text-conditional network, which is given the first caption of each image.
    """
    known = class_numbers(classes, source.classes)
    for numbers, images in read_batches(source, evaluation_transform(size), desc="held-out images"):
        if captions:
            texts = [next(iter(source.captions(i)), "") for i in numbers]
            condition = captions(texts)
            condition[torch.tensor([not text for text in texts])] = (
                0  # as in training, not a tower's "" with its end token
            )
        else:
            condition = known[torch.tensor([source.label(i) for i in numbers])]
        yield HeldOut(torch.tensor(numbers), tokenizer.encode(unit(images, device)), condition)


def stored_tokens(
    store: TokenStore, most: int, classes: Int64[Tensor, " c"], captions: BytePairTable | FeatureTable | None
) -> Iterator[HeldOut]:
    """Tokens of an artifact as a proposal network reads them: the first view of at most `most` images, evenly spread.

    Args:
        classes: the network's number of each of the store's classes, as `class_numbers` gives it.
        captions: conditions of the store's captions, for a text-conditional network.
    """
    chosen = np.array(evenly(store.rows, most))
    parts = torch.arange(len(chosen)).split(BATCH)
    for numbers in passing(parts, len(chosen), unit="image", desc="held-out tokens", units=len):
        rows = chosen[numbers]
        if captions:
            first, stop = store.caption_ends[rows], store.caption_ends[rows + 1]
            condition = captions.rows(torch.from_numpy(np.where(first < stop, first, -1)))
        else:
            condition = classes[torch.from_numpy(store.labels[rows].astype(np.int64))]
        yield HeldOut(numbers, store.batch(rows, np.zeros_like(rows)), condition)


def judge(network: Proposal, batches: Iterable[HeldOut], device: torch.device, *, mask_ratio: float) -> Judged:
    """How well a proposal network predicts held-out tokens, and how often its likeliest code is right.

    Every metric that takes likelihoods or hits of the network's mode is asked. The network is in eval mode meanwhile.

    Args:
        mask_ratio: share of the tokens that a network of mode nar has to predict.
    """
    total, right, count, images = 0.0, 0.0, 0, 0
    whole: list[Tensor] = []
    with evaluating(network):
        for batch in batches:
            numbers, indices, condition = (part.to(device) for part in batch)
            nats, hits = network.judged(
                indices, condition, numbers, torch.full_like(numbers, mask_ratio, dtype=torch.float64)
            )
            if network.mode == "nar":
                whole.append(any_order_nats(network, indices, condition, numbers).cpu())
            else:
                whole.append(nats.sum(1).cpu())
            total, right = total + float(nats.double().sum()), right + float(hits.double().sum())
            count, images = count + nats.numel(), images + len(indices)
    values = [*ask("nll", total, count, mode=network.mode), *ask("hits", right, count, mode=network.mode)]
    bits = [
        Found(Reported(k), n.value, images, "images") for k, n in ask("image_nats", torch.cat(whole), mode=network.mode)
    ]
    if network.mode == "nar":  # of each image so many tokens: it is the images that are counted
        found = [Found(Reported(k, ratio=mask_ratio), n.value, images, "images") for k, n in values]
        return Judged(found + bits, {"images": images})
    found = [Found(Reported(k), n.value, count, "tokens") for k, n in values]
    return Judged(found + bits, {"tokens": count, "images": images})


def measure_proposal(
    network: Proposal, batches: Iterable[HeldOut], device: torch.device, *, mask_ratio: float
) -> dict[str, float]:
    """What `judge` finds, by reported name: `proposal_ppl`, `masked_ce_0.50`, ..."""
    return judge(network, batches, device, mask_ratio=mask_ratio).flat
