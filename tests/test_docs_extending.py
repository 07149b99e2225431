"""Every example of docs/extending.md is executed and keeps its family's contract."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_docs import PAGES, ROOT, blocks, section

from tokcli.build import build_proposal, component
from tokcli.data.sources import SOURCES, ImageSource, open_source
from tokcli.methods.distillation import Distillation, DistillationRecipe
from tokcli.metrics import METRICS, Metric
from tokcli.metrics.reported import Reported, ask
from tokcli.pretrained import NETWORKS, build_network
from tokcli.pretrained.teacher import TEACHERS, Teacher, build_teacher
from tokcli.proposals import PROPOSALS, Sampling
from tokcli.quantizers import QUANTIZERS
from tokcli.recipe.check import InvalidRecipe, check, component_model, resolved
from tokcli.recipe.explain import keys
from tokcli.recipe.yaml import override, parse_set, read_yaml
from tokcli.stages.train_proposal import FAMILIES, ProposalRecipe

PAGE = PAGES["docs/extending.md"]


def run(heading: str, **names: Any) -> None:
    """The Python of a section, with the names that the files it edits would have."""
    exec("\n".join(blocks(section(PAGE, heading), "python")), {"__name__": "extending", **names})


def shown(heading: str, family: str) -> Any:
    """The member that a section adds to a family, for the family's own contract."""
    added: dict[str, Any] = {}
    run(heading, **{family: added})
    (member,) = added.values()
    return member


@pytest.fixture
def bits(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The page's quantizer, built through the recipe check as `--set` would."""
    monkeypatch.setitem(QUANTIZERS, "bits", None)  # type: ignore[arg-type]  so that it is taken out again
    run("## A quantizer", QUANTIZERS=QUANTIZERS)
    tree = read_yaml(ROOT / "recipes/toy/tokenizer-vqkd.yaml")
    (setting,) = re.findall(r"`--set '(quantizer=[^']+)'`", PAGE)
    override(tree, parse_set((setting,)))
    checked = check(DistillationRecipe, tree, "extending.md", Distillation.families)
    with pytest.raises(InvalidRecipe, match=r"quantizer\.codedim: unknown key. Did you mean 'code_dim'"):
        wrong = tree | {"quantizer": {"name": "bits", "codedim": 9}}
        check(DistillationRecipe, wrong, "extending.md", Distillation.families)
    return component("quantizer", QUANTIZERS, resolved(checked)["quantizer"])


def test_the_quantizer_keeps_the_contract(bits: Any) -> None:
    z_e = torch.randn(4, 6, bits.code_dim, generator=torch.Generator().manual_seed(0), requires_grad=True)
    bits.initialise(z_e)
    z_q, indices, losses = bits(z_e)
    assert torch.equal(bits.codes(indices), z_q) and torch.equal(z_q > 0, z_e > 0)
    assert torch.allclose(z_q.norm(dim=-1), torch.ones(4, 6))
    assert bits.codebook_size == 512 and indices.min() >= 0 and indices.max() < 512
    (z_q.sin().sum() + sum(losses.values())).backward()
    assert z_e.grad is not None and z_e.grad.abs().min() > 0
    bits.after_step(0)
    assert bits.health()["codebook_usage"] == len(indices.unique()) / 512


def test_the_teacher_gives_patches_and_its_own_pooled_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "deit", None)  # type: ignore[arg-type]
    run("## A teacher", NETWORKS=NETWORKS)
    monkeypatch.setitem(TEACHERS, "deit", Teacher)  # as the line of the dict gives it
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = build_teacher("deit", {"image_size": 64}, "random")(images)
    assert features.shape == (1, 16, 192)
    network = build_network("deit", "random")
    network.extractor_size = 64
    assert torch.allclose(network.pooled(images), features.mean(1), atol=1e-5)


def test_the_data_source_is_what_data_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SOURCES, "npy", None)  # type: ignore[arg-type]
    run("## A data source", SOURCES=SOURCES)
    images = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
    np.save(tmp_path / "photos.npy", images)
    source = open_source(str(tmp_path / "photos.npy"), size=8)
    assert isinstance(source, ImageSource) and type(source) is SOURCES["npy"] and len(source) == 2
    assert open_source(source.name, size=8).id == source.id and len(source.id) == 17
    assert torch.equal(source.image(1), torch.from_numpy(images[1]).permute(2, 0, 1))
    assert [source.label(1), source.captions(1), source.key(1)] == [-1, [], "1"]


def test_the_metric_is_asked_by_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "nearest_real", None)  # type: ignore[arg-type]
    run("## A metric", METRICS=METRICS, Metric=Metric)
    found = dict(ask("sets", torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([[0.0, 1.0], [3.0, 4.0]])))
    assert found["nearest_real"].value == pytest.approx((1 + 10**0.5) / 2)
    assert Reported("nearest_real", "vits14", "ar").name == "nearest_real_vits14_ar"


@pytest.fixture
def gru(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The page's proposal network, built through the recipe check."""
    monkeypatch.setitem(PROPOSALS, "gru", None)  # type: ignore[arg-type]
    run("## A proposal network", PROPOSALS=PROPOSALS)
    tree = read_yaml(ROOT / "recipes/toy/proposal-ar.yaml")
    (setting,) = re.findall(r"--set '(proposal=[^']+)'", PAGE)
    override(tree, parse_set((setting.replace("256", "8"),)))
    return build_proposal(resolved(check(ProposalRecipe, tree, "extending.md", FAMILIES)), 16, (2, 3), 2)


def test_the_proposal_network_learns_is_judged_and_draws_by_seed_alone(gru: Any) -> None:
    indices, classes, seeds = torch.tensor([[1, 2, 3, 4, 5, 6]] * 4), torch.tensor([0, 1, -1, 0]), torch.arange(4)
    before = gru.loss(indices, classes, seeds)["loss"]
    optimizer = torch.optim.Adam(gru.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        gru.loss(indices, classes, seeds)["loss"].backward()
        optimizer.step()
    assert gru.judged(indices, classes, seeds, torch.ones(len(seeds))).nats.mean() < 0.1 * before
    guided = Sampling(cfg_scale=2.0, temperature=4.0)
    together = gru.generate(classes, seeds, guided)
    assert torch.equal(gru.generate(classes[1:2], seeds[1:2], guided), together[1:2])
    assert len(together.unique(dim=0)) > 1 and together.max() < 16


def test_the_keys_of_the_examples_are_explained(bits: Any, gru: Any) -> None:
    for kind, names in ((type(bits), ["code_dim", "commitment"]), (type(gru), ["width", "label_drop"])):
        explained = keys(component_model(kind), kind)
        assert [key.name for key in explained if key.meaning and key.range] == names


def test_every_example_is_executed() -> None:
    executed = re.findall(r'run\("(## [^"]+)"', Path(__file__).read_text(encoding="utf-8"))
    examples = [h for h in re.findall(r"^## .+$", PAGE, re.MULTILINE) if blocks(section(PAGE, h), "python")]
    assert sorted(executed) == sorted(examples) and len(examples) > 2
