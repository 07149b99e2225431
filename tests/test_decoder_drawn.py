"""A decoder that is tuned on tokens of a proposal network: what it is given, what is recorded, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_captions import family as captioned  # noqa: F401  the fixture
from test_faults import family, made, refusal, run  # noqa: F401  the fixture

from tokcli.artifact.opening import open_artifact
from tokcli.artifact.weights import load_tensors
from tokcli.data.batches import Batch
from tokcli.data.sources import open_source
from tokcli.loading import load_proposal
from tokcli.pretrained.text import byte_pairs
from tokcli.proposals import PROPOSALS, Proposal, Sampling
from tokcli.recipe.sections import Drawn, Train
from tokcli.training.drawn_tokens import Conditions, DrawnTokens

CPU = torch.device("cpu")
Family = dict[str, Path]
DECODER = ["train-decoder", "--recipe", "toy/decoder-conv", "--set", "loss={l1: 1.0}"]
SMALL = ["--set", "train.steps=3", "--set", "train.batch_size=4", "--set", "train.save_every=1"]
WIDTHS = ["--set", "decoder.widths=[16, 16, 8, 8, 8]"]
DRAWN = ["--set", "drawn={share: 0.9, context: drawn}"]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_tensors(path / "model.safetensors")


def told(family: Family) -> list[Any]:  # noqa: F811
    return [*DECODER, *SMALL, *WIDTHS, "--tokenizer", family["tokenizer"], "--init", family["decoder"]]


def other_network(family: Family, tmp_path: Path) -> Path:  # noqa: F811
    brief = ["--set", "train.steps=1", "--set", "train.batch_size=4", "--set", "seed=1"]
    train = ["train-proposal", "--recipe", "toy/proposal-nar", "--tokens", family["tokens"], *brief]
    return made(*train, "--out", tmp_path / "other network")


def test_it_is_another_decoder_names_its_network_and_repeats(family: Family, tmp_path: Path) -> None:  # noqa: F811
    plain = open_artifact(made(*told(family), "--out", tmp_path / "plain"))
    drawn = [*told(family), *DRAWN, "--proposal", family["proposal"]]
    first, again = (open_artifact(made(*drawn, "--out", tmp_path / name)) for name in ("first", "again"))
    assert first.id == again.id != plain.id
    assert first.inputs["proposal"]["id"] == open_artifact(family["proposal"]).id
    assert first.inputs["init"]["id"] == open_artifact(family["decoder"]).id
    assert first.facts["drawn"] == {"mode": "ar", "images_without_condition": 0} and "drawn" not in plain.facts
    left, right = weights(first.path), weights(plain.path)
    assert any(not torch.equal(left[name], right[name]) for name in left)


def test_another_network_is_another_decoder_and_no_way_to_go_on(family: Family, tmp_path: Path) -> None:  # noqa: F811
    other = other_network(family, tmp_path)
    drawn = [*told(family), *DRAWN, "--proposal"]
    first = open_artifact(made(*drawn, family["proposal"], "--out", tmp_path / "a"))
    second = open_artifact(made(*drawn, other, "--out", tmp_path / "b"))
    assert first.id != second.id and second.facts["drawn"]["mode"] == "nar"
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert "proposal" in refusal(*drawn, other, "--out", tmp_path / "a")


def test_what_does_not_go_together_is_one_line_and_leaves_nothing(family: Family, tmp_path: Path) -> None:  # noqa: F811
    where = ["--out", tmp_path / "refused"]
    sizes = ["--set", "quantizer.codebook_size=16", "--set", "train.steps=1", "--set", "train.batch_size=4"]
    tokenizer = made("train-tokenizer", "--recipe", "toy/tokenizer-vqgan", "--data", family["photos"], *sizes,
                     "--set", "loss={l1: 1.0}", "--out", tmp_path / "t")  # fmt: skip
    named = ["--proposal", family["proposal"], *where]
    mixed = refusal(*DECODER, *SMALL, *DRAWN, "--tokenizer", tokenizer, *named)
    assert f"--proposal {family['proposal']}: made for {open_artifact(family['tokenizer']).id}" in mixed
    assert "the recipe has no section drawn" in refusal(*told(family), *named)
    guided = refusal(*told(family), *DRAWN, "--set", "drawn.cfg_scale=-1", *named)
    assert "drawn.cfg_scale" in guided
    assert "drawn.share" in refusal(*told(family), "--set", "drawn.share=0", *named)
    assert "nothing here reads it" in refusal(*told(family), *DRAWN, *named, "--text-weights", tmp_path / "x")
    none = refusal(*told(family), *DRAWN, "--workspace", tmp_path)
    assert "no proposal that fits" in none
    assert not (tmp_path / "refused").exists()


def test_a_network_that_cannot_draw_so_is_refused_before_anything_is_written(
    family: Family,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PROPOSALS["ar"], "redraw_tokens", Proposal.redraw_tokens)
    said = refusal(*told(family), *DRAWN, "--proposal", family["proposal"], "--out", tmp_path / "refused")
    assert "AutoregressiveProposal: cannot draw some tokens" in said and not (tmp_path / "refused").exists()


def test_the_start_must_be_the_same_network(family: Family, tmp_path: Path) -> None:  # noqa: F811
    command = [*DECODER, *SMALL, "--tokenizer", family["tokenizer"], "--init", family["decoder"]]
    said = refusal(*command, "--set", "decoder.widths=[16, 8, 8, 8, 8]", "--out", tmp_path / "refused")
    assert "is another network than the recipe describes" in said and "decoder.widths: [16, 16, 8, 8, 8]" in said
    assert "without a pixel decoder" in refusal(*command[:-1], family["tokenizer"], "--out", tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_a_tokenizers_own_decoder_is_tuned_too(captioned: Family, tmp_path: Path) -> None:  # noqa: F811
    own = open_artifact(captioned["tokenizer"]).recipe["decoder"]
    still = ["--set", "optim.lr=1e-12", "--set", "optim.min_lr=0", "--set", f"decoder={json.dumps(own)}"]
    command = [*DECODER, *SMALL, *still, "--tokenizer", captioned["tokenizer"], "--init", captioned["tokenizer"]]
    tuned = weights(made(*command, *DRAWN, "--proposal", captioned["class"], "--out", tmp_path / "d"))
    before = weights(captioned["tokenizer"])
    assert tuned and all(torch.allclose(t, before[f"pixel_decoder.{name}"], atol=1e-6) for name, t in tuned.items())


def test_a_dry_run_counts_the_network(family: Family, tmp_path: Path) -> None:  # noqa: F811
    plans = {}
    for name, more in (("plain", []), ("real", ["--set", "drawn.share=0.5"]), ("drawn", DRAWN)):
        network = ["--proposal", family["proposal"]] if more else []
        plans[name] = json.loads(run(*told(family), *more, *network, "--dry-run", "--json").stdout)
    weights_of = sum(t.numel() for t in weights(family["proposal"]).values())
    assert plans["real"]["parameters"]["proposal"] == {"trainable": 0, "frozen": weights_of}
    states = [plans[name]["memory"]["state_bytes"] for name in ("plain", "real")]
    assert states[1] - states[0] == 4 * weights_of
    flops = [plans[name]["compute"]["flop_per_unit"] for name in ("plain", "real")]
    assert flops[1] - flops[0] == pytest.approx(
        4 * load_proposal(open_artifact(family["proposal"]), CPU).judging_flops()
    )
    assert plans["drawn"]["compute"]["flop_per_unit"] != flops[1]
    assert plans["real"]["inputs"]["proposal"]["id"] == open_artifact(family["proposal"]).id
    assert not list(tmp_path.iterdir())
    text = run(*told(family), *DRAWN, "--proposal", family["proposal"], "--dry-run").stdout
    assert f"# reads   proposal: {family['proposal']}" in text and "ms a step" in text


def test_images_without_a_known_class_are_counted_and_said(
    family: Family,  # noqa: F811
    tmp_path: Path,
) -> None:
    odd = tmp_path / "odd"
    for number, file in enumerate(sorted((family["photos"]).rglob("*.png"))):
        label = file.parent.name if number % 3 else "ant"  # the network knows cats and dogs
        (odd / label).mkdir(parents=True, exist_ok=True)
        (odd / label / file.name).write_bytes(file.read_bytes())
    found = run(*told(family), *DRAWN, "--proposal", family["proposal"], "--data", odd, "--out", tmp_path / "d")
    assert "4 of 12 images have no class that the network knows" in found.stderr
    assert open_artifact(tmp_path / "d").facts["drawn"] == {"mode": "ar", "images_without_condition": 4}
    conditions = Conditions(open_artifact(family["proposal"]), open_source(str(odd), size=64), None, CPU, 0)
    assert conditions(0, Batch(torch.empty(3), torch.tensor([2, 0, 1]), torch.arange(3))).tolist() == [1, -1, 0]


def test_captions_are_told_to_a_network_that_reads_them(captioned: Family) -> None:  # noqa: F811
    proposal, source = open_artifact(captioned["nar"]), open_source(str(captioned["photos"]), size=64)
    conditions = Conditions(proposal, source, None, CPU, 0)
    assert conditions.without == 1
    numbers = torch.tensor([3, 0])
    told = [conditions(step, Batch(torch.empty(2), torch.tensor([1, 0]), numbers)) for step in range(12)]
    texts = {tuple(byte_pairs([text], 4)[0].tolist()) for text in source.captions(3)}
    if not source.captions(0):
        assert not any(rows[1].any() for rows in told)
    assert len(texts) == 2 and {tuple(rows[0].tolist()) for rows in told} == texts


def test_a_network_that_reads_captions_is_told_nothing_where_there_are_none(captioned: Family, family: Family) -> None:  # noqa: F811
    proposal, source = open_artifact(captioned["nar"]), open_source(str(family["photos"]), size=64)
    conditions = Conditions(proposal, source, None, CPU, 0)
    assert conditions.without == len(source) == 12
    told = conditions(0, Batch(torch.empty(3), torch.tensor([0, 1, 0]), torch.tensor([5, 2, 8])))
    assert torch.equal(told, load_proposal(proposal, CPU).null(3))


def test_what_is_drawn_is_a_function_of_seed_step_and_image_alone(family: Family) -> None:  # noqa: F811
    proposal, source = open_artifact(family["proposal"]), open_source(str(family["photos"]), size=64)
    network = load_proposal(proposal, CPU)
    conditions = Conditions(proposal, source, None, CPU, 0)
    indices = torch.randint(0, 8, (12, network.tokens), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([source.label(i) for i in range(12)])
    drawn = Drawn(share=0.75, end_share=0.25)

    def tokens(step: int, rows: list[int], section: Drawn = drawn, **train: Any) -> torch.Tensor:
        draws = DrawnTokens(network, section, Train(steps=3, batch_size=12, **train), 5, conditions)
        return draws(step, Batch(torch.empty(len(rows)), labels[rows], torch.tensor(rows)), indices[rows])

    whole = tokens(1, [*range(12)])
    assert torch.equal(tokens(1, [7, 2]), whole[[7, 2]]) and torch.equal(tokens(1, [*range(12)], accumulate=4), whole)
    assert not torch.equal(tokens(0, [7, 2], Drawn(share=0.5)), whole[[7, 2]])  # which has that share
    seen: list[Any] = []
    network.redraw = lambda *given, **how: seen.append((given, how)) or given[0]  # type: ignore[method-assign]
    tokens(2, [3, 4])
    ((_, told, _, share, sampling), how) = seen[0]
    assert told.tolist() == labels[[3, 4]].tolist() and (share, sampling, how) == (
        0.25,
        Sampling(),
        {"context": "real"},
    )
    assert [drawn.at(step, 3) for step in range(3)] == [0.75, 0.5, 0.25] and Drawn().at(2, 3) == 0.3


def test_a_report_has_a_row_for_each_decoder_with_its_own_samples(family: Family, tmp_path: Path) -> None:  # noqa: F811
    tuned = made(*told(family), *DRAWN, "--proposal", family["proposal"], "--out", tmp_path / "tuned")
    decoders, samples = [family["decoder"], tuned], []
    for number, decoder in enumerate(decoders):
        sample = ["sample", "--recipe", "toy/sample-ar", "--proposal", family["proposal"], "-n", 4]
        samples.append(made(*sample, "--decoder", decoder, "--out", tmp_path / f"s{number}"))
    report = made(
        "eval", *decoders, *samples, "--recipe", "toy/eval", "--data", family["photos"], "--out", tmp_path / "r"
    )
    table = json.loads((report / "metrics.json").read_text())["table"]
    cells = [{cell["artifact"] for cell in row["cells"].values()} for row in table["rows"]]
    ids = [(open_artifact(d).id, open_artifact(s).id) for d, s in zip(decoders, samples, strict=True)]
    assert [set(one) <= row for one, row in zip(ids, cells, strict=True)] == [True, True]
    assert "drawn" in table["rows"][1]["name"] or "tuned" in table["rows"][1]["name"]
    assert "2 fit" in refusal("sample", "--recipe", "toy/sample-ar", "--proposal", family["proposal"], "--workspace",
                              two_decoders(tmp_path / "both", decoders), "-n", 1)  # fmt: skip


def two_decoders(folder: Path, decoders: list[Path]) -> Path:
    folder.mkdir()
    for number, decoder in enumerate(decoders):
        (folder / f"d{number}").symlink_to(decoder)
    return folder
