"""The contract that every proposal network keeps. A new one adds a line to CASES; the transformers promise more."""

from typing import Any

import jaxtyping
import pytest
import torch
from test_docs_extending import shown
from torch import Tensor

from tokcli.errors import TokError
from tokcli.proposals import PROPOSALS, Proposal, Sampling
from tokcli.proposals.transformer_proposal import TransformerProposal

K, N, CLASSES = 16, 9, 3
SIZES = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 24, "dropout": 0.0}
MEMBERS: dict[str, type[Proposal]] = {**PROPOSALS, "gru": shown("## A proposal network", "PROPOSALS")}
CASES: dict[str, dict[str, Any]] = {"ar": SIZES, "gpt2": SIZES, "gru": {"width": 16}, "nar": SIZES}
MODES = [name for name in CASES if issubclass(MEMBERS[name], TransformerProposal)]
WARM = {"plain": Sampling(steps=4), "guided": Sampling(steps=4, cfg_scale=2.0, top_k=9, top_p=0.9, temperature=0.8)}


def livened(network: Any, std: float = 0.3) -> Any:
    """A fresh network in eval mode whose matrices all matter; its head is zero otherwise."""
    for parameter in network.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=std)
    return network.eval()


def build(mode: str, classes: int = CLASSES, **keys: float) -> Proposal:
    """A tiny network with a head that is not zero, in eval mode."""
    torch.manual_seed(0)
    return livened(MEMBERS[mode](K, (3, 3), classes, **CASES[mode] | keys))


