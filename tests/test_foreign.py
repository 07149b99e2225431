"""Artifacts of others are data: what `tok verify` would refuse is not measured, forged facts are one line each."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forging import forge
from PIL import Image

from tokcli.artifact.draft import Draft, begin, write_listing
from tokcli.artifact.opening import Artifact, open_artifact
from tokcli.artifact.weights import save_tensors
from tokcli.command.options import Options
from tokcli.command.session import begin as begin_in_workspace
from tokcli.data import sample_store
from tokcli.data.token_store import merge, write_shard
from tokcli.errors import TokError
from tokcli.evaluation.references import FEATURES, STATISTICS, read_statistics
from tokcli.evaluation.report_page import read_log
from tokcli.measure.previews import read_samples
from tokcli.proposals.training_tokens import captioned, open_store
from tokcli.stages.show import verify

Make = Callable[..., Artifact]
SAMPLES = {"name": "x", "number": 4, "per_file": 2, "labels": [0, 1, 0, -1], "classes": ["cat", "dog"], "use_size": 8}
TOKENS = {
    "name": "x",
    "rows": 4,
    "shards": 2,
    "views": ["center"],
    "grid": [2, 2],
    "codebook_size": 8,
    "classes": ["a", "b"],
}


def samples(path: Path, form: str) -> Artifact:
    """Four images of 8 px."""
    draft = begin(path, "samples", {"stage": "samples", "seed": 0}, {}, {})
    assert isinstance(draft, Draft)
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 8, 8) * 40
    for batch, numbers in enumerate([range(2), range(2, 4)]):
        indices = torch.zeros(2, 4, dtype=torch.int64)
        sample_store.write_batch(path, batch, numbers, indices, images[list(numbers)], form)
    payload = sample_store.merge(path, 4, per_file=2, codebook_size=8, form=form, labels=[0, 1, 0, -1], captions=[])
    if form == "png":
        write_listing(path, "images.sha256", [f"images/{i:06d}.png" for i in range(4)])
        payload.append("images.sha256")
    return draft.finish(SAMPLES | {"format": form}, payload=payload)


def tokens(path: Path, facts: Any = None, codes: int = 7, captions: bool = True) -> Artifact:
    """Two shards of two images each."""
    draft = begin(path, "tokens", {"stage": "tokens", "seed": 0}, {}, {})
    assert isinstance(draft, Draft)
    for shard in range(2):
        indices = np.full((2, 1, 4), codes)
        write_shard(path, shard, indices, [0, 1], ["a", "b"], [["one"] if captions else []] * 2, codebook_size=1 << 16)
    merge(path, 2)
    payload = ["indices-00000.npy", "indices-00001.npy", "labels.npy"]
    extras = ["keys.txt", "skipped.jsonl", *(["captions.jsonl"] if captions else [])]
    return draft.finish(TOKENS | (facts or {}), payload=payload, extras=extras)


# what is measured is what was written


@pytest.mark.parametrize("form", ["png", "shards"])
def test_samples_are_read_as_they_were_written_and_no_others(tmp_path: Path, form: str) -> None:
    made = samples(tmp_path / "s", form)
    found = read_samples(open_artifact(made.path), range(4))
    assert found[:, 0, 0, 0].tolist() == [0, 40, 80, 120]
    if form == "png":
        Image.new("RGB", (8, 8), (1, 2, 3)).save(made.path / "images" / "000002.png")
    else:
        other = samples(tmp_path / "other", form).path / "images-00001.tar"
        data = bytearray(other.read_bytes())
        data[600] ^= 1  # within the first image
        (made.path / "images-00001.tar").write_bytes(data)
    with pytest.raises(TokError, match=r"(000002.png|images-00001.tar): is (missing or )?damaged"):
        read_samples(open_artifact(made.path), [2])
    with pytest.raises(TokError, match="damaged or missing"):
        verify(made.path)
    assert read_samples(open_artifact(made.path), [0]).sum() == 0  # the others may be looked at


def test_an_image_that_no_list_names_is_not_read(tmp_path: Path) -> None:
    made = samples(tmp_path / "s", "png")
    shutil.copy(made.path / "images" / "000000.png", made.path / "images" / "000004.png")
    with pytest.raises(TokError, match="000004.png: is missing or damaged"):
        read_samples(open_artifact(made.path), [4])


@pytest.mark.parametrize("line", ["x  images/000000.png", f"{'0' * 64}  ../../etc/passwd", f"{'0' * 64}  /etc/passwd"])
def test_a_list_of_hashes_that_is_none_is_refused(tmp_path: Path, line: str) -> None:
    draft = begin(tmp_path / "s", "samples", {"stage": "samples"}, {}, {})
    assert isinstance(draft, Draft)
    (draft.path / "images.sha256").write_text(line + "\n")
    made = draft.finish(SAMPLES, payload=["images.sha256"])
    for read in (lambda a: read_samples(a, [0]), lambda a: verify(a.path)):
        with pytest.raises(TokError, match="images.sha256: is no list of hashes"):
            read(made)


def test_a_manifest_names_no_file_outside_of_its_folder(tmp_path: Path, make_artifact: Make) -> None:
    made = make_artifact(tmp_path / "a")
    for name in ("../b", "/etc/passwd", "a/../../b", ""):
        entry = made.manifest["files"]["model.safetensors"]
        forge(made.path, lambda m, name=name, entry=entry: m.update(files={name: entry}))
        with pytest.raises(TokError, match="is damaged: key 'files'"):
            open_artifact(made.path)


def test_tokens_are_what_the_manifest_says_and_no_shard_or_caption_beside(tmp_path: Path) -> None:
    made = tokens(tmp_path / "k", captions=False)
    assert open_store(made).rows == 4 and not captioned(made)
    (made.path / "captions.jsonl").write_text('{"key": "a", "captions": ["planted"]}\n' * 4)
    with pytest.raises(TokError, match="captions.jsonl: is not part of this artifact"):
        open_store(open_artifact(made.path))
    assert not captioned(open_artifact(made.path))
    (made.path / "captions.jsonl").unlink()
    shutil.copy(made.path / "indices-00000.npy", made.path / "indices-00002.npy")
    with pytest.raises(TokError, match="indices-00002.npy: is not part of this artifact"):
        open_store(open_artifact(made.path))


def test_changed_captions_are_not_looked_at(tmp_path: Path) -> None:
    made = tokens(tmp_path / "k")
    assert captioned(made)
    (made.path / "captions.jsonl").write_text("")
    with pytest.raises(TokError, match="captions.jsonl: is damaged"):
        captioned(open_artifact(made.path))


def test_a_log_that_was_changed_draws_no_curve(tmp_path: Path, make_artifact: Make) -> None:
    made = make_artifact(tmp_path / "a", log='{"step": 1}\n')
    assert read_log(made) == [{"step": 1}]
    (made.path / "log.jsonl").write_text('{"step": 2}\n')
    with pytest.raises(TokError, match="log.jsonl: is damaged"):
        read_log(open_artifact(made.path))


STATE = {"mean": torch.zeros(3), "covariance": torch.eye(3)}
FORGED: dict[str, tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = {
    "no mean": ({"covariance": torch.eye(3)}, {}),
    "no covariance": ({"mean": torch.zeros(3)}, {}),
    "another width": (STATE | {"mean": torch.zeros(4)}, {}),
    "a scalar": (STATE | {"mean": torch.zeros(())}, {}),
    "half of the spatial ones": (STATE | {"spatial_mean": torch.zeros(3)}, {}),
    "no features": (STATE, {"other": torch.zeros(2, 3)}),
    "narrow features": (STATE, {"features": torch.zeros(2, 2)}),
}


@pytest.mark.parametrize("what", FORGED)
def test_tensors_that_are_no_statistics_are_refused(tmp_path: Path, what: str) -> None:
    draft = begin(tmp_path / "s", "statistics", {"stage": "statistics"}, {"data": {"id": "data-1", "path": "x"}}, {})
    assert isinstance(draft, Draft)
    state, features = FORGED[what]
    save_tensors(draft.path / STATISTICS, state)
    save_tensors(draft.path / FEATURES, features or {"features": torch.zeros(2, 3)})
    made = draft.finish({"name": "x", "images": 2}, payload=[STATISTICS, FEATURES])
    with pytest.raises(TokError, match=r"safetensors: holds no (spatial_)?(mean and|features)"):
        read_statistics(made)


# facts of others


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"codebook_size": 7}, "holds codes outside of 0 to 6, which its facts allow. Got 7 to 7"),
        ({"classes": ["a"]}, "holds labels outside of -1 to 0, which its facts allow. Got 0 to 1"),
        ({"rows": 5}, "rows: 5, not 4"),
        ({"views": ["center", "flip"]}, "views: 2, not 1"),
        ({"grid": [2, 3]}, "grid: 6, not 4"),
    ],
)
def test_tokens_that_are_not_what_their_facts_say_are_refused(tmp_path: Path, facts: Any, said: str) -> None:
    with pytest.raises(TokError, match=said):
        open_store(tokens(tmp_path / "k", facts))


NAMES = ["../../../x", "/x/y", "a/b", "..", ".x", "-rf", "a\\b", "a\nb", "\x1b[2J", "\u202ex", "", "x" * 200, 3, None]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_would_lead_out_of_the_workspace_is_refused(tmp_path: Path, make_artifact: Make, name: Any) -> None:
    make_artifact(tmp_path / "a", facts={"name": name})
    with pytest.raises(TokError, match=r"is damaged: key 'facts\.name'"):
        open_artifact(tmp_path / "a")


@pytest.mark.parametrize("name", ["../../x", "a/b", "/x/y"])
def test_no_command_writes_outside_of_the_workspace_whoever_gives_the_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(TokError, match="a name leads out of it"):
        begin_in_workspace(Options(workspace=tmp_path / "ws"), "viz", name, {}, {}, torch.device("cpu"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["vqkd-open_clip-ViT-B-16-quickgelu-dfn2b", "Größe 2", "taming-vqgan-f16-1024"])
def test_names_as_tok_gives_them_open(tmp_path: Path, make_artifact: Make, name: str) -> None:
    make_artifact(tmp_path / "a", facts={"name": name})
    assert open_artifact(tmp_path / "a").facts["name"] == name


WRONG: dict[str, list[Any]] = {
    "codebook_size": [0, -1, 1 << 40, 10**30, True, 8.0, "8", None, [8]],
    "code_dim": [0, -1, 1 << 40, "8", None],
    "use_size": [0, -8, 1 << 20, 10**30, "8", None],
    "grid": [[8], [8, 0], [8, -8], [8, 1 << 20], [8.0, 8], "88", None, [[8, 8]]],
    "classes": ["cat", [1], None, 3, {"a": 1}],
    "class_counts": [[-1], [1.5], "x", 3, [], [1, 2, 3]],
    "has_decoder": [1, "yes", None],
    "teacher": [[], "clip", {}, {"name": 3}, {"name": "a", "sha256": "../x", "feature_dim": 3},
                {"name": "a", "sha256": None, "feature_dim": -1}],
    "number": [0, -1, 1 << 60, 2.5, "4", None, 5],
    "per_file": [0, -1, "2", None],
    "format": ["exe", 3, None],
    "labels": [[0], [9, 0, 0, 0], [-2, 0, 0, 0], ["cat"], "cat", None, [10**30] * 4],
    "mode": [3, ["ar"]],
    "rows": [-1, "4", None],
    "shards": [0, -1, None],
    "views": [[], [3], "center", None],
    "text_sha256": ["../x", 3, "G" * 64],
    "edit": [3, []],
    "extractor": [3, None],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_forged_fact_is_one_line_although_id_and_hash_fit(
    tmp_path: Path, make_artifact: Make, key: str, value: Any
) -> None:
    right = SAMPLES | {"labels": [0, 1, 0, 1]}
    make_artifact(tmp_path / "a", kind="samples", facts=right)
    assert open_artifact(tmp_path / "a").facts["number"] == 4
    make_artifact(tmp_path / "b", kind="samples", facts=right | {key: value})
    with pytest.raises(
        TokError, match=rf"is damaged: key 'facts\.{'labels' if key == 'number' and value == 5 else key}'"
    ):
        open_artifact(tmp_path / "b")
