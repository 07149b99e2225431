"""Conditioning on captions: prefixes, guidance by the empty caption, text towers, the cache of their features."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_proposals_ar import uncached
from torch import Tensor

from tokcli import distributed
from tokcli.errors import TokError
from tokcli.files import cache_dir
from tokcli.pretrained import feature_cache, text
from tokcli.pretrained.feature_cache import BytePairTable, FeatureTable
from tokcli.pretrained.text import OpenCLIPText, TextTower, build_text_tower, byte_pairs
from tokcli.proposals import PROPOSALS, Proposal, Sampling, TextCondition
from tokcli.proposals.transformer_proposal import TransformerProposal

K, N, LENGTH = 16, 9, 4
MODES = [name for name, one in sorted(PROPOSALS.items()) if issubclass(one, TransformerProposal)]
SIZES = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 24}
CAPTIONS = ["red heart", "flag: France", "ox"]
GUIDED = Sampling(steps=4, cfg_scale=2.0, top_k=9, temperature=0.8)


class Letters(TextTower):
    """A tower without a network: a caption's first letters, 3 numbers each."""

    runs = 0

    def __init__(self, name: str = "letters") -> None:
        super().__init__(name, torch.nn.Identity())

    @classmethod
    def dim(cls, name: str) -> int:
        return 3

    def _run(self, captions: list[str], longest: int) -> tuple[Tensor, Tensor]:
        type(self).runs += 1
        found = torch.zeros(len(captions), 30, 3)
        for row, caption in enumerate(captions):
            for at, letter in enumerate(caption[:30]):
                found[row, at] = torch.tensor([ord(letter) / 10 - 10, at + 1.0, 1 / 3])
        return found, torch.tensor([min(len(c), 30) for c in captions])


@pytest.fixture(autouse=True)
def _letters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(text.TEXT_TOWERS, "letters", Letters)
    monkeypatch.setenv("TOK_CACHE", str(tmp_path / "cache"))


def build(mode: str, tower: str | None = None, depth: int = 0, **keys: Any) -> Proposal:
    torch.manual_seed(0)
    condition = TextCondition(tower=tower, length=LENGTH, depth=depth)
    network = PROPOSALS[mode](K, (3, 3), 5, condition, **SIZES | keys)
    for parameter in network.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


def conditions(tower: str | None, captions: list[str] = CAPTIONS) -> Tensor:
    return Letters().encode(captions, LENGTH) if tower else byte_pairs(captions, LENGTH)


@pytest.mark.parametrize("tower", [None, "letters"])
@pytest.mark.parametrize("mode", MODES)
def test_another_caption_is_another_picture(mode: str, tower: str | None) -> None:
    network, seeds = build(mode, tower), torch.zeros(3, dtype=torch.int64)
    drawn = network.generate(conditions(tower), seeds, GUIDED)
    assert len(drawn.unique(dim=0)) == 3 and drawn.max() < K
    assert torch.equal(network.generate(conditions(tower), seeds, GUIDED), drawn)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("tower", [None, "letters"])
def test_cache_equals_no_cache_with_captions(tower: str | None, depth: int) -> None:
    network: Any = build("ar", tower, depth)
    seeds, given = torch.arange(40), conditions(tower).repeat(14, *[1] * (1 if tower is None else 2))[:40]
    assert torch.equal(network.generate(given, seeds, GUIDED), uncached(network, given, seeds, GUIDED))


@pytest.mark.parametrize("tower", [None, "letters"])
@pytest.mark.parametrize("mode", MODES)
def test_scale_0_draws_what_the_empty_caption_draws(mode: str, tower: str | None) -> None:
    network, seeds = build(mode, tower), torch.arange(3)
    assert torch.equal(network.null(1)[0], conditions(tower, [""])[0])
    free = network.generate(network.null(3), seeds, Sampling(steps=4))
    assert torch.equal(network.generate(conditions(tower), seeds, Sampling(steps=4, cfg_scale=0.0)), free)


