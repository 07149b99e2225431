"""What FSQ, LFQ, SimVQ, IBQ, anchors and the rotation trick promise beyond the contract of all quantizers."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tokcli.errors import TokError
from tokcli.quantizers import search
from tokcli.quantizers.fsq import FSQ
from tokcli.quantizers.ibq import IBQ
from tokcli.quantizers.lfq import LFQ
from tokcli.quantizers.simvq import SimVQ
from tokcli.quantizers.vq import VQ, rotated


def grad(term: Tensor, tensor: Tensor) -> Tensor:
    found = torch.autograd.grad(term, tensor, retain_graph=True, allow_unused=True)[0]
    return torch.zeros_like(tensor) if found is None else found


def rows(m: int = 64, d: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(1, m, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("levels", [[8, 8, 5, 5, 5], [8, 8, 8, 5, 5, 5], [8, 8, 8, 6, 5]])
def test_every_fsq_index_is_reached_and_survives_bfloat16_autocast(levels: list[int]) -> None:
    fsq = FSQ(levels=levels).eval()
    k = math.prod(levels)
    assert (fsq.codebook_size, fsq.code_dim) == (k, len(levels))
    codes = fsq.codes(torch.arange(k))
    assert len(codes.unique(dim=0)) == k and codes.abs().max() <= 1
    # the inverse of the bounding function, at values that round to the code in float32 and to its neighbour in bfloat16
    middle = torch.tensor(levels) // 2
    bounded = (codes * middle - 0.498 * codes.sign() + fsq.offset) / fsq.reach
    z_e = torch.atanh(bounded.clamp(-1 + 1e-6, 1 - 1e-6)) - fsq.shift
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fsq(z_e[None]).indices[0], torch.arange(k))


def test_fsq_of_zero_is_the_middle_level_and_its_first_channel_the_lowest_digit() -> None:
    fsq = FSQ(levels=[8, 5, 3])
    assert torch.equal(fsq(torch.zeros(1, 1, 3)).z_q, torch.zeros(1, 1, 3))
    step = fsq.codes(torch.tensor([1])) - fsq.codes(torch.tensor([0]))
    torch.testing.assert_close(step, torch.tensor([[0.25, 0.0, 0.0]]))
    assert fsq(torch.zeros(1, 1, 3)).losses == {}


def test_lfq_is_the_sign_and_its_entropy_that_of_a_softmax_over_all_codes() -> None:
    lfq, z = LFQ(code_dim=3, entropy=1.0, temperature=2.0), rows(d=3)
    quantized = lfq(z)
    assert torch.equal(quantized.z_q, torch.where(z > 0, 1.0, -1.0))
    p = (-torch.cdist(z[0], lfq.codes(torch.arange(8))).square() / 2.0).softmax(1)
    each = -torch.special.xlogy(p, p).sum(1).mean()
    bits = (lfq.codes(torch.arange(8)) > 0).float()
    mean = p.mean(0) @ bits  # of each bit: the entropy of independent bits
    together = -(torch.special.xlogy(mean, mean) + torch.special.xlogy(1 - mean, 1 - mean)).sum()
    assert quantized.losses["entropy"] == pytest.approx(float(each - together), abs=1e-5)


@pytest.mark.parametrize("joint", [2, 3])
def test_lfqs_joint_bits_make_the_entropy_that_of_their_combinations(joint: int) -> None:
    lfq, z = LFQ(code_dim=3, entropy=1.0, temperature=2.0, joint_bits=joint), rows(d=3)
    found = lfq(z).losses["entropy"]
    p = (-torch.cdist(z[0], lfq.codes(torch.arange(8))).square() / 2.0).softmax(1)
    each, mean = -torch.special.xlogy(p, p).sum(1).mean(), p.mean(0)
    # the lowest two bits together and the third alone, or all three
    groups = [mean] if joint == 3 else [mean[:4] + mean[4:], torch.stack([mean[:4].sum(), mean[4:].sum()])]
    together = -sum(torch.special.xlogy(one, one).sum() for one in groups)
    assert found == pytest.approx(float(each - together), abs=1e-5)


def test_lfqs_joint_bits_tell_codes_whose_bits_are_all_equal_from_codes_in_even_use() -> None:
    equal = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).repeat(2, 1)[None]
    even = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])[None]
    loss = {
        bits: [float(LFQ(code_dim=2, joint_bits=bits)(z).losses["entropy"]) for z in (equal, even)] for bits in (1, 2)
    }
    assert loss[1][0] == pytest.approx(loss[1][1]) and loss[2][0] > loss[2][1] + 0.05


def test_lfq_refuses_more_joint_bits_than_a_code_has() -> None:
    with pytest.raises(TokError, match=r"quantizer\.joint_bits: a code has 3 bits\. Got 4\. Set at most 3"):
        LFQ(code_dim=3, joint_bits=4)


def test_lfq_equals_the_published_listing_at_one_bit_where_its_two_entropies_are_the_same() -> None:
    lfq, z = LFQ(code_dim=1), (0.01 * rows(d=1)).requires_grad_()
    ours = lfq(z).losses
    logits = 2 * z[0] @ torch.tensor([[-1.0, 1.0]]) / 0.01
    p = logits.softmax(1)
    sample, batch = -(p * logits.log_softmax(1)).sum(1).mean(), -(p.mean(0) * (p.mean(0) + 1e-5).log()).sum()
    published = {"commitment": 0.25 * (z - z.sign()).square().mean(), "entropy": 0.1 * (sample - batch)}
    for name, value in published.items():
        assert (ours[name] / value).item() == pytest.approx(1, abs=1e-3)
        ratio = grad(ours[name], z).norm() / grad(value, z).norm()
        assert ratio.item() == pytest.approx(1, abs=1e-3), name


def test_lfq_has_finite_gradients_where_a_bit_is_the_same_in_all_features() -> None:
    z = (rows().abs() + 1).requires_grad_()
    assert grad(LFQ(code_dim=4)(z).losses["entropy"], z).isfinite().all()


def test_simvq_moves_codes_that_nothing_falls_to() -> None:
    simvq = SimVQ(codebook_size=32, code_dim=4)
    before, near = simvq.table().detach().clone(), rows(4)
    quantized = simvq(near)
    sum(quantized.losses.values()).backward()
    with torch.no_grad():
        simvq.weight -= 0.1 * simvq.weight.grad
    idle = torch.ones(32, dtype=torch.bool)
    idle[quantized.indices] = False
    assert (simvq.table() - before)[idle].norm(dim=1).min() > 0
    assert "basis" in dict(simvq.named_buffers()) and [n for n, _ in simvq.named_parameters()] == ["weight"]


def test_ibq_gives_every_code_a_gradient_through_z_q() -> None:
    ibq, z = IBQ(codebook_size=16, code_dim=4), rows()
    quantized = ibq(z)
    assert torch.equal(quantized.indices[0], (z[0] @ ibq.codebook.T).argmax(1))
    quantized.z_q.cos().sum().backward()
    assert ibq.codebook.grad is not None and ibq.codebook.grad.norm(dim=1).min() > 0
    z = z.requires_grad_()
    (ibq(z).z_q * 2).sum().backward()
    soft = (z.detach()[0] @ ibq.codebook.detach().T).double().requires_grad_()
    (2 * (soft.softmax(1) @ ibq.codebook.detach().double()).sum()).backward()
    wanted = soft.grad @ ibq.codebook.detach().double()  # type: ignore[operator]
    torch.testing.assert_close(z.grad[0].double(), wanted, atol=1e-5, rtol=1e-4)  # type: ignore[index]


def published_ibq(z: Tensor, codes: Tensor) -> dict[str, Tensor]:
    """The authors' listing, written out plainly with all its matrices, and the weights of their configuration."""
    logits = z @ codes.T
    soft = logits.softmax(1)
    hard = torch.eye(len(codes))[soft.argmax(1)]
    z_q, z_q_2 = (hard - soft.detach() + soft) @ codes, hard @ codes
    p = (logits / 0.01).softmax(1)
    sample, batch = -(p * (logits / 0.01).log_softmax(1)).sum(1).mean(), -(p.mean(0) * (p.mean(0) + 1e-5).log()).sum()
    return {
        "z_q": z_q.cos().sum(),
        "double": (z_q - z).square().mean(),
        "commitment": (z_q_2.detach() - z).square().mean(),
        "codebook": 0.25 * (z_q_2 - z.detach()).square().mean(),
        "entropy": 0.05 * (sample - batch),
    }


