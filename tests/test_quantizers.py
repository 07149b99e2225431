"""The contract that every quantizer keeps. A new one adds a line to CASES."""

from typing import Any

import pytest
import torch
from test_docs_extending import shown
from torch import Tensor, nn

from tokcli.errors import TokError
from tokcli.quantizers import QUANTIZERS, Quantizer

MEMBERS: dict[str, type[Quantizer]] = {**QUANTIZERS, "bits": shown("## A quantizer", "QUANTIZERS")}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "vq-cosine-ema": ("vq", {"codebook_size": 16, "code_dim": 4, "rescue": "revive", "rescue_after": 3}),
    "vq-cosine-gradient": ("vq", {"codebook_size": 16, "code_dim": 4, "learning": "gradient"}),
    "vq-euclidean-ema": (
        "vq",
        {"codebook_size": 16, "code_dim": 4, "metric": "euclidean", "rescue": "revive", "rescue_after": 3},
    ),
    "vq-euclidean-gradient": (
        "vq",
        {"codebook_size": 16, "code_dim": 4, "metric": "euclidean", "learning": "gradient", "init": "uniform"},
    ),
    "vq-anchors": (
        "vq",
        {"codebook_size": 16, "code_dim": 4, "learning": "gradient", "rescue": "anchors", "metric": "euclidean"},
    ),
    "vq-rotation": ("vq", {"codebook_size": 16, "code_dim": 4, "gradient": "rotation"}),
    "fsq": ("fsq", {"levels": [3, 4, 5, 3]}),
    "lfq": ("lfq", {"code_dim": 4}),
    "simvq": ("simvq", {"codebook_size": 16, "code_dim": 4}),
    "ibq": ("ibq", {"codebook_size": 16, "code_dim": 4}),
    "none": ("none", {"code_dim": 4}),
    "bits": ("bits", {"code_dim": 4}),
}
WITH_CODES = [case for case, (name, _) in CASES.items() if MEMBERS[name].discrete]


def features(seed: int = 0, b: int = 6, n: int = 9) -> Tensor:
    return torch.randn(b, n, 4, generator=torch.Generator().manual_seed(seed))


def build(case: str) -> Quantizer:
    torch.manual_seed(0)
    name, keys = CASES[case]
    quantizer = MEMBERS[name](**keys)
    quantizer.initialise(features())
    return quantizer


