"""Floating-point operations of plans against hand-computed ones and against what really runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_faults import draw, run
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tokcli import build
from tokcli.command import compute
from tokcli.command.inputs import load_recipe
from tokcli.command.options import Options
from tokcli.methods import method_class, resolve
from tokcli.proposals import PROPOSALS, Sampling, packing
from tokcli.recipe.check import resolved
from tokcli.recipe.sections import GAN, Optim, Train
from tokcli.stages.train_proposal import FAMILIES, Likelihood, ProposalRecipe


class Loss(nn.Module):
    """A network with the sum of what it makes as its loss."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.layers(x).square().sum()}


def empty(*shape: int) -> Callable[[], list[Tensor]]:
    return lambda: [torch.empty(compute.MICRO, *shape)]


def test_a_linear_layer_takes_two_operations_a_weight_and_row_and_four_more_for_its_gradients() -> None:
    with compute.META:
        network = Loss(nn.Linear(4, 8), nn.Linear(8, 6))
    found = compute.training_step(network, empty(5, 4))
    assert found.update == 2 * 5 * (2 * 4 * 8 + 3 * 8 * 6)  # the first needs no gradient of its input
    assert found.inputs == 0


def test_a_convolution_takes_two_operations_a_weight_and_pixel() -> None:
    with compute.META:
        network = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    assert compute.count(lambda: network(torch.empty(1, 3, 16, 16))) == 2 * (3 * 8 * 3 * 3) * 8 * 8


def test_attention_takes_two_products_of_its_tokens_with_its_tokens() -> None:
    with torch.no_grad():
        q = torch.empty(1, 2, 10, 4, device="meta")
        assert compute.count(lambda: F.scaled_dot_product_attention(q, q, q)) == 2 * (2 * 2 * 10 * 10 * 4)


def test_a_product_that_is_added_in_place_counts() -> None:
    x = torch.empty(3, 5, device="meta")
    assert compute.count(lambda: torch.zeros(3, 7).addmm_(x, torch.empty(5, 7))) == 2 * 3 * 5 * 7


def test_activations_are_what_the_backward_pass_reads() -> None:
    with compute.META:
        network = Loss(nn.Linear(4, 8), nn.Sigmoid())
    found = compute.training_step(network, empty(5, 4))
    assert found.activations == 4 * 5 * (4 + 8)  # input and sigmoid, which the square shares


