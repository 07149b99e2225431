"""Updates: learning rate, accumulation, clipping, decay, averages, and the refusal of what is not finite."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tokcli import distributed
from tokcli.errors import TokError
from tokcli.recipe.sections import Optim, Train
from tokcli.training.finite import NonFinite
from tokcli.training.optimizers import parameter_groups
from tokcli.training.updater import Updater, learning_rate

CPU = torch.device("cpu")


class Regression(nn.Module):
    """A small net with one parameter of each kind: matrix, bias, norm, position, class token, codebook."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.position, self.class_token = nn.Parameter(torch.randn(1, 3)), nn.Parameter(torch.randn(1, 3))
        self.norm, self.linear = nn.LayerNorm(3), nn.Linear(3, 2)
        self.codebook = nn.Parameter(torch.randn(4, 3))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        predicted = self.linear(self.norm(x + self.position) + self.class_token)
        nearest = torch.cdist(x, self.codebook).min()
        return {"loss": (predicted - y).square().mean() + 0 * nearest, "worst": (predicted - y).abs().max()}


def updater(optim: dict[str, Any] | None = None, **train: Any) -> Updater:
    sections = {"lr": 1e-2, **(optim or {})}, {"steps": 10, "batch_size": 8, **train}
    return Updater(Regression(), Optim(**sections[0]), Train(**sections[1]), CPU)


def batch(step: int = 0) -> list[Tensor]:
    random = torch.Generator().manual_seed(step)
    return [torch.randn(8, 3, generator=random), torch.randn(8, 2, generator=random)]


def copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def test_the_rate_warms_up_linearly_then_falls_by_half_a_cosine() -> None:
    optim = Optim(lr=1.0, warmup_steps=4, min_lr=0.2)
    rates = [learning_rate(step, optim, steps=14) for step in (0, 1, 3, 4, 9, 14)]
    assert rates == pytest.approx([0.25, 0.5, 1.0, 1.0, 0.6, 0.2])


def test_the_rate_stays_at_its_lowest_past_the_last_step() -> None:
    assert learning_rate(99, Optim(lr=1.0, min_lr=0.1), steps=10) == pytest.approx(0.1)


def test_a_constant_rate_is_constant_after_its_warm_up() -> None:
    optim = Optim(lr=1.0, warmup_steps=2, schedule="constant")
    assert [learning_rate(step, optim, steps=5) for step in range(5)] == [0.5, 1, 1, 1, 1]


def test_an_update_uses_the_rate_of_its_step() -> None:
    run = updater({"lr": 1.0, "warmup_steps": 4})
    for step in (0, 2):
        run.update(step, batch())
        assert {group["lr"] for group in run.optimizers[0].param_groups} == {(step + 1) / 4}


def test_only_matrices_decay() -> None:
    module = Regression()
    decayed, undecayed = parameter_groups(module, Optim(lr=1.0, weight_decay=0.3))
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.3, 0.0)
    assert decayed["params"] == [module.linear.weight]
    kept = [
        module.codebook,
        module.position,
        module.class_token,
        module.norm.weight,
        module.norm.bias,
        module.linear.bias,
    ]
    assert {id(p) for p in undecayed["params"]} == {id(p) for p in kept}  # and nothing that is frozen


def test_decay_shrinks_matrices_and_nothing_else() -> None:
    free, decayed = updater({"weight_decay": 0.0}), updater({"weight_decay": 0.5})
    for run in (free, decayed):
        run.update(0, batch())
    a, b = copy(free.module), copy(decayed.module)
    assert [name for name in a if not torch.equal(a[name], b[name])] == ["linear.weight"]


def test_all_that_is_trained_decays_where_the_recipe_says_so() -> None:
    before = updater().module
    after = updater({"decay": "all", "weight_decay": 0.5, "lr": 1.0, "eps": 1e9})  # an eps that leaves the decay alone
    after.update(0, batch())
    for name, start in copy(before).items():
        expected = start if name == "frozen" else 0.5 * start  # p - lr * decay * p
        torch.testing.assert_close(copy(after.module)[name], expected, atol=1e-6, rtol=0)


