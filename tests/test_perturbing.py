"""Wrong tokens on purpose: which are replaced and by what, in training and in `tok eval`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_faults import draw, family, made, refusal  # noqa: F401  the fixture

from tokcli.artifact.weights import load_tensors
from tokcli.quantizers import QUANTIZERS, Quantized
from tokcli.quantizers.perturbing import Perturber, all_codes, replaced


def quantizer(k: int = 16, d: int = 3, **keys: Any) -> Any:
    torch.manual_seed(0)
    found = QUANTIZERS["vq"](
        codebook_size=k, code_dim=d, metric="euclidean", learning="gradient", init="uniform", **keys
    )
    found.codebook.data.normal_()
    return found.eval()


def test_tokens_are_replaced_by_one_of_the_nearest_other_codes() -> None:
    vq = quantizer()
    codes = vq.codes(torch.arange(16))
    indices = torch.randint(0, 16, (64, 50), generator=torch.Generator().manual_seed(1))
    noise = torch.rand(64, 50, 2, generator=torch.Generator().manual_seed(2))
    found = replaced(indices, all_codes(vq), share=0.25, near=3, noise=noise)
    moved = noise[..., 0] < 0.25
    assert torch.equal(found[~moved], indices[~moved]) and not (found == indices)[moved].any()
    distances = (codes[:, None] - codes).norm(dim=-1).fill_diagonal_(torch.inf)
    wanted = distances.argsort(1)[indices[moved], (noise[..., 1][moved] * 3).long()]
    assert torch.equal(found[moved], wanted)
    assert {
        int((distances.argsort(1)[i] == j).nonzero()) for i, j in zip(indices[moved], found[moved], strict=True)
    } == {0, 1, 2}


def test_more_near_codes_than_there_are_is_all_others() -> None:
    vq = quantizer(k=4)
    indices = torch.zeros(1, 4000, dtype=torch.int64)
    found = replaced(indices, all_codes(vq), share=1.0, near=99, noise=torch.rand(1, 4000, 2))
    assert set(found.unique().tolist()) == {1, 2, 3}


def test_fsq_has_near_codes_too() -> None:
    fsq = QUANTIZERS["fsq"](levels=[5, 5])
    indices = torch.full((1, 400), 12)  # the middle of the grid
    found = replaced(indices, all_codes(fsq), share=1.0, near=4, noise=torch.rand(1, 400, 2))
    assert set(found.unique().tolist()) == {7, 11, 13, 17}


def test_the_share_falls_linearly_and_some_images_are_spared() -> None:
    perturb = Perturber(share=0.8, end_share=0.2, images=0.5, near=2, steps=4)
    shares = []
    for step in range(4):
        perturb.begin(step)
        shares.append(perturb.now)
    assert shares == pytest.approx([0.8, 0.6, 0.4, 0.2])
    perturb.begin(0)
    torch.manual_seed(0)
    vq, indices = quantizer(), torch.randint(0, 16, (400, 40))
    changed = (perturb.indices(indices, all_codes(vq)) != indices).float().mean(1)
    assert float((changed > 0).float().mean()) == pytest.approx(0.5, abs=0.08)
    assert float(changed[changed > 0].mean()) == pytest.approx(0.8, abs=0.02)


def test_gradients_pass_as_if_nothing_were_replaced() -> None:
    vq = quantizer()
    z = torch.randn(8, 10, 3, requires_grad=True)
    given: Quantized = vq(z)
    changed = Perturber(share=1.0, end_share=1.0, images=1.0, near=1, steps=1)(given, vq)
    assert torch.equal(changed.indices, given.indices) and changed.losses is given.losses
    assert not torch.isclose(changed.z_q, given.z_q).all(-1).any()
    weight = torch.randn(8, 10, 3)
    (theirs,) = torch.autograd.grad((given.z_q * weight).sum(), z, retain_graph=True)
    (ours,) = torch.autograd.grad((changed.z_q * weight).sum(), z)
    assert torch.equal(ours, theirs)


PERTURB = "perturb={share: 1.0, near: 1}"


@pytest.mark.parametrize("command", ["train-tokenizer", "train-decoder"])
def test_a_training_with_wrong_tokens_is_another_and_resumes(
    command: str,
    family: dict[str, Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    told: list[Any] = ["--set", "train.steps=3", "--set", "train.batch_size=4", "--set", "train.save_every=1"]
    if command == "train-tokenizer":
        told += ["--recipe", "toy/tokenizer-vqgan", "--set", "gan=null", "--data", family["photos"]]
        told += ["--set", "loss={l1: 1.0}"]
    else:
        told += ["--recipe", "toy/decoder-conv", "--tokenizer", family["tokenizer"], "--set", "loss={l1: 1.0}"]
        told += ["--set", "decoder.widths=[16, 16, 8, 8, 8]"]
    plain = made(command, *told, "--out", tmp_path / "plain")
    wrong = made(command, *told, "--set", PERTURB, "--out", tmp_path / "wrong")
    again = made(command, *told, "--set", PERTURB, "--out", tmp_path / "again")
    first, second, third = (load_tensors(p / "model.safetensors") for p in (plain, wrong, again))
    assert all(torch.equal(second[name], third[name]) for name in second)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_a_quantizer_without_codes_has_none_to_replace(family: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    none = ["--set", "quantizer={name: none, code_dim: 8}", "--set", "learn_from_blank=true"]
    told = ["--recipe", "toy/tokenizer-vqkd", *none, "--set", PERTURB, "--data", family["photos"]]
    for more in (["--out", tmp_path / "t"], ["--dry-run"]):
        assert "perturb: the quantizer has no codes to replace" in refusal("train-tokenizer", *told, *more)
    assert not (tmp_path / "t").exists()


def test_the_distance_of_wrong_tokens_is_reported_beside_rfd(family: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    told = ["eval", "--recipe", "toy/eval", family["decoder"], "--data", family["photos"]]
    report = made(*told, "--set", "eval.perturb={share: 0.9, near: 2}", "--out", tmp_path / "r")
    (decoder,) = json.loads((report / "metrics.json").read_text())["artifacts"]
    rows = {m["metric"]: m for m in decoder["measurements"]}
    assert rows["prfd_efflite0"]["value"] != rows["rfd_efflite0"]["value"]
    assert rows["prfd_efflite0"]["by"] == "90% of tokens replaced by one of 2 near codes"
    again = made(*told, "--set", "eval.perturb={share: 0.9, near: 2}", "--set", "eval.worst=0", "--out", tmp_path / "s")
    (other,) = json.loads((again / "metrics.json").read_text())["artifacts"]
    assert other["metrics"]["prfd_efflite0"] == decoder["metrics"]["prfd_efflite0"]
    plain = made(*told, "--out", tmp_path / "p")
    assert "prfd" not in (plain / "metrics.json").read_text()