@pytest.mark.parametrize("section", [
    {"name": "vq", "codebook_size": 5000, "code_dim": 8},  # faiss's, on CPUs
    {"name": "vq", "codebook_size": 384, "code_dim": 32, "metric": "euclidean", "learning": "gradient"},
])  # fmt: skip
def test_the_search_for_the_nearest_code_counts_wherever_codes_fall(section: dict[str, Any]) -> None:
    with compute.META:
        quantizer = build.component("quantizer", compute.QUANTIZERS, section)
    with compute.quantizer_aside(quantizer.eval(), section), torch.no_grad():
        found = compute.count(lambda: quantizer(torch.empty(2, 4, section["code_dim"])))
    padded = -(-section["codebook_size"] // 128) * 128  # the search's blocks
    assert found == 2 * 8 * padded * section["code_dim"]


def tiny(mode: str, **keys: Any) -> Any:
    return PROPOSALS[mode](40, (4, 4), 3, width=16, depth=2, heads=2, mlp_width=24, **keys)


@pytest.mark.parametrize("mode", ["ar", "gpt2", "nar"])
def test_a_proposal_networks_own_count_is_the_counters(mode: str) -> None:
    with compute.META:
        network = tiny(mode)

    def inputs() -> list[Tensor]:
        return [torch.zeros(2, 16, dtype=torch.int64), network.null(2), torch.zeros(2).long(), torch.zeros(2)]

    assert compute.training_step(Likelihood(network), inputs).update == pytest.approx(network.flops(), rel=0.02)
    assert network.judging_flops() == pytest.approx(network.flops() / 3, rel=0.05)  # but for the head's classes


PUBLISHED = [
    "imagenet/proposal-ar-medium",
    "imagenet/proposal-nar",
    "imagenet/proposal-ar-llamagen-b",
    "coco/proposal-ar-t2i",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_networks_own_counts_are_the_counters(name: str) -> None:
    from tokcli.stages.train_proposal import _random

    recipe = load_recipe(Options(recipe=name), ProposalRecipe, "", FAMILIES)
    facts = recipe.expects.planned()
    with compute.META:
        network = build.build_proposal(resolved(recipe), facts["codebook_size"], facts["grid"], facts["classes"])
    found = compute.training_step(Likelihood(network), lambda: _random(network, compute.MICRO))
    assert found.update == pytest.approx(network.flops(), rel=0.02)


ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@pytest.mark.parametrize("mode, settings", [
    ("ar", {}), ("ar", {"cfg_scale": 2.0}), ("ar", {"cfg_scale": 2.0, "cfg_interval": (0.0, 0.5)}),
    ("nar", {"steps": 5}), ("nar", {"steps": 5, "cfg_scale": 2.0}),
    ("nar", {"steps": 5, "order": "halton", "cfg_scale": 2.0, "cfg_schedule": "linear"}),
])  # fmt: skip
def test_what_drawing_takes_is_what_really_runs(
    mode: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_available", lambda dtype: False)  # whose products no counter sees

    def keys(q: Any, k: Any, *_: Any, **__: Any) -> int:
        return 4 * q[0] * q[1] * q[2] * k[2] * q[3]

    network, sampling = tiny(mode), Sampling(**settings)
    with FlopCounterMode(display=False, custom_mapping={ATTENTION: keys}) as counter:
        network.generate(torch.tensor([0, 2]), torch.arange(2), sampling)
    assert network.drawing(sampling, 16).flop == pytest.approx(counter.get_total_flops() / 2, rel=0.02)
    assert network.drawing(sampling, 16).weights == sum(p.numel() for p in network.transformer.parameters())


def method_of(name: str, device: torch.device, **sets: Any) -> tuple[Any, Any]:
    kind = method_class(name.split("tokenizer-")[1])
    recipe = load_recipe(Options(recipe=name, sets=sets), kind.recipe_model, "", kind.families, resolve)
    recipe = kind.settled(recipe)
    with device:
        return recipe, kind(recipe, None, device)


@pytest.mark.parametrize("name", ["toy/tokenizer-vqgan", "toy/tokenizer-vqkd", "toy/tokenizer-cluster"])
def test_a_step_without_values_counts_as_one_with_them(name: str) -> None:
    cpu = torch.device("cpu")
    recipe, real = method_of(name, cpu)
    _, method = method_of(name, compute.META)
    real.tokenizer.quantizer.initialised.fill_(True)

    def some() -> Tensor:
        return torch.rand(compute.MICRO, 3, recipe.data.size, recipe.data.size)

    with compute.quantizer_aside(method.tokenizer.quantizer, resolved(recipe)["quantizer"]):
        counted = compute.training_step(
            method.objective, lambda: method.trial(some()), method.adversary, recipe.train.steps - 1
        )
    with FlopCounterMode(display=False) as counter:
        inputs = real.trial(some())
        if real.adversary:
            real.adversary.begin(recipe.train.steps - 1)
        terms = real.objective(*inputs)
        terms["loss"].backward()
        if real.adversary:
            real.adversary.objective(inputs[-1], terms["decoded"])["loss"].backward()
    assert (counted.inputs + counted.update) * compute.MICRO == counter.get_total_flops() > 0


def test_features_that_are_kept_are_computed_once_an_image() -> None:
    def total(cached: bool) -> compute.Compute:
        recipe, method = method_of("toy/tokenizer-vqkd", compute.META, **{"data.cache_features": cached})
        from tokcli.stages.train_tokenizer import _compute

        return _compute(recipe, method, 10)[0]

    once, always = total(True), total(False)
    teacher = (always.flop - once.flop) / 8  # a batch
    assert teacher > 0 and once.total == pytest.approx(4 * once.flop + 10 * teacher)


def test_a_discriminator_counts_from_where_it_learns() -> None:
    optim = {"lr": 1e-3}

    def gan(**keys: int) -> GAN:
        return GAN.model_validate({"discriminator": {"name": "patch"}, "optim": optim, "weight": 1.0, **keys})

    assert compute.phases(None, 100) == [(0, 100)]
    assert compute.phases(gan(), 100) == [(0, 100)]
    assert compute.phases(gan(start=50, warmup=20), 100) == [(0, 30), (30, 20), (50, 50)]
    assert compute.phases(gan(start=500, warmup=450), 100) == [(0, 50), (50, 50)]


def test_hours_are_operations_over_the_assumed_share_of_the_peak() -> None:
    with compute.META:
        network = Loss(nn.Linear(1000, 1000, bias=False))
    train = Train(steps=10**9, batch_size=7, precision="bfloat16")
    found, _ = compute.training(train, Optim(lr=1.0), network, empty(1000))
    assert found.flop == 7 * 4 * 10**6 and found.total == 10**9 * found.flop
    assert found.seconds == pytest.approx(28e15 / (8 * 989e12 * 0.35))
    (line, besides) = found.text()
    assert line == ("# compute 28 MFLOP a step, 28 PFLOP in all; by arithmetic, on 8 GPUs of 989 TFLOP/s (bfloat16) "
                    "at an assumed 35%: 0.2 min")  # fmt: skip
    assert besides.startswith("# besides reading")


def test_drawing_that_waits_for_memory_takes_as_long_as_reading() -> None:
    found = compute.bulk("image", 1e9, 100, "TF32", traffic=8 * 3.35e12)
    assert found.seconds == pytest.approx(1 / 0.35) and "3.35 TB/s of memory" in found.text()[0]
    assert compute.bulk("image", 1e9, None, "TF32").seconds is None


def test_every_command_says_what_it_computes(tmp_path: Path) -> None:
    draw(tmp_path / "photos" / "train" / "a" / "1.png")
    draw(tmp_path / "photos" / "train" / "b" / "2.png")

    def plan(name: str, *command: Any) -> dict[str, Any]:
        (tmp_path / name).write_text(run(*command, "--dry-run", "--json").stdout)
        found: dict[str, Any] = json.loads((tmp_path / name).read_text())
        return found["compute"]

    t, d, k, p = (tmp_path / name for name in "tdkp")
    data = ["--data", tmp_path / "photos" / "train"]
    found = [
        plan("t", "train-tokenizer", "--recipe", "toy/tokenizer-vqgan", *data),
        plan("d", "train-decoder", "--recipe", "toy/decoder-conv", "--tokenizer", t),
        plan("k", "tokenize", "--recipe", "toy/tokens", "--tokenizer", t),
        plan("p", "train-proposal", "--recipe", "toy/proposal-ar", "--tokens", k),
        plan("s", "sample", "--recipe", "toy/sample-ar", "-n", "5", "--proposal", p, "--decoder", d),
    ]
    assert [one["units"] for one in found] == [4, 4, 2, 4, 5]
    assert all(one["flop"] > 0 and one["seconds"] > 0 for one in found)
