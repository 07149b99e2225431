"""Options of the networks: positions, heads, norms, orders, checkpointing, operations; GPT-2's weights."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_proposals import livened
from test_proposals_ar import uncached
from torch import Tensor

from tokcli.artifact.weights import save_tensors
from tokcli.errors import TokError
from tokcli.pretrained import published_weights
from tokcli.proposals import PROPOSALS, Sampling
from tokcli.proposals.ar import AutoregressiveProposal
from tokcli.proposals.gpt2 import GPT2Proposal
from tokcli.proposals.transformer import grid_rotation, rotate

K, GRID, N, CLASSES = 16, (3, 4), 12, 3
SIZES = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 24}
GUIDED = Sampling(steps=4, cfg_scale=1.75, top_k=9, top_p=0.92)
OPTIONS: dict[str, dict[str, Any]] = {
    "2D": {"position": "rope-2d"},
    "LlamaGen": {"position": "rope-2d-llamagen"},
    "learned and 2D": {"position": "learned+rope-2d"},
    "learned": {"position": "learned"},
    "1D": {"position": "rope-1d"},
    "qk-norm": {"qk_norm": True},
    "tied": {"head": "tied"},
    "all": {"position": "rope-2d", "qk_norm": True, "head": "tied"},
}


def build(mode: str, **keys: Any) -> Any:
    torch.manual_seed(0)
    return livened(PROPOSALS[mode](K, GRID, CLASSES, **SIZES | keys))


def batch(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randint(K, (rows, N)), torch.randint(-1, CLASSES, (rows,)), torch.arange(rows)


@pytest.mark.parametrize("option", OPTIONS)
def test_cache_equals_no_cache_with_every_option(option: str) -> None:
    network, (_, labels, seeds) = build("ar", **OPTIONS[option]), batch(40)
    assert torch.equal(network.generate(labels, seeds, GUIDED), uncached(network, labels, seeds, GUIDED))


@pytest.mark.parametrize("order", [None, (0.2, 0.4)])
def test_cache_equals_no_cache_after_random_orders_and_for_gpt2(order: Any) -> None:
    _, labels, seeds = batch(40)
    for network in (build("ar", random_order=order, position="learned"), build("gpt2")):
        assert torch.equal(network.generate(labels, seeds, GUIDED), uncached(network, labels, seeds, GUIDED))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("mode", ["ar", "nar"])
def test_every_option_trains_all_it_has(mode: str, option: str) -> None:
    network, (indices, labels, seeds) = build(mode, **OPTIONS[option]).train(), batch(6)
    network.loss(indices, labels, seeds)["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("option", ["2D", "LlamaGen", "learned", "qk-norm"])
@pytest.mark.parametrize("mode", ["ar", "nar"])
def test_every_option_changes_the_loss(mode: str, option: str) -> None:
    plain = {"position": "rope-1d"}
    losses = [build(mode, **keys).loss(*batch(4))["loss"] for keys in (plain, plain | OPTIONS[option])]
    assert abs(losses[0] - losses[1]) > 1e-4


@pytest.mark.parametrize("key", ["dropout", "embedding_dropout", "attention_dropout"])
@pytest.mark.parametrize("mode", ["ar", "nar"])
def test_every_dropout_acts_in_training_only(mode: str, key: str) -> None:
    given = {"dropout": 0.0, "embedding_dropout": 0.0, "label_drop": 0.0} | {key: 0.5}
    network, data = build(mode, **given), batch(4)
    calm = [network.loss(*data)["loss"] for _ in range(2)]
    wild = [network.train().loss(*data)["loss"] for _ in range(2)]
    assert calm[0] == calm[1] and wild[0] != wild[1]


@pytest.mark.parametrize("mode", ["ar", "nar"])
def test_what_writes_to_the_residual_stream_starts_smaller_unless_told(mode: str) -> None:
    sizes = {"width": 64, "depth": 8, "heads": 2, "mlp_width": 96}
    for scaled, std in ((True, 0.02 / 16**0.5), (False, 0.02)):
        block = PROPOSALS[mode](K, GRID, CLASSES, **sizes, scale_residual=scaled).transformer.blocks[0]  # type: ignore[arg-type]
        for matrix, expected in ((block.attention.out, std), (block.mlp.out, std), (block.attention.qkv, 0.02)):
            assert matrix.weight.std().item() == pytest.approx(expected, rel=0.05)


def test_embeddings_are_dropped_as_branches_are_where_nothing_else_is_said() -> None:
    assert build("ar", dropout=0.3).transformer.dropout.p == 0.3
    assert build("ar", dropout=0.3, embedding_dropout=0.1).transformer.dropout.p == 0.1


def test_grid_angles_depend_on_distance_in_rows_and_columns() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 8)
    places = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    by = grid_rotation(places, 8)
    scores = rotate(q.expand(25, 8), by) @ rotate(k.expand(25, 8), by).T
    at = lambda r, c: 5 * r + c  # noqa: E731
    assert torch.allclose(scores[at(1, 1), at(0, 2)], scores[at(4, 2), at(3, 3)], atol=1e-5)
    assert not torch.allclose(scores[at(1, 1), at(0, 1)], scores[at(1, 1), at(1, 0)], atol=1e-2)


def llamagen_features(network: AutoregressiveProposal, x: Tensor) -> Tensor:
    """LlamaGen's forward pass of embeddings (n, d) of the class and codes: its table of angles begins with zeros."""
    e, n = network.width // network.heads, len(x)
    per_axis = 10_000.0 ** (-torch.arange(0, e // 2, 2) / (e // 2))
    angles = torch.stack([torch.cat([r * per_axis, c * per_axis]) for r in range(GRID[0]) for c in range(GRID[1])])
    table = torch.cat([torch.zeros(1, e // 2, dtype=torch.complex64), torch.polar(torch.ones_like(angles), angles)])[:n]
    rms = lambda x: x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()  # noqa: E731
    for block in network.transformer.blocks:
        q, k, v = block.attention.qkv(rms(x) * block.attention_norm.weight).chunk(3, -1)
        turned = [torch.complex(*t.view(n, network.heads, 2, e // 2).unbind(2)) * table[:, None] for t in (q, k)]
        scores = torch.einsum("ihp,jhp->hij", turned[0], turned[1].conj()).real / e**0.5
        weights = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf).softmax(-1)
        mixed = torch.einsum("hij,jhe->ihe", weights, v.view(n, network.heads, e))
        x = x + block.attention.out(mixed.flatten(1))
        gate, value = block.mlp.up(rms(x) * block.mlp_norm.weight).chunk(2, -1)
        x = x + block.mlp.out(gate * gate.sigmoid() * value)
    return rms(x) * network.transformer.norm.weight


def test_the_llamagen_position_computes_what_llamagen_computes() -> None:
    network, (indices, labels, _) = build("ar", position="rope-2d-llamagen"), batch(3)
    found = network._features(indices[:, :-1], network._prefix(labels))
    for row in range(3):
        x = torch.cat([network._prefix(labels)[row], network.embedding(indices[row, :-1])])
        torch.testing.assert_close(found[row], llamagen_features(network, x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", ["ar", "nar"])
@pytest.mark.parametrize("rotary", ["rope-1d", "rope-2d", "rope-2d-llamagen"])
def test_positions_that_are_combined_do_what_each_does(mode: str, rotary: str) -> None:
    both, turned, learned = (build(mode, position=p) for p in (f"learned+{rotary}", rotary, "learned"))
    state = both.state_dict()
    assert state.keys() == learned.state_dict().keys() == turned.state_dict().keys() | {"position"}
    turned.load_state_dict({name: t for name, t in state.items() if name != "position"})
    learned.load_state_dict(state)
    losses = [network.loss(*batch(4))["loss"] for network in (both, learned, turned)]
    assert len({round(loss.item(), 4) for loss in losses}) == 3
    torch.nn.init.zeros_(both.position)
    torch.testing.assert_close(both.loss(*batch(4))["loss"], losses[2])


@pytest.mark.parametrize(
    ("position", "of"), [("rope-1d", 2), ("rope-2d", 4), ("rope-2d-llamagen", 4), ("learned+rope-2d", 4)]
)
def test_heads_too_narrow_for_rotary_positions_are_refused(position: str, of: int) -> None:
    said = f"proposal.heads: width / heads must be a multiple of {of} for position {position}"
    with pytest.raises(TokError, match=re.escape(said)):
        build("ar", position=position, width=6, heads=6 if of == 2 else 3)


# --- checkpointing ---


@pytest.mark.parametrize("mode", ["ar", "gpt2", "nar"])
def test_checkpointing_changes_memory_alone(mode: str) -> None:
    found = []
    for on in (False, True):
        network = build(mode, checkpointing=on, dropout=0.2, attention_dropout=0.2).train()
        torch.manual_seed(5)  # dropout's
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            loss = network.loss(*batch(4))["loss"]
        loss.backward()
        found.append((loss.detach(), [p.grad for p in network.parameters()], sum(kept)))
    assert torch.equal(found[0][0], found[1][0]) and found[1][2] < 0.6 * found[0][2]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


# --- random orders ---


def test_orders_are_random_first_and_raster_in_the_end() -> None:
    network, seeds = build("ar", random_order=(0.25, 0.75)).train(), torch.arange(4000)
    raster = torch.arange(N)
    for progress, share in ((0.0, 1.0), (0.25, 1.0), (0.5, 0.5), (0.75, 0.0), (1.0, 0.0)):
        order = network._order(seeds, torch.full((4000,), progress))
        assert torch.equal(order.sort(dim=1).values, raster.expand(4000, -1))
        assert abs((order != raster).any(1).float().mean().item() - share) < 0.03
    first = network._order(seeds, torch.zeros(4000))[:, 0].bincount(minlength=N) / 4000
    assert (first - 1 / N).abs().max() < 0.03  # no place comes first more often


@pytest.mark.parametrize("position", ["rope-1d", "rope-2d", "learned", "learned+rope-2d"])
def test_raster_as_an_order_is_no_order(position: str) -> None:
    network, (indices, labels, _) = build("ar", random_order=(0.5, 1.0), position=position), batch(4)
    raster = torch.arange(N).expand(4, -1)
    prefix = network._prefix(labels)
    assert torch.allclose(
        network._features(indices[:, :-1], prefix, raster), network._features(indices[:, :-1], prefix), atol=1e-5
    )


@pytest.mark.parametrize("position", ["rope-1d", "rope-2d", "learned", "learned+rope-2d"])
def test_in_a_random_order_a_token_sees_those_before_it_and_knows_places(position: str) -> None:
    network, (indices, labels, _) = build("ar", random_order=(0.5, 1.0), position=position), batch(2)
    order = torch.stack([torch.randperm(N) for _ in range(2)])
    shuffled, prefix = indices.gather(1, order), network._prefix(labels)
    other = shuffled.clone()
    other[:, 7:] = (other[:, 7:] + 1) % K
    before, after = (network._features(x[:, :-1], prefix, order) for x in (shuffled, other))
    assert torch.allclose(before[:, :8], after[:, :8], atol=1e-5) and not torch.allclose(before[:, 8], after[:, 8])
    swapped = order.clone()
    swapped[:, [10, 11]] = order[:, [11, 10]]  # another place is asked for: another answer from the same tokens
    moved = network._features(shuffled[:, :-1], prefix, swapped)
    assert torch.allclose(moved[:, :10], before[:, :10], atol=1e-5) and not torch.allclose(moved[:, 10], before[:, 10])


def test_training_in_random_orders_depends_on_progress_and_evaluation_does_not() -> None:
    network, (indices, labels, seeds) = build("ar", random_order=(0.5, 1.0), label_drop=0.0), batch(4)
    early, late = torch.zeros(4), torch.ones(4)
    raster = network.loss(indices, labels, seeds)["loss"]
    assert network.loss(indices, labels, seeds, early)["loss"] == raster
    assert network.train().loss(indices, labels, seeds, early)["loss"] != raster
    assert torch.allclose(network.loss(indices, labels, seeds, late)["loss"], raster)


# --- operations ---


def test_operations_of_a_step_are_those_that_a_counter_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for mode in ("ar", "nar"):
        network, (indices, labels, seeds) = build(mode).train(), batch(2)
        with FlopCounterMode(display=False) as counter:
            network.loss(indices, labels, seeds)["loss"].backward()
        assert counter.get_total_flops() == pytest.approx(2 * network.flops(), rel=0.02)


# --- GPT-2 ---


def language(depth: int = 2, width: int = 16, mlp: int = 24, positions: int = 40) -> dict[str, Tensor]:
    """Random weights under the names that Hugging Face's GPT-2 files have, masks included."""
    torch.manual_seed(3)
    state = {"wte.weight": torch.randn(50, width), "wpe.weight": torch.randn(positions, width)}
    for i in range(depth):
        for part, (inputs, outputs) in {
            "attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width), "mlp.c_fc": (width, mlp), "mlp.c_proj": (mlp, width),
        }.items():  # fmt: skip
            state[f"h.{i}.{part}.weight"] = torch.randn(inputs, outputs) / inputs**0.5
            state[f"h.{i}.{part}.bias"] = torch.randn(outputs)
        for norm in ("ln_1", "ln_2"):
            state |= {f"h.{i}.{norm}.weight": 1 + torch.randn(width) / 9, f"h.{i}.{norm}.bias": torch.randn(width)}
        state[f"h.{i}.attn.bias"] = torch.ones(1, 1, positions, positions).tril()
    return state | {"ln_f.weight": torch.randn(width), "ln_f.bias": torch.randn(width)}


def reference(state: dict[str, Tensor], x: Tensor, heads: int) -> Tensor:
    """GPT-2's forward pass of embeddings (n, d), after its paper."""
    n, d = x.shape
    x = x + state["wpe.weight"][:n]
    norm = lambda x, name: torch.nn.functional.layer_norm(x, (d,), state[name + ".weight"], state[name + ".bias"])  # noqa: E731
    linear = lambda x, name: x @ state[name + ".weight"] + state[name + ".bias"]  # noqa: E731
    for i in range(2):
        q, k, v = linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn").split(d, -1)
        out = torch.empty(n, d)
        for h in range(heads):
            own = slice(h * d // heads, (h + 1) * d // heads)
            scores = q[:, own] @ k[:, own].T / (d // heads) ** 0.5
            out[:, own] = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf).softmax(-1) @ v[:, own]
        x = x + linear(out, f"h.{i}.attn.c_proj")
        y = linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        x = x + linear(0.5 * y * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3))), f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f")


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_language_weights_compute_what_gpt2_computes(prefix: str) -> None:
    network: GPT2Proposal = build("gpt2")
    state = language()
    network.load_language({prefix + name: t for name, t in state.items()}, "gpt2")
    indices, labels, _ = batch(1)
    prefix_embedding = network._prefix(labels)
    x = torch.cat([prefix_embedding, network.embedding(indices[:, :-1])], dim=1)[0]
    with torch.no_grad():
        assert torch.allclose(
            network._features(indices[:, :-1], prefix_embedding)[0], reference(state, x, 2), atol=1e-4
        )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"positions": 5}, "holds no 13 position embeddings of a GPT-2. Got 5"),
        ({"depth": 1}, "weights do not fit the network: 12 missing"),
        ({"mlp": 20}, "of another shape"),
    ],
)
def test_language_weights_of_another_size_are_refused(keys: dict[str, int], message: str) -> None:
    with pytest.raises(TokError, match=message):
        build("gpt2").load_language(language(**keys), "gpt2")


def test_absent_language_weights_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none(repository: str, file: str) -> Path:
        raise published_weights.Unreachable("hub unreachable")

    monkeypatch.setattr(published_weights, "hugging_face", none)
    monkeypatch.setenv("TOK_CACHE", str(tmp_path))
    network = build("gpt2", language="gpt2-medium")
    said = "language model gpt2-medium: weights not found .hub unreachable.. Give --language-weights PATH, or fetch them.*openai-community/gpt2-medium model.safetensors"
    with pytest.raises(TokError, match=said):
        network.load_published(None)
    save_tensors(tmp_path / "own.safetensors", language())
    network.load_published(tmp_path / "own.safetensors")
    assert torch.equal(network.position, language()["wpe.weight"][:13])


def test_a_fresh_network_is_the_same_with_every_default_spelled_out() -> None:
    given = {"position": "rope-1d", "qk_norm": False, "head": "zero", "embedding_dropout": None, "random_order": None}
    torch.manual_seed(0)
    first = AutoregressiveProposal(K, GRID, CLASSES, **SIZES)  # type: ignore[arg-type]
    torch.manual_seed(0)
    second = AutoregressiveProposal(K, GRID, CLASSES, **SIZES | given)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
