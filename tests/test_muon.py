"""Muon: which weights it trains, how far and at which rate, exact continuation, and what it refuses."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tokcli.artifact.manifest import identity
from tokcli.cli import recipes
from tokcli.command import compute, plan
from tokcli.errors import TokError
from tokcli.models import DECODERS, ENCODERS, FeatureDecoder
from tokcli.proposals import PROPOSALS, TextCondition
from tokcli.recipe.check import InvalidRecipe
from tokcli.recipe.sections import Component, MeasuredTrain, Optim, Train
from tokcli.recipe.yaml import override, read_yaml, recipes_root
from tokcli.stages.train_proposal import Likelihood, ProposalRecipe
from tokcli.training import optimizers
from tokcli.training.optimizers import build_optimizers, hidden_matrices, muon_matrices, parameter_groups
from tokcli.training.updater import Updater, learning_rate

CPU = torch.device("cpu")
MUON = Optim(name="muon", lr=1e-3, muon_lr=2e-2, weight_decay=0.0, warmup_steps=2, min_lr=1e-4)
SIZES: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 24}


def proposal(name: str = "nar", **keys: Any) -> Likelihood:
    torch.manual_seed(0)
    network = PROPOSALS[name](8, (2, 2), 3, **{**SIZES, "dropout": 0.0, "label_drop": 0.0, **keys})
    nn.init.normal_(network.get_parameter("embedding.weight"), std=0.2)
    if name != "gpt2":
        nn.init.normal_(network.get_parameter("head.weight"), std=0.2)
    return Likelihood(network)


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    trunk: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2}
    text = PROPOSALS["ar"](8, (2, 2), 0, TextCondition(length=3, depth=1), **SIZES)
    learned = {name: proposal(name) for name in PROPOSALS} | {
        "both": proposal(position="learned+rope-2d", qk_norm=True)
    }
    return learned | {
        "text": text,
        "encoder": ENCODERS["vit"](4, image_size=8, patch_size=4, **trunk),
        "decoder": DECODERS["vit"](4, (2, 2), 8, **trunk),
        "feature decoder": FeatureDecoder(4, 6, (2, 2), **trunk),
    }


def batch(step: int = 0) -> list[Tensor]:
    random = torch.Generator().manual_seed(step)
    indices = torch.randint(0, 8, (4, 4), generator=random)
    return [indices, torch.randint(0, 3, (4,), generator=random), torch.arange(4) + 4 * step, torch.zeros(4)]


def updater(optim: Optim = MUON, **train: Any) -> Updater:
    return Updater(proposal(), optim, Train(**{"steps": 6, "batch_size": 4, **train}), CPU)


def weights(run: Updater) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in run.module.named_parameters()}


@pytest.mark.parametrize("name", networks())
def test_the_matrices_of_blocks_are_hidden_and_nothing_else_is(name: str) -> None:
    network = networks()[name]
    linears = {
        f"{path}.weight" for path, part in network.named_modules() if isinstance(part, nn.Linear) and ".blocks." in path
    }
    names = {id(p): path for path, p in network.named_parameters()}
    assert {names[id(p)] for p in hidden_matrices(network)} == linears and linears


def test_a_network_marks_its_hidden_layers_itself() -> None:
    module = nn.ModuleDict({"embedding": nn.Linear(3, 4), "gru": nn.GRU(4, 4), "head": nn.Linear(4, 3)})
    assert hidden_matrices(module) == []
    module["gru"].hidden_layer = True  # type: ignore[assignment]
    assert {id(p) for p in hidden_matrices(module)} == {id(p) for p in module["gru"].parameters() if p.ndim == 2}


def test_each_parameter_has_one_optimizer() -> None:
    module = proposal("ar", random_order=(0.2, 0.8), position="learned")
    owned = [p for o in build_optimizers(module, MUON, CPU) for g in o.param_groups for p in g["params"]]
    assert len(owned) == len({*map(id, owned)}) == len(list(module.parameters()))


def test_what_is_frozen_is_not_trained() -> None:
    module = proposal().requires_grad_(False)
    last = module.get_parameter("proposal.transformer.blocks.1.mlp.out.weight").requires_grad_(True)
    adamw, muon = build_optimizers(module, MUON, CPU)
    assert [g["params"] for g in adamw.param_groups] == [[], []] and muon.param_groups[0]["params"] == [last]


def test_adamw_trains_all_where_the_recipe_does_not_say_muon() -> None:
    module = proposal()
    (adamw,) = build_optimizers(module, Optim(lr=1.0), CPU)
    assert sum(len(g["params"]) for g in adamw.param_groups) == len(list(module.parameters()))


def test_muon_moves_a_matrix_by_equal_singular_values_of_adamws_size() -> None:
    run = updater()
    before = weights(run)
    run.update(5, batch())
    rate = MUON.muon_lr * learning_rate(5, MUON, 6) / MUON.lr  # type: ignore[operator]
    for name, after in weights(run).items():
        if ".blocks." in name and after.ndim == 2:
            moved = torch.linalg.svdvals(before[name] - after) / (rate * 0.2 * math.sqrt(max(after.shape)))
            assert 0.6 < moved[0] < 1.3, name  # Newton-Schulz brings them near 1
        if name == "proposal.head.weight":
            step = (before[name] - after).abs() / learning_rate(5, MUON, 6)
            torch.testing.assert_close(step, torch.ones_like(step), atol=1e-2, rtol=0)  # Adam's first step


def matrices(count: int) -> list[list[nn.Parameter]]:
    """Copies of tall, wide and square matrices, and one that gets no gradient."""
    torch.manual_seed(0)
    drawn = [torch.randn(shape) for shape in ((24, 8), (8, 24), (16, 16), (4, 4))]
    return [[nn.Parameter(m.clone()) for m in drawn] for _ in range(count)]


def muon_steps(params: list[nn.Parameter], steps: list[Any]) -> torch.optim.Optimizer:
    """Each of the steps, after a gradient of its own; the matrices' optimizer."""
    muon = torch.optim.Muon(params, lr=0.1, weight_decay=0.1, ns_steps=5, adjust_lr_fn="match_rms_adamw")
    for number, step in enumerate(steps):
        random = torch.Generator().manual_seed(number)
        for p in params[:-1]:
            p.grad = torch.randn(p.shape, generator=random)
        step(muon)
    return muon


