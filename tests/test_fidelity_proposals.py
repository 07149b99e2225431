"""Proposal networks and samplers against their published formulas, written here a second time; see docs/fidelity.md."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokcli.proposals import PROPOSALS, Proposal
from tokcli.proposals.masking import RATIOS, decoding_counts, halton_order, mask_counts

K, GRID, N, CLASSES, WIDTH, HEADS = 16, (3, 4), 12, 3, 16, 2
EACH = WIDTH // HEADS


def build(mode: str, **keys: Any) -> Any:
    """A network whose norms matter too, in eval mode."""
    torch.manual_seed(0)
    network: Proposal = PROPOSALS[mode](K, GRID, CLASSES, width=WIDTH, depth=2, heads=HEADS, mlp_width=24, **keys)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    return network.eval()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    indices, labels = torch.randint(K, (3, N), generator=g), torch.tensor([0, 2, -1])
    return indices, labels, K + labels.remainder(CLASSES + 1)  # the last row of classes is that of none


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """(n, e) with each pair (i, i + e / 2) as a complex number, turned by its angle (n, e / 2)."""
    z = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([z.real, z.imag], -1)


def transformer(w: dict[str, Tensor], x: Tensor, angles: Tensor | None, *, llama: bool) -> Tensor:
    """Llama's blocks of one sequence (n, d), or those of the masked network: not causal, GELU."""
    hidden = torch.full((len(x), len(x)), -math.inf).triu(1) if llama else 0.0
    for b in ("transformer.blocks.0.", "transformer.blocks.1."):
        q, k, v = (rms(x, w[b + "attention_norm.weight"]) @ w[b + "attention.qkv.weight"].T).split(WIDTH, -1)
        mixed = []
        for h in range(HEADS):
            own = slice(h * EACH, (h + 1) * EACH)
            qh, kh = ((y[:, own] if angles is None else turned(y[:, own], angles)) for y in (q, k))
            mixed.append((qh @ kh.T / EACH**0.5 + hidden).softmax(-1) @ v[:, own])
        x = x + torch.cat(mixed, -1) @ w[b + "attention.out.weight"].T
        y = rms(x, w[b + "mlp_norm.weight"]) @ w[b + "mlp.up.weight"].T
        if llama:
            gate, value = y.split(y.shape[-1] // 2, -1)
            y = gate / (1 + torch.exp(-gate)) * value
        else:
            y = y * 0.5 * (1 + torch.erf(y / 2**0.5))
        x = x + y @ w[b + "mlp.out.weight"].T
    return rms(x, w["transformer.norm.weight"])


FREQUENCIES = {e: 10000.0 ** (-2 * torch.arange(e // 2) / e) for e in (EACH, EACH // 2)}
PLACES = [(0, 0), *((r + 1, c + 1) for r in range(GRID[0]) for c in range(GRID[1]))]  # a prefix at the origin
ANGLES = {
    # RoFormer (arXiv 2104.09864), equation 15; LlamaGen (arXiv 2406.06525), section 2.2: one half by row, one by column
    "rope-1d": torch.arange(N + 1)[:, None] * FREQUENCIES[EACH],
    "rope-2d": torch.stack([torch.cat([r * FREQUENCIES[EACH // 2], c * FREQUENCIES[EACH // 2]]) for r, c in PLACES]),
}


@torch.no_grad()
@pytest.mark.parametrize("position", ANGLES)
def test_the_autoregressive_network_is_a_llama_written_by_hand(position: str) -> None:
    # Llama (arXiv 2302.13971), section 2.2: RMSNorm before, SwiGLU, rotary positions, causal, no biases
    network, (indices, labels, rows) = build("ar", position=position), batch()
    w = network.state_dict()
    for row in range(3):
        x = torch.cat([w["embedding.weight"][rows[row]][None], w["embedding.weight"][indices[row, :-1]]])
        y = transformer(w, x, ANGLES[position][:N], llama=True)
        wanted = -(y @ w["head.weight"][:K].T).log_softmax(-1)[torch.arange(N), indices[row]]
        torch.testing.assert_close(network.judged(indices, labels).nats[row], wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_autoregressive_network_is_that_of_transformers() -> None:
    # the same, by Hugging Face's code (extra `bench`)
    hf = pytest.importorskip("transformers")
    network, (indices, labels, _) = build("ar"), batch()
    sizes = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": 2, "intermediate_size": 24}
    theirs = hf.LlamaModel(hf.LlamaConfig(vocab_size=1, rms_norm_eps=1e-5, attn_implementation="eager", **sizes)).eval()
    for ours, block in zip(network.transformer.blocks, theirs.layers, strict=True):
        attention, mlp = block.self_attn, block.mlp
        parts = [attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj]
        given = [*ours.attention.qkv.weight.chunk(3), *ours.mlp.up.weight.chunk(2)]
        parts += [attention.o_proj, mlp.down_proj, block.input_layernorm, block.post_attention_layernorm]
        given += [m.weight for m in (ours.attention.out, ours.mlp.out, ours.attention_norm, ours.mlp_norm)]
        for part, weight in zip(parts, given, strict=True):
            part.weight.copy_(weight)
    theirs.norm.weight.copy_(network.transformer.norm.weight)
    x = torch.cat([network._prefix(labels), network.embedding(indices[:, :-1])], dim=1)
    wanted = theirs(inputs_embeds=x).last_hidden_state
    torch.testing.assert_close(network._features(indices[:, :-1], x[:, :1]), wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_masked_network_sees_everything_at_learned_positions() -> None:
    # MaskGIT (arXiv 2202.04200), section 3.1; its blocks are the Llama's with GELU, as the module says
    network, (indices, labels, rows) = build("nar"), batch()
    w, masked = network.state_dict(), torch.arange(N) % 3 == 1
    canvas = torch.where(masked, K + CLASSES + 1, indices)  # the mask's row is the last
    for row in range(3):
        x = torch.cat([w["embedding.weight"][rows[row]][None], w["embedding.weight"][canvas[row]]]) + w["position"]
        wanted = transformer(w, x, None, llama=False)[1:]
        found = network._features(canvas, network._prefix(labels))[row]
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_rars_inputs_hold_their_own_place_and_the_next_ones() -> None:
    # RAR (arXiv 2411.00776), section 3.2: token + its position + the position of the token that it is to predict
    network, (indices, labels, rows) = build("ar", position="learned", random_order=(0.5, 0.75)), batch()
    w, orders = network.state_dict(), torch.stack([torch.randperm(N) for _ in range(3)])
    for row, order in enumerate(orders.tolist()):
        x = [w["embedding.weight"][rows[row]] + w["position"][0] + w["target_position"][order[0]]]
        for here, after in zip(order, order[1:], strict=False):
            token = w["embedding.weight"][indices[row, here]]
            x.append(token + w["position"][1 + here] + w["target_position"][after])
        wanted = transformer(w, torch.stack(x), None, llama=True)
        found = network._features(indices.gather(1, orders)[:, :-1], network._prefix(labels), orders)[row]
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("progress", [0.0, 0.5, 0.6, 0.7, 0.75, 1.0])
def test_rars_share_of_random_orders_falls_linearly_between_its_epochs(progress: float) -> None:
    # RAR, section 3.2, equation 4: 200 and 300 of 400 epochs; the deviation of a share of 4,000 is 0.008
    network = build("ar", position="learned", random_order=(200 / 400, 300 / 400))
    epoch = 400 * progress
    wanted = 1.0 if epoch < 200 else 0.0 if epoch > 300 else 1 - (epoch - 200) / 100
    share = network._shuffled(torch.arange(4000), torch.full((4000,), progress)).float().mean()
    assert abs(float(share) - wanted) < 0.03


@pytest.mark.parametrize("n", [16, 64, 256])
def test_maskgits_counts_are_those_of_exact_arithmetic(n: int) -> None:
    # MaskGIT, section 3.2 and published decoding: floor(cos(pi t / 2T) n), then 1 to masked - 1
    mp = pytest.importorskip("mpmath").mp
    with mp.workdps(40):
        for steps in range(1, min(n, 66) + 1):
            wanted, masked = [], n
            for t in range(1, steps):
                cosine = mp.mpf(1) / 2 if 3 * t == 2 * steps else mp.cos(mp.pi * t / (2 * steps))
                masked = max(1, min(int(mp.floor(cosine * n)), masked - 1))
                wanted.append(masked)
            assert decoding_counts(n, steps) == [*wanted, 0]


def test_maskgits_training_masks_the_ceiling_of_the_cosine() -> None:
    # MaskGIT, section 3.1: ceil(gamma(r) N), gamma the cosine
    r = np.linspace(0.0005, 0.9995, 997)
    wanted = np.ceil(np.cos(np.pi / 2 * r) * 256).astype(int)
    assert mask_counts(RATIOS["cosine"].of(torch.from_numpy(r)), 256).tolist() == wanted.tolist()


def test_maskgits_loss_smooths_over_all_codes_and_counts_masked_tokens() -> None:
    # MaskGIT, section 3.1, label smoothing 0.1: targets of 0.9 + 0.1 / k and 0.1 / k
    network, (indices, labels, _) = build("nar", label_smoothing=0.1, mask_ratio="truncated-normal"), batch()
    seen: list[Tensor] = []
    network.embedding.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    seeds = torch.arange(3)
    loss = network.loss(indices, labels, seeds)["loss"]
    canvas = next(x for x in seen if x.shape == indices.shape)
    logits = network._features(canvas, network._prefix(labels)) @ network.head.weight.T
    targets = 0.9 * F.one_hot(indices, K) + 0.1 / K
    each = -(targets * logits.log_softmax(-1)).sum(-1)
    masked = canvas == network.mask_row
    wanted = each[masked].sum() / (3 * N * network.ratio.mean)
    assert masked.any() and not masked.all()
    torch.testing.assert_close(loss, wanted)


def test_mages_ratio_is_scipys_truncated_normal() -> None:
    # MAGE (arXiv 2211.09117), section 3.1 and appendix: mean 0.55, deviation 0.25, cut to 0.5..1
    from scipy.stats import truncnorm

    theirs, r = truncnorm((0.5 - 0.55) / 0.25, (1 - 0.55) / 0.25, loc=0.55, scale=0.25), np.linspace(0.001, 0.999, 99)
    ratio = RATIOS["truncated-normal"]
    assert np.abs(ratio.of(torch.from_numpy(r)).numpy() - theirs.ppf(r)).max() < 1e-12
    assert ratio.mean == pytest.approx(theirs.mean(), abs=1e-12)


@pytest.mark.parametrize("grid", [(8, 8), (16, 16), (12, 20)])
def test_the_halton_order_is_that_of_scipys_sequence(grid: tuple[int, int]) -> None:
    # Halton scheduler (arXiv 2503.17076), section 3: cells by the first point of bases 2 and 3 that falls into them
    from scipy.stats import qmc

    points = (
        qmc.Halton(2, scramble=False).random(5000)[1:] + 1e-12
    )  # without the origin; 1/3 is not to fall short of itself
    columns, rows = (points * [grid[1], grid[0]]).astype(int).T
    assert list(halton_order(grid)) == list(dict.fromkeys((rows * grid[1] + columns).tolist()))