@pytest.mark.parametrize("tower", [None, "letters"])
@pytest.mark.parametrize("mode", MODES)
def test_a_dropped_caption_is_the_empty_one(mode: str, tower: str | None) -> None:
    network, seeds = build(mode, tower, label_drop=0.25), torch.arange(2000)
    given = conditions(tower, ["red heart"]).expand(2000, *network.null(1).shape[1:])
    kept, null = network._prefix(given[:1])[0], network._prefix(network.null(1))[0]
    prefix = network.train()._prefix(given, seeds)
    dropped = (prefix == null).flatten(1).all(1)
    assert abs(dropped.float().mean().item() - 0.25) < 0.04
    assert (prefix[~dropped] - kept).abs().max() < 1e-6


@pytest.mark.parametrize("tower", [None, "letters"])
@pytest.mark.parametrize("mode", MODES)
def test_every_parameter_gets_a_gradient_from_captions(mode: str, tower: str | None) -> None:
    network = build(mode, tower, depth=1).train()
    network.loss(torch.randint(K, (3, N)), conditions(tower), torch.arange(3))["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("mode", MODES)
def test_learns_which_caption_is_which_picture(mode: str) -> None:
    torch.manual_seed(0)
    network = PROPOSALS[mode](
        8, (2, 4), 0, TextCondition(length=3), width=32, depth=2, heads=2, mlp_width=64, dropout=0.0, label_drop=0.3
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    given = byte_pairs(["red heart", "blue heart"], 3).repeat(8, 1)
    rows = torch.tensor([[3] * 8, [6] * 8]).repeat(8, 1)
    for step in range(120):
        optimizer.zero_grad()
        network.loss(rows, given, torch.arange(16) + 16 * step)["loss"].backward()
        optimizer.step()
    drawn = network.generate(given, torch.arange(16), Sampling(steps=4, cfg_scale=1.5, temperature=0.7))
    assert (drawn == rows).float().mean() > 0.95
    free = network.generate(network.null(64), torch.arange(64), Sampling(steps=8, temperature=0.7))
    assert set(free.mode(dim=1).values.tolist()) == {3, 6}  # without a caption it has learned both


def test_captions_of_another_shape_are_no_silent_condition() -> None:
    with pytest.raises(ValueError, match="captions of shape"):
        build("ar").generate(torch.zeros(2, dtype=torch.int64), torch.arange(2), Sampling())


def test_byte_pairs_are_open_clips_and_end_in_zeros() -> None:
    import open_clip

    numbers = byte_pairs(["red heart", "a very long caption of many words"], 4)
    theirs = open_clip.get_tokenizer("ViT-B-32")(["red heart", "a very long caption of many words"])
    assert numbers[0].tolist() == [*(theirs[0, 1:3] + 1).tolist(), 0, 0]
    assert numbers[1].tolist() == (theirs[1, 1:5] + 1).tolist()


def test_a_table_gives_captions_by_number_and_the_empty_one() -> None:
    for table, whole in (
        (BytePairTable(CAPTIONS, LENGTH), byte_pairs(CAPTIONS, LENGTH)),
        (FeatureTable(Letters(), CAPTIONS, LENGTH), Letters().encode(CAPTIONS, LENGTH)),
    ):
        if isinstance(table, FeatureTable):
            table.fill()
        rows = table.rows(torch.tensor([2, -1, 0]))
        assert torch.equal(rows[[0, 2]], whole[[2, 0]]) and not rows[1].any()


def test_features_are_computed_once_for_equal_captions_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Letters, "runs", 0)
    first = FeatureTable(Letters(), CAPTIONS * 20, LENGTH)
    first.fill()
    assert Letters.runs == 1  # three captions fit into one run
    again = FeatureTable(Letters(), CAPTIONS * 20, LENGTH)
    again.fill()
    assert Letters.runs == 1
    assert torch.equal(again.rows(torch.tensor([7])), Letters().encode([CAPTIONS[1]], LENGTH))


def test_ranks_leave_no_shard_to_nobody_whoever_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "CAPTION_SHARD", 1)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    captions = [f"caption {i}" for i in range(7)]
    for rank in (1, 0):  # the second finds what the first has written
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        table = FeatureTable(Letters(), captions, LENGTH)
        table.fill()
    assert torch.equal(table.rows(torch.arange(7)), Letters().encode(captions, LENGTH))


def test_a_caption_does_not_depend_on_how_many_there_are() -> None:
    tower = build_text_tower("clip", "random")
    alone = tower.encode(CAPTIONS[:1], 8)
    assert torch.equal(tower.encode(CAPTIONS, 8)[0], alone[0]) and alone[0, :3].any() and not alone[0, 3:].any()