def test_a_step_of_muon_is_torchs_bit_for_bit_where_bfloat16_is_not_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "emulated_bfloat16", lambda device: "")
    theirs, ours, both = matrices(3)
    muon_steps(theirs, [torch.optim.Muon.step] * 3)
    muon_steps(ours, [optimizers.muon_step] * 3)
    muon_steps(both, [torch.optim.Muon.step, optimizers.muon_step, torch.optim.Muon.step])  # one state for both
    for p, q, r in zip(theirs, ours, both, strict=True):
        assert torch.equal(p, q) and torch.equal(p, r)


def test_muon_multiplies_in_float32_where_bfloat16_is_emulated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tok")
    monkeypatch.setattr(optimizers, "emulated_bfloat16", lambda device: "it is slow")
    start, moved = matrices(2)
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "bfloat16", lambda *_: pytest.fail("bfloat16"))
        muon_steps(moved, [optimizers.update])
    for before, after in zip(start[:-1], moved[:-1], strict=True):
        update = (before * (1 - 0.1 * 0.1) - after).detach() / (0.1 * 0.2 * math.sqrt(max(before.shape)))
        u, values, v = torch.linalg.svd(momentum(before).double(), full_matrices=False)
        values = values / values.norm()
        for _ in range(5):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        torch.testing.assert_close(update.double(), u @ values.diag() @ v, atol=2e-5, rtol=0)
    assert torch.equal(moved[-1], start[-1])
    build_optimizers(proposal(), MUON, CPU, "optim")
    assert caplog.text.count("optim: Muon multiplies in float32, since it is slow") == 1


def momentum(before: Tensor) -> Tensor:
    """The direction of the first step of `muon_steps`, up to its length, which does not matter: its gradient."""
    random = torch.Generator().manual_seed(0)
    for shape in ((24, 8), (8, 24), (16, 16)):
        drawn = torch.randn(shape, generator=random)
        if drawn.shape == before.shape:
            return drawn
    raise AssertionError(before.shape)


def test_decay_shrinks_hidden_matrices_in_proportion_to_their_own_rate() -> None:
    free, decayed = updater(), updater(MUON.model_copy(update={"weight_decay": 0.5}))
    name, start = "proposal.transformer.blocks.0.mlp.up.weight", weights(free)
    for run in (free, decayed):
        run.update(5, batch())
    rate = MUON.muon_lr * learning_rate(5, MUON, 6) / MUON.lr  # type: ignore[operator]
    torch.testing.assert_close(weights(free)[name] - weights(decayed)[name], 0.5 * rate * start[name])


def test_both_rates_follow_the_schedule() -> None:
    run = updater()
    for step in range(6):
        run.update(step, batch(step))
        adamw, muon = ([g["lr"] for g in o.param_groups] for o in run.optimizers)
        assert adamw == [learning_rate(step, MUON, 6)] * 2
        assert muon == pytest.approx([20 * learning_rate(step, MUON, 6)])


def test_a_restored_state_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    straight, first, second = (updater(ema=0.9) for _ in range(3))
    for step in range(6):
        straight.update(step, batch(step))
    for step in range(3):
        first.update(step, batch(step))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(3, 6):
        second.update(step, batch(step))
    assert all(torch.equal(p, weights(second)[name]) for name, p in weights(straight).items())