def batch(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random (indices, labels, seeds)."""
    g = torch.Generator().manual_seed(1)
    indices = torch.randint(K, (rows, N), generator=g)
    return indices, torch.randint(-1, CLASSES, (rows,), generator=g), torch.randint(2**62, (rows,), generator=g)


def test_every_network_is_under_contract() -> None:
    assert set(CASES) == set(MEMBERS)


@pytest.mark.parametrize("mode", CASES)
def test_generates_codes_of_the_grid(mode: str) -> None:
    _, labels, seeds = batch(5)
    indices = build(mode).generate(labels, seeds, Sampling(steps=9, temperature=5.0))
    assert indices.shape == (5, N) and indices.dtype == torch.int64
    assert indices.min() >= 0 and indices.max() < K


@pytest.mark.parametrize("mode", CASES)
def test_the_same_seed_draws_the_same_picture_and_another_does_not(mode: str) -> None:
    network, labels = build(mode), torch.ones(4, dtype=torch.int64)
    indices = network.generate(labels, torch.tensor([7, 7, 8, 9]), WARM["plain"])
    assert torch.equal(indices[0], indices[1])
    assert not torch.equal(indices[0], indices[2]) and not torch.equal(indices[2], indices[3])


@pytest.mark.parametrize("settings", WARM)
@pytest.mark.parametrize("mode", CASES)
def test_a_row_does_not_depend_on_its_neighbours(mode: str, settings: str) -> None:
    network, (_, labels, seeds) = build(mode), batch(16)
    together = network.generate(labels, seeds, WARM[settings])
    for row in (0, 5, 15):
        alone_labels, alone_seeds = torch.full_like(labels, -1), torch.zeros_like(seeds)
        alone_labels[row], alone_seeds[row] = labels[row], seeds[row]
        alone = network.generate(alone_labels, alone_seeds, WARM[settings])
        assert torch.equal(alone[row], together[row])


@pytest.mark.parametrize("mode", MODES)
def test_global_generator_is_left_alone_in_sampling(mode: str) -> None:
    _, labels, seeds = batch(2)
    before = torch.get_rng_state()
    build_state = build(mode, dropout=0.5)
    torch.set_rng_state(before)
    build_state.train()
    first = build_state.generate(labels, seeds, WARM["guided"])
    assert torch.equal(torch.get_rng_state(), before) and build_state.training
    torch.manual_seed(99)
    assert torch.equal(build_state.generate(labels, seeds, WARM["guided"]), first)


@pytest.mark.parametrize("mode", MODES)
def test_scale_1_runs_no_doubled_batch_and_scale_2_one(mode: str) -> None:
    network, (_, labels, seeds) = build(mode), batch(3)
    rows: list[int] = []
    network.embedding.register_forward_hook(lambda m, args, out: rows.append(out.shape[0]))
    network.generate(labels, seeds, Sampling(steps=4))
    assert set(rows) == {3}
    calls = len(rows)
    network.generate(labels, seeds, Sampling(steps=4, cfg_scale=2.0))
    assert set(rows[calls:]) == {6} and len(rows) == 2 * calls


@pytest.mark.parametrize("mode", CASES)
def test_scale_0_ignores_the_label(mode: str) -> None:
    network, (_, labels, seeds) = build(mode), batch(6)
    free = network.generate(torch.full_like(labels, -1), seeds, WARM["plain"])
    assert torch.equal(network.generate(labels, seeds, Sampling(steps=4, cfg_scale=0.0)), free)
    assert not torch.equal(network.generate(labels, seeds, WARM["plain"]), free)


@pytest.mark.parametrize("mode", CASES)
def test_a_higher_scale_moves_away_from_the_unconditional(mode: str) -> None:
    network, (_, labels, seeds) = build(mode), batch(64)
    free = network.generate(torch.full_like(labels, -1), seeds, WARM["plain"])
    same = [
        (network.generate(labels, seeds, Sampling(steps=4, cfg_scale=s)) == free).float().mean().item()
        for s in (0.5, 1.0, 3.0)
    ]
    assert same[0] > same[1] > same[2]


@pytest.mark.parametrize("mode", CASES)
def test_loss_is_a_mean_over_samples(mode: str) -> None:
    network, (indices, labels, seeds) = build(mode, label_drop=0.5).train(), batch(6)
    whole = network.loss(indices, labels, seeds)["loss"]
    parts = [network.loss(indices[s], labels[s], seeds[s])["loss"] for s in (slice(0, 3), slice(3, 6))]
    assert torch.allclose(whole, torch.stack(parts).mean(), atol=1e-6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.allclose(whole, network.loss(indices[order], labels[order], seeds[order])["loss"], atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_loss_of_a_fresh_network_is_that_of_a_uniform_guess(mode: str) -> None:
    network, (indices, labels, seeds) = PROPOSALS[mode](K, (3, 3), CLASSES, **SIZES), batch(4)  # type: ignore[arg-type]
    got = network.loss(indices, labels, seeds)
    guess = torch.tensor(float(network.head_rows)).log()
    exact = 1e-5 if network.head is not None else 0.05  # a tied head does not start from zero
    assert torch.allclose(got["masked_ce"] if mode == "nar" else got["loss"], guess, atol=exact)


@pytest.mark.parametrize("mode", MODES)
def test_labels_are_dropped_at_the_asked_rate_and_only_in_training(mode: str) -> None:
    network = build(mode, label_drop=0.25)
    labels, seeds = torch.zeros(4000, dtype=torch.int64), torch.arange(4000)
    kept, null = network.embedding.weight[K], network.embedding.weight[network.null_row]
    assert torch.equal(network._prefix(labels, seeds), kept.expand(4000, 1, -1))
    prefix = network.train()._prefix(labels, seeds)[:, 0]
    dropped = (prefix == null).all(1)
    assert abs(dropped.float().mean().item() - 0.25) < 0.03 and (prefix[~dropped] == kept).all()
    assert torch.equal(network._prefix(labels[:9], seeds[:9])[:, 0], prefix[:9])


@pytest.mark.parametrize("mode", CASES)
def test_every_parameter_gets_a_gradient(mode: str) -> None:
    network, (indices, labels, seeds) = build(mode).train(), batch(4)
    network.loss(indices, labels, seeds)["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("mode", CASES)
def test_under_bf16_logits_and_loss_are_float32(mode: str) -> None:
    network, (indices, labels, seeds) = build(mode), batch(4)
    exact = network.loss(indices, labels, seeds)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = network.loss(indices, labels, seeds)["loss"]
        codes = network.generate(labels, seeds, WARM["guided"])
    assert rounded.dtype == torch.float32 and rounded != exact
    assert torch.allclose(rounded, exact, atol=0.1) and codes.max() < K


@pytest.mark.parametrize("mode", MODES)
def test_compiled_loss_equals_eager_in_one_graph(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the checks that tests add cannot be traced
    network, (indices, labels, seeds) = build(mode).train(), batch(4)
    compiled = torch.compile(network.loss, fullgraph=True, backend="aot_eager")
    eager = network.loss(indices, labels, seeds)["loss"]
    assert torch.allclose(compiled(indices, labels, seeds)["loss"], eager)


@pytest.mark.parametrize("mode", CASES)
def test_without_classes_it_is_unconditional(mode: str) -> None:
    network, (indices, _, seeds) = build(mode, classes=0), batch(4)
    none = torch.full((4,), -1)
    assert network.loss(indices, none, seeds)["loss"].isfinite()
    assert network.generate(none, seeds, WARM["plain"]).max() < K
    with pytest.raises(TokError, match=r"no such class\. Got 0\. Leave it out: the network is uncond"):
        network.generate(torch.zeros_like(none), seeds, WARM["plain"])
    with pytest.raises(TokError, match="--cfg-scale: the network has no classes and cannot be guided"):
        network.generate(none, seeds, WARM["guided"])


@pytest.mark.parametrize("mode", CASES)
def test_guiding_a_network_trained_without_label_drop_is_refused(mode: str) -> None:
    network, (_, labels, seeds) = build(mode, label_drop=0.0), batch(2)
    with pytest.raises(TokError, match="--cfg-scale: the network was trained without label_drop"):
        network.generate(labels, seeds, WARM["guided"])
    network.generate(labels, seeds, WARM["plain"])


@pytest.mark.parametrize("label", [-2, CLASSES])
@pytest.mark.parametrize("mode", CASES)
def test_a_class_out_of_range_is_refused(mode: str, label: int) -> None:
    with pytest.raises(TokError, match=f"--classes: no such class. Got {label}. Choose 0 to 2"):
        build(mode).generate(torch.tensor([0, label]), torch.zeros(2, dtype=torch.int64), WARM["plain"])


@pytest.mark.parametrize("mode", MODES)
def test_damaged_weights_are_refused_instead_of_sampled(mode: str) -> None:
    network, (_, labels, seeds) = build(mode), batch(2)
    network.transformer.norm.weight.data[3] = torch.nan
    with pytest.raises(TokError, match="logits are not finite"):
        network.generate(labels, seeds, WARM["guided"])


@pytest.mark.parametrize("mode", MODES)
def test_heads_that_do_not_divide_the_width_are_refused(mode: str) -> None:
    with pytest.raises(TokError, match="^proposal.heads: must divide the width 16"):
        PROPOSALS[mode](K, (3, 3), CLASSES, width=16, depth=1, heads=3, mlp_width=8)  # type: ignore[call-arg]


@pytest.mark.parametrize("mode", CASES)
def test_learns_a_toy_and_samples_the_asked_class(mode: str) -> None:
    torch.manual_seed(0)
    network = MEMBERS[mode](8, (2, 4), 2, **CASES[mode] | {"width": 32})
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    labels = torch.arange(16) % 2
    rows = torch.tensor([[3] * 8, [6] * 8])[labels]  # every picture of a class is one constant code
    for step in range(150):
        optimizer.zero_grad()
        network.loss(rows, labels, torch.arange(16) + 16 * step)["loss"].backward()
        optimizer.step()
    sampled = network.generate(labels, torch.arange(16), Sampling(steps=4, cfg_scale=1.5, temperature=0.7))
    assert (sampled == rows).float().mean() > 0.95
    free = network.generate(torch.full((64,), -1), torch.arange(64), Sampling(steps=8, temperature=0.7))
    assert set(free.mode(dim=1).values.tolist()) == {3, 6}  # the null class has learned both


@pytest.mark.parametrize("order", ["confidence", "halton"])
@pytest.mark.parametrize("mode", CASES)
def test_known_tokens_are_kept_and_the_rest_depends_on_them(mode: str, order: str) -> None:
    network, (indices, labels, seeds) = build(mode), batch(16)
    sampling = Sampling(steps=3, cfg_scale=2.0, order=order)
    known = torch.where(torch.arange(N) < 4, indices, -1)
    got = network.generate(labels, seeds, sampling, known)
    assert torch.equal(got[:, :4], indices[:, :4]) and got.max() < K
    other = torch.where(torch.arange(N) < 4, (indices + 1) % K, -1)
    assert not torch.equal(network.generate(labels, seeds, sampling, other)[:, 4:], got[:, 4:])


@pytest.mark.parametrize("mode", CASES)
def test_completing_a_picture_s_own_beginning_gives_the_picture(mode: str) -> None:
    network, (_, labels, seeds) = build(mode), batch(16)
    sampling = Sampling(steps=1, cfg_scale=2.0)  # a masked network draws all at once, each token by its own number
    whole = network.generate(labels, seeds, sampling)
    again = network.generate(labels, seeds, sampling, torch.where(torch.arange(N) < 4, whole, -1))
    assert torch.equal(again, whole) == (network.mode == "ar")
    assert torch.equal(again[:, :4], whole[:, :4])


@pytest.mark.parametrize("mode", CASES)
def test_known_tokens_that_make_no_sense_are_refused(mode: str) -> None:
    network, (indices, labels, seeds) = build(mode), batch(2)
    bad = [
        indices,
        indices[:, :3],
        torch.full_like(indices, -1).fill_diagonal_(0),
        torch.where(indices > K, indices, K),
    ]
    for known in bad:  # nothing to draw, too short, other places in each row, no codes
        with pytest.raises(ValueError, match="known tokens must"):
            network.generate(labels, seeds, Sampling(steps=1), known)
    if network.mode == "ar":
        with pytest.raises(ValueError, match="come first"):
            network.generate(labels, seeds, Sampling(), torch.where(torch.arange(N) > 4, indices, -1))


@pytest.mark.parametrize("mode", CASES)
def test_the_batch_size_changes_no_picture_of_1000(mode: str) -> None:
    network, (_, labels, seeds) = build(mode), batch(1000)
    sampling = Sampling(steps=4, cfg_scale=1.5, top_k=12, top_p=0.95)
    together = network.generate(labels, seeds, sampling)
    for size in (1, 16, 37):
        parts = zip(labels.split(size), seeds.split(size), strict=True)
        assert torch.equal(torch.cat([network.generate(c, s, sampling) for c, s in parts]), together)


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_rounds_the_transformers_matrices_once_and_draws_as_under_autocast(mode: str) -> None:
    network, (_, labels, seeds) = build(mode), batch(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = network.generate(labels, seeds, WARM["guided"])
    network.to_precision("bfloat16")
    assert torch.equal(network.generate(labels, seeds, WARM["guided"]), expected)
    rounded = {m.weight.dtype for m in network.transformer.modules() if isinstance(m, torch.nn.Linear)}
    assert rounded == {torch.bfloat16} and network.head_weight(1).dtype == torch.float32