def test_clip_text_features_end_in_what_open_clip_pools() -> None:
    import open_clip

    tower = build_text_tower("clip", "random")
    whole = open_clip.create_model("ViT-B-16-quickgelu")
    state = {k: t for k, t in whole.state_dict().items() if not k.startswith("visual.")}
    tower.body.load_state_dict(tower.convert(dict(state)))
    with torch.no_grad():
        pooled = whole.encode_text(open_clip.get_tokenizer("ViT-B-16-quickgelu")(["red heart"]))
    end = tower.encode(["red heart"], 8)[0, 2]  # red, heart, the end
    assert torch.allclose(end @ tower.body.text_projection, pooled[0], atol=2e-3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("minilmm", "no such text tower. Did you mean 'minilm'"),
        ("open_clip:ViT-B-16-SigLIP/webli", "other text tokens"),
        ("open_clip:ViT-B-16/nothing", "no weights 'nothing'"),
    ],
)
def test_an_unusable_tower_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(TokError, match=message) as caught:
        TextCondition(tower=name).feature_dim  # noqa: B018
    assert "\n" not in str(caught.value)


def test_a_tower_without_weights_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TokError, match=r"text tower minilm: weights not found. Give --text-weights PATH, or fetch"):
        build_text_tower("minilm")


def test_a_file_that_is_no_text_tower_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.pt")
    for name in ("minilm", "clip"):
        with pytest.raises(TokError, match="weights do not fit"):
            build_text_tower(name, tmp_path / "x.pt")


def test_minilm_knows_what_words_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOK_CACHE")
    if not (cache_dir() / "minilm.safetensors").is_file():
        pytest.skip("scripts/fetch_embedded.py minilm was not run")
    features = build_text_tower("minilm").encode(["a cat", "a kitten", "a truck", "a red heart"], 8)
    assert features[3, :4].any(-1).all() and not features[3, 4:].any()  # a, red, heart, the end
    mean = features.sum(1) / (features != 0).any(-1).sum(1, keepdim=True)
    likeness = torch.nn.functional.cosine_similarity(mean[:1], mean[1:3])
    assert likeness[0] > 0.6 > 0.4 > likeness[1]


def test_open_clip_towers_name_their_width_without_building() -> None:
    assert OpenCLIPText.dim("clip") == 512 and OpenCLIPText.dim("open_clip:ViT-L-14/openai") == 768


def test_minilm_computes_what_bert_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokcli.pretrained import minilm

    for name, value in {"WIDTH": 8, "LAYERS": 2, "HEADS": 2, "MLP": 12, "WORDS": 20, "LONGEST": 9}.items():
        monkeypatch.setattr(minilm, name, value)
    torch.manual_seed(0)
    bert = minilm.Bert().eval()
    for parameter in bert.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    w, numbers = bert.state_dict(), torch.tensor([[3, 7, 5, 0, 0]])
    norm = lambda x, n: torch.nn.functional.layer_norm(x, (8,), w[n + ".weight"], w[n + ".bias"], 1e-12)  # noqa: E731
    linear = lambda x, n: x @ w[n + ".weight"].T + w[n + ".bias"]  # noqa: E731
    e = "embeddings."
    x = w[e + "word_embeddings.weight"][numbers[0, :3]] + w[e + "position_embeddings.weight"][:3]
    x = norm(x + w[e + "token_type_embeddings.weight"][0], e + "LayerNorm")
    for i in range(2):
        at = f"encoder.layer.{i}."
        q, k, v = (linear(x, f"{at}attention.self.{n}") for n in ("query", "key", "value"))
        heads = [(q[:, s] @ k[:, s].T / 2).softmax(-1) @ v[:, s] for s in (slice(0, 4), slice(4, 8))]
        x = norm(x + linear(torch.cat(heads, 1), at + "attention.output.dense"), at + "attention.output.LayerNorm")
        y = linear(x, at + "intermediate.dense")
        y = y * 0.5 * (1 + torch.erf(y / 2**0.5))
        x = norm(x + linear(y, at + "output.dense"), at + "output.LayerNorm")
    with torch.no_grad():
        assert torch.allclose(bert(numbers, numbers > 0)[0, :3], x, atol=1e-5)  # padding is not seen