def test_eps_is_added_to_the_root_of_the_second_moment() -> None:
    run = updater({"lr": 1.0, "eps": 0.1, "weight_decay": 0.0})
    before = copy(run.module)["linear.weight"]
    run.update(0, batch())
    gradient = (
        run.module.linear.weight.grad
    )  # at the first step both moments, corrected, are the gradient and its square
    torch.testing.assert_close(before - run.module.linear.weight, gradient / (gradient.abs() + 0.1))


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    whole, pieces = updater({"clip": 0.5}, ema=0.9), updater({"clip": 0.5}, ema=0.9, accumulate=2)
    for step in range(3):
        a, b = whole.update(step, batch(step)), pieces.update(step, batch(step))
        torch.testing.assert_close([a["loss"], a["gradient_norm"]], [b["loss"], b["gradient_norm"]], atol=1e-6, rtol=0)
    torch.testing.assert_close(copy(pieces.module), copy(whole.module), atol=1e-6, rtol=0)


def test_a_batch_that_cannot_be_divided_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="accumulate must divide batch_size"):
        updater(accumulate=3)
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(TokError, match=r"^train.batch_size: cannot be divided by 3 ranks x 2 micro-batches"):
        updater(accumulate=2)


def gradient_after_update(clip: float | None) -> tuple[float, float]:
    run = updater({"clip": clip})
    reported = float(run.update(0, batch())["gradient_norm"])
    return reported, float(torch.stack([p.grad.norm() for p in run.module.parameters() if p.grad is not None]).norm())


def test_the_gradient_is_clipped_to_its_largest_norm() -> None:
    free, clipped = gradient_after_update(None), gradient_after_update(0.01)
    assert free[0] == free[1] > 0.1  # no clip: the gradient itself
    assert clipped == pytest.approx((free[0], 0.01), rel=1e-4)  # logged is the norm before


def test_a_gradient_below_the_clip_is_left_alone() -> None:
    assert gradient_after_update(1e3) == pytest.approx(gradient_after_update(None))


def test_averages_follow_the_weights_with_a_warm_up_of_their_decay() -> None:
    run = updater(ema=0.5)
    expected = copy(run.module)["linear.weight"]
    for step in range(20):
        run.update(step, batch(step))
        decay = min(0.5, (1 + step) / (10 + step))  # 0.1, 0.18, ... 0.5 from step 8
        expected = decay * expected + (1 - decay) * run.module.linear.weight.detach()
    assert run.average is not None
    torch.testing.assert_close(run.average.shadow["linear.weight"], expected)


def test_averages_are_in_the_module_only_inside_the_context() -> None:
    run = updater(ema=0.99)
    run.update(0, batch())
    live = copy(run.module)
    with pytest.raises(KeyError), run.weights():
        assert not torch.equal(run.module.linear.weight, live["linear.weight"])
        raise KeyError
    torch.testing.assert_close(copy(run.module), live, atol=0, rtol=0)


def test_without_averages_the_weights_for_use_are_the_live_ones() -> None:
    run = updater()
    before = copy(run.module)
    with run.weights():
        torch.testing.assert_close(copy(run.module), before, atol=0, rtol=0)


def poisoned(what: str) -> list[Tensor]:
    x, y = batch(1)
    if what == "late micro-batch":
        x[-1, 0] = torch.nan
    else:
        x[0, 0] = {"nan": torch.nan, "infinite": torch.inf}[what]
    return [x, y]


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("what", ["nan", "infinite", "late micro-batch"])
def test_nothing_has_changed_when_a_gradient_is_not_finite(what: str, clip: float | None) -> None:
    run, clean = updater({"clip": clip}, ema=0.9, accumulate=2), updater({"clip": clip}, ema=0.9, accumulate=2)
    for each in (run, clean):
        each.update(0, batch())
    with pytest.raises(NonFinite):
        run.update(1, poisoned(what))
    for each in (run, clean):  # what follows is as if the poisoned batch had never been
        each.update(1, batch(2))
    torch.testing.assert_close(run.state_dict(), clean.state_dict(), atol=0, rtol=0)


def test_an_infinite_loss_stops_even_where_its_gradient_is_finite() -> None:
    class Absolute(Regression):
        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"loss": (self.linear(x) - y).abs().mean()}

    run = Updater(Absolute(), Optim(lr=1e-2), Train(steps=2, batch_size=8), CPU)
    before, (x, y) = copy(run.module), batch()
    y[0, 0] = torch.inf
    with pytest.raises(NonFinite):
        run.update(0, [x, y])
    torch.testing.assert_close(copy(run.module), before, atol=0, rtol=0)


def test_a_restored_updater_continues_bit_for_bit() -> None:
    straight, first, second = (updater(ema=0.9) for _ in range(3))
    for step in range(4):
        straight.update(step, batch(step))
    for step in range(2):
        first.update(step, batch(step))
    second.load_state_dict(first.state_dict())
    for step in range(2, 4):
        second.update(step, batch(step))
    torch.testing.assert_close(second.state_dict(), straight.state_dict(), atol=0, rtol=0)
