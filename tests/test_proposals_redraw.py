"""Some tokens of real images drawn by a network: which, from what distribution, given what."""

import math
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from test_docs_extending import shown
from test_proposals import livened
from torch import Tensor

from tokcli.errors import TokError
from tokcli.proposals import PROPOSALS, Sampling
from tokcli.proposals.draw import draw, guide
from tokcli.proposals.masking import random_mask
from tokcli.proposals.noise import Purpose, uniform

K, N, CLASSES = 16, 12, 3
RAR = {"random_order": [0.1, 0.9]}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ar": ("ar", {}), "rar": ("ar", RAR), "gpt2": ("gpt2", {}), "nar": ("nar", {}),
}  # fmt: skip
CONTEXTS: list[Any] = ["real", "drawn"]
GUIDED = Sampling(cfg_scale=1.75, top_k=9, top_p=0.92)


def network(name: str, k: int = K, grid: tuple[int, int] = (3, 4), **more: Any) -> Any:
    kind, keys = FAMILIES[name]
    torch.manual_seed(0)
    built = PROPOSALS[kind](k, grid, CLASSES, width=16, depth=2, heads=2, mlp_width=24, dropout=0.1, **keys, **more)
    return livened(built).train()  # `redraw` is without dropout all the same


def batch(rows: int, n: int = N) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    indices = torch.randint(K, (rows, n), generator=generator)
    return indices, torch.randint(-1, CLASSES, (rows,), generator=generator), torch.arange(rows)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_share_is_of_whole_tokens_and_the_others_stay(name: str, context: Any) -> None:
    drawer, given = network(name), batch(40)
    indices, _, seeds = given
    assert torch.equal(drawer.redraw(*given, 0.0, context=context), indices)
    found = drawer.redraw(*given, 0.25, context=context)
    mask = random_mask(seeds, torch.full((40,), 3), N)
    assert torch.equal(found[~mask], indices[~mask]) and (found != indices)[mask].float().mean() > 0.5
    assert (drawer.redraw(*given, 1.0, context=context) != indices).float().mean() > 0.5
    assert drawer.training and not found.is_inference()


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_drawn_of_an_image_does_not_depend_on_its_batch(name: str, context: Any) -> None:
    drawer, given = network(name), batch(6)
    whole = drawer.redraw(*given, 0.5, GUIDED, context=context)
    halves = [
        drawer.redraw(*(x[rows] for x in given), 0.5, GUIDED, context=context) for rows in (slice(2), slice(2, 6))
    ]
    assert torch.equal(whole, torch.cat(halves))
    other = drawer.redraw(*given[:2], given[2] + 100, 0.5, GUIDED, context=context)
    assert not torch.equal(whole, other)


@pytest.mark.parametrize("settings", [Sampling(), GUIDED])
@pytest.mark.parametrize("name", ["ar", "rar", "gpt2"])
@torch.no_grad()
def test_an_autoregressive_draw_is_given_the_real_tokens_before_it(name: str, settings: Sampling) -> None:
    drawer, (indices, condition, seeds) = network(name), batch(9)
    found = drawer.redraw(indices, condition, seeds, 0.5, settings)
    drawer.eval()
    mask = random_mask(seeds, torch.full((9,), 6), N)
    wanted, noise = indices.clone(), uniform(seeds, Purpose.TOKEN, torch.arange(N)[None])
    for row, place in mask.nonzero().tolist():
        one = slice(row, row + 1)
        prefix = drawer._prefixes(condition[one], settings)
        before = indices[one, :place].repeat(len(prefix), 1)
        logits = drawer._logits(drawer._features(before, prefix)[:, -1])
        logits = guide(logits, settings.cfg_scale) if settings.guided else logits
        wanted[row, place] = draw(logits, noise[one, place], settings)[0]
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", ["ar", "rar"])
@torch.no_grad()
def test_in_context_drawn_a_draw_is_given_those_before_it(name: str) -> None:
    drawer, (indices, condition, seeds) = network(name), batch(9)
    found = drawer.redraw(indices, condition, seeds, 0.5, context="drawn")
    drawer.eval()
    mask = random_mask(seeds, torch.full((9,), 6), N)
    wanted, noise = indices.clone(), uniform(seeds, Purpose.TOKEN, torch.arange(N)[None])
    for place in range(N):
        logits = drawer._logits(drawer._features(wanted[:, :place], drawer._prefix(condition))[:, -1])
        drawn = draw(logits, noise[:, place], Sampling())
        wanted[:, place] = torch.where(mask[:, place], drawn, wanted[:, place])
    assert torch.equal(found, wanted)
    assert not torch.equal(found, drawer.redraw(indices, condition, seeds, 0.5))