@pytest.mark.parametrize("parts", [1, 5])
def test_ibq_equals_the_published_listing_in_value_and_gradient(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    monkeypatch.setattr(search, "CPU_BUFFER", 4 * 16 * -(-64 // parts))
    ibq, z = IBQ(codebook_size=16, code_dim=4), (0.02 * rows()).requires_grad_()
    z_q, _, losses = ibq(z)
    published = published_ibq(z[0], ibq.codebook)
    for name, ours in {"z_q": z_q.cos().sum(), **losses}.items():
        assert (ours / published[name]).item() == pytest.approx(1, abs=1e-4), name
        for tensor in (z, ibq.codebook):
            a, b = (grad(term, tensor) for term in (ours, published[name]))
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    assert published.keys() == {"z_q", *losses}


def test_ibq_keeps_no_matrix_of_features_and_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "CPU_BUFFER", 4 * 512 * 8)
    ibq, z, sizes = IBQ(codebook_size=512, code_dim=4), rows(256).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        ibq(z)
    assert sum(sizes) < 256 * 512 / 8


def test_the_rotation_takes_z_to_q_and_is_a_constant() -> None:
    z, q = rows(8)[0].requires_grad_(), rows(8, seed=1)[0]
    assert torch.equal(rotated(z, q), q)
    for row in range(8):
        jacobian = torch.autograd.functional.jacobian(lambda x: rotated(x, q[row : row + 1]), z[row : row + 1].detach())
        matrix = jacobian[0, :, 0]
        torch.testing.assert_close(matrix @ z[row].detach(), q[row], atol=1e-5, rtol=1e-4)
        scale = q[row].norm() / z[row].detach().norm()
        torch.testing.assert_close(matrix @ matrix.T, scale**2 * torch.eye(4), atol=1e-4, rtol=1e-4)


def anchored(**keys: Any) -> VQ:
    torch.manual_seed(0)
    return VQ(
        codebook_size=12, code_dim=4, metric="euclidean", learning="gradient", init="uniform", rescue="anchors", **keys
    )


def test_anchors_take_unused_codes_and_leave_used_ones() -> None:
    vq, z = anchored(), rows(200)
    before = vq.codebook.detach().clone()
    used = vq(z).indices.unique()
    vq.after_step(0)
    frequency = vq.frequency
    assert torch.equal(frequency.nonzero().flatten(), used)
    alpha = 1 - torch.exp(-frequency * 12 * 10 / 0.01 - 1e-3)  # CVQ-VAE's formula
    nearest = z[0][torch.cdist(before, z[0]).argmin(1)]
    torch.testing.assert_close(vq.codebook.detach(), alpha[:, None] * before + (1 - alpha)[:, None] * nearest)
    moved = (vq.codebook.detach() - before).norm(dim=1)
    idle = frequency == 0
    assert idle.any() and moved[idle].min() > 0.1


def test_anchors_bring_dead_codes_into_use() -> None:
    usage = {}
    for rescue in (None, "anchors"):
        torch.manual_seed(0)
        vq = VQ(codebook_size=32, code_dim=4, metric="euclidean", learning="gradient", init="uniform", rescue=rescue)
        optimizer = torch.optim.Adam(vq.parameters(), 1e-3)
        for step in range(150):
            optimizer.zero_grad()
            sum(vq(rows(256, seed=step)).losses.values()).backward()
            optimizer.step()
            vq.after_step(step)
        usage[rescue] = len(vq.eval()(rows(2000, seed=99)).indices.unique()) / 32
    assert usage["anchors"] > usage[None] + 0.1, usage


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"learning": "ema", "rescue": "anchors"}, "anchors go with"),
        ({"learning": "gradient", "rescue": "anchors", "rescue_after": 3}, "rescue_after: goes with rescue"),
        ({"rescue_after": 3}, "rescue_after: goes with rescue"),
        ({"rescue_below": 0.1}, "rescue_below: goes with rescue"),
        ({"learning": "gradient", "decay": 0.9}, "decay: goes with learning: ema"),
    ],
)
def test_keys_without_effect_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(TokError, match=message):
        VQ(codebook_size=4, code_dim=2, **keys)


def test_mini_batch_k_means_ends_at_the_mean_of_all_that_fell_to_a_code() -> None:
    vq = VQ(codebook_size=2, code_dim=2, metric="euclidean", learning="gradient", kmeans_iterations=3)
    centres = torch.tensor([[5.0, 0.0], [-5.0, 0.0]])
    batches = [torch.cat([c + 0.3 * rows(20, 2, seed=2 * i + j)[0] for j, c in enumerate(centres)]) for i in range(4)]
    vq.initialise(batches[0])
    seen = torch.zeros(2, dtype=torch.int64)
    for batch in batches:
        vq.refine(batch, seen)
    assert seen.tolist() == [80, 80]
    joint = torch.cat(batches)
    wanted = torch.stack([joint[joint[:, 0] > 0].mean(0), joint[joint[:, 0] < 0].mean(0)])
    got = vq.codebook.detach()[vq.codebook.detach()[:, 0].argsort(descending=True)]
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