def state(quantizer: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in quantizer.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_quantizer_is_under_contract() -> None:
    assert {name for name, _ in CASES.values()} == set(MEMBERS)


@pytest.mark.parametrize("case", CASES)
def test_shapes_and_types_are_those_of_the_protocol(case: str) -> None:
    quantizer = build(case)
    z_q, indices, losses = quantizer(features())
    assert z_q.shape == (6, 9, quantizer.code_dim) and z_q.dtype == torch.float32
    assert indices.shape == (6, 9) and indices.dtype == torch.int64
    assert all(term.ndim == 0 and torch.isfinite(term) for term in losses.values())


@pytest.mark.parametrize("case", WITH_CODES)
@pytest.mark.parametrize("training", [False, True])
def test_codes_of_indices_equal_z_q_bit_for_bit(case: str, training: bool) -> None:
    quantizer = build(case).train(training)
    z_q, indices, _ = quantizer(features(1))
    assert torch.equal(quantizer.codes(indices), z_q)


@pytest.mark.parametrize("case", CASES)
def test_indices_are_in_range(case: str) -> None:
    quantizer = build(case)
    indices = quantizer(10 * features(1, b=40)).indices
    assert indices.min() >= 0 and indices.max() < quantizer.codebook_size


@pytest.mark.parametrize("case", WITH_CODES)
def test_different_features_get_different_indices(case: str) -> None:
    assert len(build(case)(features(1, b=40)).indices.unique()) > 8


@pytest.mark.parametrize("case", CASES)
def test_gradient_reaches_z_e_through_z_q_and_through_the_losses(case: str) -> None:
    for through_codes in (True, False):
        z = features(1).requires_grad_()
        z_q, _, losses = build(case)(z)
        if not through_codes and not losses:
            continue
        ((z_q + 0.3).cos().sum() if through_codes else sum(losses.values())).backward()
        assert z.grad is not None and z.grad.abs().amax(-1).min() > 0


@pytest.mark.parametrize("case", CASES)
def test_eval_changes_nothing(case: str) -> None:
    quantizer = build(case).eval()
    before = state(quantizer)
    quantizer(features(1))
    quantizer(features(2))
    assert same(before, state(quantizer)) and not quantizer._pending


@pytest.mark.parametrize("case", CASES)
def test_forward_in_train_mode_leaves_the_state_to_after_step(case: str) -> None:
    quantizer = build(case)
    before = state(quantizer)
    quantizer(features(1))
    assert same(before, state(quantizer))
    quantizer.after_step(0)
    assert not same(before, state(quantizer))


@pytest.mark.parametrize("case", CASES)
def test_two_forwards_before_a_step_equal_one_forward_of_the_joint_batch(case: str) -> None:
    parts, joint = build(case), build(case)
    for step in range(6):
        z = features(step, b=2)
        parts(z[:1]), parts(z[1:]), joint(z)
        parts.after_step(step)
        joint.after_step(step)
    for name, value in joint.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_saved_state_continues_bit_for_bit(case: str) -> None:
    quantizer, resumed = build(case), MEMBERS[CASES[case][0]](**CASES[case][1])
    for step in range(8):
        if step == 4:
            resumed.load_state_dict(state(quantizer))
            resumed.initialise(features(9))  # a resumed run calls it again: it must do nothing
        for each in (quantizer, resumed)[: 2 if step >= 4 else 1]:
            each(features(step, b=1))
            each.after_step(step)
    assert same(state(quantizer), state(resumed))


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_autocast_does_not_touch_the_quantizer(case: str) -> None:
    quantizer = build(case).eval()
    z = features(1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        inside = quantizer(z)
    outside = quantizer(z.float())
    assert inside.z_q.dtype == torch.float32
    assert torch.equal(inside.z_q, outside.z_q) and torch.equal(inside.indices, outside.indices)


@pytest.mark.parametrize("case", CASES)
def test_a_sample_is_quantized_alike_alone_and_in_a_batch(case: str) -> None:
    quantizer = build(case).eval()
    z = features(1)
    alone = torch.cat([quantizer(z[i : i + 1]).indices for i in range(len(z))])
    assert torch.equal(alone, quantizer(z).indices)


@pytest.mark.parametrize("case", CASES)
def test_a_rank_without_images_gets_finite_losses(case: str) -> None:
    z_q, indices, losses = build(case)(features()[:0])
    assert z_q.shape == (0, 9, 4) and indices.shape == (0, 9)
    assert all(term == 0 for term in losses.values())


@pytest.mark.parametrize("case", CASES)
def test_builds_on_the_meta_device(case: str) -> None:
    with torch.device("meta"):
        quantizer = MEMBERS[CASES[case][0]](**CASES[case][1])
    assert all(t.is_meta for t in quantizer.state_dict().values())


def test_a_compiled_network_leaves_the_quantizer_eager_and_learns_the_same() -> None:
    plain, inside = build("vq-cosine-ema"), build("vq-cosine-ema")
    assert inside.eager  # what makes the training loop do the next line
    inside.forward = torch.compiler.disable(inside.forward)  # type: ignore[method-assign]
    compiled = torch.compile(lambda z: inside(2 * z).z_q + 1, backend="eager")
    assert torch.equal(compiled(features(1)), plain(2 * features(1)).z_q + 1)
    inside.after_step(0)
    plain.after_step(0)
    assert same(state(inside), state(plain))


@pytest.mark.parametrize("case", CASES)
def test_health_counts_what_was_used(case: str) -> None:
    quantizer = build(case)
    indices = quantizer(features(1)).indices
    quantizer.after_step(0)
    shares = indices.flatten().bincount(minlength=quantizer.codebook_size) / indices.numel()
    health = quantizer.health()
    assert health["codebook_usage"] == pytest.approx(len(indices.unique()) / quantizer.codebook_size)
    assert health["dead_codes"] == quantizer.codebook_size - len(indices.unique())
    assert health["top_code_share"] == pytest.approx(float(shares.max()))
    entropy = -float((shares * shares.clamp_min(1e-30).log()).sum())
    assert health["codebook_perplexity"] == pytest.approx(torch.tensor(entropy).exp().item(), rel=1e-4)


def test_usage_forgets_what_is_older_than_the_window() -> None:
    quantizer = build("vq-cosine-ema")
    quantizer.usage_window = 2
    quantizer(features())
    for step in range(3):
        quantizer(features(b=1, n=1))
        quantizer.after_step(step)
    health = quantizer.health()
    assert health["codebook_usage"] == 1 / 16
    assert health["codebook_usage_ever"] == len(build("vq-cosine-ema")(features()).indices.unique()) / 16


def test_the_yardstick_has_no_codes() -> None:
    with pytest.raises(TokError, match="has no codes"):
        build("none").codes(torch.zeros(1, dtype=torch.int64))