@torch.no_grad()
def test_a_masked_network_draws_at_once_given_what_stays() -> None:
    drawer, (indices, condition, seeds) = network("nar"), batch(9)
    found = drawer.redraw(indices, condition, seeds, 0.5)
    drawer.eval()
    mask = random_mask(seeds, torch.full((9,), 6), N)
    canvas = torch.where(mask, drawer.mask_row, indices)
    logits = drawer._logits(drawer._features(canvas, drawer._prefix(condition)))
    drawn = draw(logits, uniform(seeds, Purpose.TOKEN, torch.arange(N)[None]), Sampling())
    assert torch.equal(found, torch.where(mask, drawn, indices))


@pytest.mark.parametrize("name", FAMILIES)
def test_all_tokens_in_context_drawn_are_a_sample(name: str) -> None:
    drawer, (indices, condition, seeds) = network(name), batch(9)
    settings = Sampling(cfg_scale=1.5, temperature=0.9, steps=5)
    wanted = drawer.generate(condition, seeds, settings)
    assert torch.equal(drawer.redraw(indices, condition, seeds, 1.0, settings, context="drawn"), wanted)


@pytest.mark.parametrize("name", ["ar", "nar"])
@torch.no_grad()
def test_draws_are_as_frequent_as_the_network_says(name: str) -> None:
    drawer, many = network(name, k=5, grid=(2, 2)), 6000
    indices = torch.tensor([[1, 4, 0, 2]]).expand(many, -1)
    found = drawer.redraw(indices, torch.full((many,), 2), torch.arange(many), 1.0)
    drawer.eval()
    one = drawer._prefix(torch.tensor([2]))
    given = indices[:1, :-1] if name == "ar" else torch.full((1, 4), getattr(drawer, "mask_row", 0))
    p = drawer._logits(drawer._features(given, one))[0].double().softmax(-1)
    assert p.max() < 0.9  # or it would say little
    for place in range(4):
        counts = torch.bincount(found[:, place], minlength=5)
        assert chisquare(counts.numpy(), (p[place] / p[place].sum() * many).numpy()).pvalue > 1e-3


def test_a_network_without_the_method_is_refused_by_name() -> None:
    drawer = shown("## A proposal network", "PROPOSALS")(K, (3, 4), CLASSES, width=8)
    with pytest.raises(TokError, match="GRUProposal: cannot draw some tokens of a real image"):
        drawer.redraw(*batch(2), 0.5)


def test_guidance_classes_and_logits_that_cannot_be_are_refused() -> None:
    indices, condition, seeds = batch(2)
    with pytest.raises(TokError, match=r"drawn\.cfg_scale: the network was never trained without its condition"):
        network("ar", label_drop=0.0).redraw(indices, condition, seeds, 0.5, Sampling(cfg_scale=2.0))
    drawer = network("ar")
    with pytest.raises(TokError, match="no such class"):
        drawer.redraw(indices, torch.tensor([0, CLASSES]), seeds, 0.5)
    drawer.head.weight.data[0] = math.nan
    with pytest.raises(TokError, match="not finite"):
        drawer.redraw(indices, condition, seeds, 0.5)


def test_what_drawing_takes_is_a_pass_or_a_whole_sampling() -> None:
    ar, nar = network("ar"), network("nar")
    once = ar.judging_flops()
    assert ar.redrawing_flops(Sampling(), "real") == once
    assert ar.redrawing_flops(Sampling(cfg_scale=2.0), "real") == 2 * once
    assert ar.redrawing_flops(Sampling(), "drawn") == ar.drawing(Sampling(), N).flop
    assert nar.redrawing_flops(Sampling(steps=5), "drawn") == 5 * nar.judging_flops()