def test_a_recipe_of_before_muon_is_the_same_recipe_and_its_state_goes_on() -> None:
    older = {"stage": "proposal", "optim": {"lr": 1e-3}, "gan": {"optim": {"lr": 1e-3}}}
    section = {"lr": 1e-3, "name": "adamw", "muon_lr": None}
    newer = {"stage": "proposal", "optim": section, "gan": {"optim": section}}
    assert identity(newer) == identity(older)
    muon = {**newer, "optim": {"lr": 1e-3, "name": "muon", "muon_lr": 0.02}}
    assert identity(muon) == {**older, "optim": muon["optim"]}
    run = updater(Optim(lr=1e-3))
    assert run.state_dict().keys() == {"module", "optimizer", "average"}  # as it was


def test_muon_without_its_rate_and_a_rate_without_muon_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"name: muon needs muon_lr. Got name: muon, muon_lr: null"):
        Optim(name="muon", lr=1e-3)
    with pytest.raises(ValidationError, match=r"muon_lr goes with name: muon. Got name: adamw, muon_lr: 0.02"):
        Optim(lr=1e-3, muon_lr=2e-2)


@pytest.mark.parametrize("section", ["optim", "gan.optim"])
def test_another_optimizer_keeps_the_keys_of_its_section(section: str) -> None:
    keys = {"name": "muon", "lr": 1e-3, "muon_lr": 2e-2, "clip": 1.0}
    said: list[str] = []
    for given, wanted in (
        ({"name": "adamw"}, {"name": "adamw", "lr": 1e-3, "clip": 1.0}),
        ({"name": "adamw", "muon_lr": None}, {**keys, "name": "adamw", "muon_lr": None}),
        ({"name": "muon", "muon_lr": 0.1}, {**keys, "muon_lr": 0.1}),
    ):
        optim = dict(keys)
        tree = {"optim": optim} if section == "optim" else {"gan": {"optim": optim}}
        override(
            tree,
            {f"{section}.{key}": v for key, v in given.items()},
            say=lambda *words: said.append(words[0] % words[1:]),
        )
        assert optim == wanted
        Optim(**optim)
    assert said == [f"{section}: adamw in place of muon. Dropped: muon_lr=0.02."]


def test_a_network_without_hidden_matrices_is_refused() -> None:
    decoder = DECODERS["conv"](4, (2, 2), 4, widths=[32, 32], channels=8)
    with pytest.raises(TokError, match=r"^gan.optim.name: .*hidden layers. Got muon. Set gan.optim.name=adamw"):
        muon_matrices(decoder, MUON, "gan.optim")
    assert muon_matrices(decoder, Optim(lr=1.0)) == []


def recipe(optim: Optim, **train: Any) -> ProposalRecipe:
    made = MeasuredTrain(steps=6, batch_size=4, **train)
    return ProposalRecipe(stage="proposal", proposal=Component(name="nar", **SIZES), optim=optim, train=made)


def test_a_plan_counts_one_number_a_hidden_weight_for_muon_and_two_for_adamw() -> None:
    module = proposal()
    parameters = sum(p.numel() for p in module.parameters())
    hidden = sum(p.numel() for p in hidden_matrices(module))
    states = [plan._memory(recipe(o), {"proposal": module}, None) for o in (Optim(lr=1.0), MUON)]
    assert [s["state_bytes"] for s in states if s] == [16 * parameters, 16 * parameters - 4 * hidden]


def test_a_plan_counts_the_products_of_newton_and_schulz() -> None:
    run = updater()
    run.gradients(0, batch())
    with FlopCounterMode(display=False) as counter:
        run.optimizers[1].step()
    assert compute.updating(run.module, MUON) == counter.get_total_flops() > 0
    assert compute.updating(run.module, Optim(lr=1.0)) == 0


@pytest.mark.parametrize("name", ["decoder-conv", "tokenizer-vqgan", "tokenizer-cluster"])
def test_a_recipe_of_a_network_without_hidden_matrices_is_refused_by_the_check(name: str, tmp_path: Path) -> None:
    tree = read_yaml(recipes_root() / "toy" / f"{name}.yaml")
    tree["optim"] |= {"name": "muon", "muon_lr": 0.01}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(InvalidRecipe, match=r"optim.name: the network has no matrices of hidden layers. Got muon"):
        recipes.check(str(tmp_path / "recipe.yaml"))


@pytest.mark.parametrize("name", ["proposal-ar", "proposal-nar", "tokenizer-vqkd"])
def test_a_recipe_of_a_network_with_them_is_valid(name: str, tmp_path: Path) -> None:
    tree = read_yaml(recipes_root() / "toy" / f"{name}.yaml")
    tree["optim"] |= {"name": "muon", "muon_lr": 0.01}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    assert recipes.check(str(tmp_path / "recipe.yaml")).endswith("is valid")


def test_parameters_that_muon_leaves_decay_as_before() -> None:
    module = proposal("gpt2")
    decayed, undecayed = parameter_groups(module, MUON.model_copy(update={"weight_decay": 0.3}))
    assert [g["weight_decay"] for g in (decayed, undecayed)] == [0.3, 0.0]
    assert decayed["params"] == [module.get_parameter("proposal.embedding.weight")]
    assert all(p.ndim == 1 or p is module.get_parameter("proposal.position") for p in undecayed["params"])
