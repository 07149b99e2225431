"""Artifacts as they are read: damage found, wrong kinds and other lineages refused, `tok verify`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forging import age, forge

from tokcli.artifact.draft import Draft, begin, write_listing
from tokcli.artifact.manifest import MANIFEST
from tokcli.artifact.opening import Artifact, check_lineage, locate, open_artifact, scan
from tokcli.errors import TokError
from tokcli.files import write_text
from tokcli.stages.show import describe, listing, verify

Make = Callable[..., Artifact]


def flip_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_wrong_kind_is_refused_naming_the_flag_and_what_it_wants(tmp_path: Path, make_artifact: Make) -> None:
    make_artifact(tmp_path / "a", kind="proposal")
    with pytest.raises(TokError, match=r"--tokenizer .*a: is not of kind tokenizer. Got proposal."):
        open_artifact(tmp_path / "a", "--tokenizer", ["tokenizer"])


def test_no_folder_and_no_manifest_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(TokError, match="no such folder"):
        open_artifact(tmp_path / "none")
    with pytest.raises(TokError, match="is not an artifact"):
        open_artifact(tmp_path)


def test_truncated_manifest_is_refused_wherever_it_ends(tmp_path: Path, make_artifact: Make) -> None:
    manifest = make_artifact(tmp_path / "a").path / MANIFEST
    text = manifest.read_text()
    for length in range(0, len(text) - 2, 37):
        manifest.write_text(text[:length])
        with pytest.raises(TokError, match="manifest.json: is damaged"):
            open_artifact(tmp_path / "a")
    assert scan(tmp_path) == []


@pytest.mark.parametrize("key", ["schema", "kind", "id", "status", "facts", "inputs", "files", "recipe", "provenance"])
@pytest.mark.parametrize("value", [None, 3.5, [1]])
def test_manifest_with_a_missing_or_wrong_key_is_refused(
    tmp_path: Path, make_artifact: Make, key: str, value: Any
) -> None:
    path = make_artifact(tmp_path / "a").path
    manifest = json.loads((path / MANIFEST).read_text())
    write_text(
        path / MANIFEST, json.dumps({k: value if k == key else v for k, v in manifest.items() if k != key or value})
    )
    with pytest.raises(TokError, match=f"is damaged: key '{key}'"):
        open_artifact(path)


@pytest.mark.parametrize("where", [("files", "model.safetensors"), ("inputs", "data")])
def test_manifest_with_a_wrong_entry_is_refused(tmp_path: Path, make_artifact: Make, where: tuple[str, str]) -> None:
    path = make_artifact(tmp_path / "a", inputs={"data": {"id": "data-1", "path": "x"}}).path
    manifest = json.loads((path / MANIFEST).read_text())
    manifest[where[0]][where[1]] = {"id": 3}
    write_text(path / MANIFEST, json.dumps(manifest))
    with pytest.raises(TokError, match=f"is damaged: key '{where[0]}'"):
        open_artifact(path)


@pytest.mark.parametrize("key", ["proposal", "condition", "loss", "sample"])
def test_a_recipe_whose_section_is_none_is_refused(tmp_path: Path, make_artifact: Make, key: str) -> None:
    path = make_artifact(tmp_path / "a", recipe={"stage": "x", "seed": 0, key: 3}).path
    with pytest.raises(TokError, match=rf"is damaged: key 'recipe\.{key}'"):
        open_artifact(path)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"', "[" * 100_000])
def test_manifest_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(TokError, match="is damaged"):
        open_artifact(tmp_path)


def test_manifest_of_another_schema_is_refused_as_such(tmp_path: Path) -> None:
    write_text(tmp_path / MANIFEST, json.dumps({"schema": 3, "novelty": True}))
    with pytest.raises(TokError, match="is not of schema 2, which this tok reads. Got schema 3"):
        open_artifact(tmp_path)


def test_flipped_bit_in_weights_is_found_where_they_are_read(tmp_path: Path, make_artifact: Make) -> None:
    make_artifact(tmp_path / "a")
    assert open_artifact(tmp_path / "a").file("model.safetensors").is_file()
    flip_bit(tmp_path / "a" / "model.safetensors")
    with pytest.raises(TokError, match=r"model.safetensors: is damaged: its SHA-256 is not the one in the manifest"):
        open_artifact(tmp_path / "a").file("model.safetensors")


def test_missing_and_unlisted_files_are_refused(tmp_path: Path, make_artifact: Make) -> None:
    made = make_artifact(tmp_path / "a")
    (made.path / "model.safetensors").unlink()
    (made.path / "stray.bin").touch()
    with pytest.raises(TokError, match=r"model.safetensors: is damaged"):
        open_artifact(made.path).file("model.safetensors")
    with pytest.raises(TokError, match=r"stray.bin: is not part of this artifact"):
        open_artifact(made.path).file("stray.bin")


# lineage


def test_moved_artifact_is_found_by_its_id(tmp_path: Path, make_artifact: Make) -> None:
    made = make_artifact(tmp_path / "a")
    make_artifact(tmp_path / "b", weights=b"another")
    assert locate(made.id, str(tmp_path / "a"), tmp_path).path == tmp_path / "a"
    shutil.move(tmp_path / "a", tmp_path / "z")
    shutil.move(tmp_path / "b", tmp_path / "a")  # the hint now leads to something else
    assert locate(made.id, str(tmp_path / "a"), tmp_path).path == tmp_path / "z"
    with pytest.raises(TokError, match="tokenizer-000000000000: this input is not at "):
        locate("tokenizer-000000000000", None, tmp_path)


def test_an_input_is_found_beside_where_its_recorded_path_is_out_of_sight(
    tmp_path: Path, make_artifact: Make, closed: str
) -> None:
    made = make_artifact(tmp_path / "a")
    assert locate(made.id, f"{closed}/a", tmp_path).path == tmp_path / "a"
    with pytest.raises(TokError, match="cannot be looked at: "):
        open_artifact(closed)


def test_artifacts_of_different_tokenizers_are_refused_together(tmp_path: Path, make_artifact: Make) -> None:
    one, two = make_artifact(tmp_path / "1"), make_artifact(tmp_path / "2", weights=b"2")
    made_by = {"tokenizer": {"id": one.id, "path": str(one.path)}}
    tokens = make_artifact(tmp_path / "k", kind="tokens", inputs=made_by)
    decoder = make_artifact(tmp_path / "d", kind="decoder", inputs=made_by)
    check_lineage(tokens, "--tokens", decoder, "--decoder")
    check_lineage(tokens, "--tokens", one, "--tokenizer")
    with pytest.raises(TokError, match=rf"--tokens .*k: made for {one.id}, but --tokenizer .*2 speaks {two.id}"):
        check_lineage(tokens, "--tokens", two, "--tokenizer")


# tok verify


def pictures(path: Path) -> Path:
    """A finished artifact whose images stand in a list beside the manifest."""
    draft = begin(path, "samples", {"stage": "sample"}, {}, {})
    assert isinstance(draft, Draft)
    for name in ("0.png", "1.png"):
        (path / name).write_bytes(name.encode() * 9)
    write_listing(path, "images.sha256", ["1.png", "0.png"])
    draft.finish({"number": 2}, payload=["images.sha256"])
    return path


def test_verify_counts_the_files_of_a_whole_artifact(tmp_path: Path) -> None:
    assert verify(pictures(tmp_path / "a")).endswith(": manifest and 3 files are whole")


def test_verify_finds_a_damaged_and_a_missing_image_of_a_list(tmp_path: Path) -> None:
    flip_bit(pictures(tmp_path / "a") / "1.png")
    with pytest.raises(TokError, match=r"1 of 3 files are damaged or missing. Got 1.png"):
        verify(tmp_path / "a")
    (tmp_path / "a" / "0.png").unlink()
    with pytest.raises(TokError, match=r"2 of 3 files are damaged or missing. Got 0.png, 1.png"):
        verify(tmp_path / "a")


def test_verify_finds_a_damaged_list(tmp_path: Path) -> None:
    flip_bit(pictures(tmp_path / "a") / "images.sha256")
    with pytest.raises(TokError, match="images.sha256"):
        verify(tmp_path / "a")


CHANGES: dict[str, tuple[str, str]] = {
    "fact": ('"codebook_size": 8', '"codebook_size": 9'),
    "recipe": ('"heads": 3', '"heads": 2'),
    "input": ("data-1", "data-2"),
    "path of an input": ('"path": "x"', '"path": "y"'),
    "metric": ('"loss": 0.5', '"loss": 0.4'),
    "provenance": ('"cpu"', '"gpu"'),
    "status": ('"payload": false', '"payload": true'),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_manifest_that_was_changed_is_refused_by_every_opening(
    tmp_path: Path, make_artifact: Make, what: str
) -> None:
    recipe = {"stage": "tokenizer", "seed": 0, "encoder": {"heads": 3}, "train": {"workers": 2}}
    made = make_artifact(tmp_path / "a", recipe=recipe, inputs={"data": {"id": "data-1", "path": "x"}})
    forge(made.path, lambda m: m["metrics"].update(loss=0.5))
    text = (made.path / MANIFEST).read_text()
    assert verify(made.path).endswith("are whole") and CHANGES[what][0] in text
    (made.path / MANIFEST).write_text(text.replace(*CHANGES[what], 1))
    for opening in (verify, describe, open_artifact, lambda path: begin(path, "tokenizer", recipe, {}, {})):
        with pytest.raises(TokError, match="manifest.json: was changed since it was written"):
            opening(made.path)


def test_the_order_of_keys_and_the_spaces_of_a_manifest_are_nobodys_business(
    tmp_path: Path, make_artifact: Make
) -> None:
    made = make_artifact(tmp_path / "a")
    (made.path / MANIFEST).write_text(json.dumps(dict(reversed(made.manifest.items()))))
    assert open_artifact(made.path).id == made.id


def test_an_id_that_does_not_follow_from_the_content_is_refused(tmp_path: Path, make_artifact: Make) -> None:
    made = make_artifact(tmp_path / "a")
    for change in (lambda m: m["facts"].update(codebook_size=9), lambda m: m["recipe"].update(encoder={"heads": 2})):
        forge(made.path, change, fitting=False)
        with pytest.raises(TokError, match="the id does not match"):
            open_artifact(made.path)


def test_what_is_damaged_in_a_workspace_is_named_where_it_is_searched(
    tmp_path: Path, make_artifact: Make, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b", "running"):
        make_artifact(tmp_path / name)
    forge(tmp_path / "a", lambda m: m["facts"].update(codebook_size=9), fitting=False)
    forge(tmp_path / "running", lambda m: m.update(status="running"))
    assert [a.path.name for a in scan(tmp_path)] == ["b"]
    (said,) = caplog.messages
    assert said.startswith(f"passed over: {tmp_path / 'a'}")


def test_names_of_others_add_no_line_to_what_is_shown(tmp_path: Path, make_artifact: Make) -> None:
    inputs = {"data": {"id": "data-1", "path": "x\nforged"}}
    made = make_artifact(tmp_path / "a\nb", facts={"codebook_size": 8, "x\ny": "z\n"}, inputs=inputs)
    assert len(listing(tmp_path, False).splitlines()) == 1
    shown = describe(made.path).splitlines()
    assert [line for line in shown if line.startswith(("b", "y", "forged", '"'))] == [] and "x\\ny" in "".join(shown)


def test_a_space_stands_between_the_longest_name_and_its_value(tmp_path: Path, make_artifact: Make) -> None:
    name = "codebook_perplexity_nonblank"
    shown = describe(make_artifact(tmp_path / "a", facts={"codebook_size": 8, name: 2}).path).splitlines()
    assert [line.split() for line in shown if name in line or "codebook_size" in line] == [
        ["codebook_size", "8"], [name, "2"],
    ]  # fmt: skip


def older(path: Path, stored: str = "stage: tokenizer\nseed: 0\nencoder: {heads: 3, x: 1.0e-05}\n") -> Path:
    """An artifact as they were before manifests had a hash, with its recipe beside it."""
    recipe = {"stage": "tokenizer", "seed": 0, "encoder": {"heads": 3, "x": 1e-5}}
    draft = begin(path, "tokenizer", recipe, {}, {"command": ["tok"]})
    assert isinstance(draft, Draft)
    (path / "recipe.yaml").write_text(stored)
    draft.finish({"codebook_size": 8}, payload=[], extras=["recipe.yaml"])
    return age(path)


def test_an_older_artifact_opens_with_a_note_and_is_checked_by_its_recipe_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = older(tmp_path / "a")
    caplog.set_level("INFO")
    assert open_artifact(path).older and "of the older kind" in caplog.text
    assert "of the older kind" in verify(path) and "of the older kind" in describe(path)
    assert caplog.text.count("of the older kind") == 1  # said once
    text = (path / MANIFEST).read_text()
    (path / MANIFEST).write_text(text.replace('"heads": 3', '"heads": 2'))
    for opening in (open_artifact, verify):
        with pytest.raises(
            TokError, match=r"its recipe was changed: it is not that of recipe.yaml. Got encoder.heads: 2, not 3"
        ):
            opening(path)


def test_what_an_older_recipe_left_open_is_no_change(tmp_path: Path) -> None:
    path = older(tmp_path / "a", "stage: tokenizer\nseed: 0\nencoder: {heads: 3, x: 1.0e-05}\ntrain: {max_bad: 0.5}\n")
    forge(path, lambda m: m["recipe"].update(train={"max_bad": 0.1}))  # a tolerance, which was raised later
    assert open_artifact(path).older
    forge(path, lambda m: m["recipe"]["encoder"].update(x=None))
    assert open_artifact(path).older


@pytest.mark.parametrize("stored", ["[", "3", "a: &a [*a]", "x: 0001-99-99"])
def test_an_older_artifact_whose_recipe_file_is_none_is_refused(tmp_path: Path, stored: str) -> None:
    with pytest.raises(TokError):
        open_artifact(older(tmp_path / "a", stored))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("grid", [8]), ("grid", [8, 0]), ("use_size", -1), ("codebook_size", True), ("codebook_size", 8.5), ("name", None),
        ("classes", "cat"), ("classes", [1]), ("has_decoder", 1), ("teacher", []),
    ],
)  # fmt: skip
def test_facts_of_another_form_are_refused_although_the_id_fits(
    tmp_path: Path, make_artifact: Make, key: str, value: Any
) -> None:
    make_artifact(tmp_path / "a", facts={key: value})
    with pytest.raises(TokError, match=f"is damaged: key 'facts.{key}' is missing, of a wrong type or out of range"):
        open_artifact(tmp_path / "a")


def test_a_missing_fact_or_input_is_said_of_the_manifest_by_whoever_asks(tmp_path: Path, make_artifact: Make) -> None:
    artifact = make_artifact(tmp_path / "a", facts={})
    for ask in (lambda: artifact.facts["grid"], lambda: artifact.inputs["grid"]):
        with pytest.raises(TokError, match=r"a/manifest.json: (fact|input) 'grid' is missing\. Restore it"):
            ask()


@pytest.mark.parametrize(("key", "value"), [("command", 1), ("command", [1]), ("started", None)])
def test_provenance_changed_by_hand_is_no_traceback(tmp_path: Path, make_artifact: Make, key: str, value: Any) -> None:
    make_artifact(tmp_path / "a")
    forge(tmp_path / "a", lambda m: (m["provenance"].update({key: value}), m["provenance"].pop("device")))
    if key == "command":
        with pytest.raises(TokError, match=r"is damaged: key 'provenance\.command'"):
            open_artifact(tmp_path / "a")
    else:
        assert "None, 0 s, ?" in describe(tmp_path / "a")


def test_a_path_that_is_not_utf8_is_written_and_read_back_whole(tmp_path: Path, make_artifact: Make) -> None:
    made = make_artifact(tmp_path / "caf\udce9", inputs={"data": {"id": "data-1", "path": "/caf\udce9"}})
    assert open_artifact(made.path).inputs["data"]["path"] == "/caf\udce9"


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ("a: &a [1, 2]\nb: [*a, *a]\n", "a recipe has no anchors and aliases"),
        ("a: 1\na: 2\n", "key 'a' stands twice"),
        ("x: " + "[" * 5000 + "\n", "is not a valid recipe"),
        ("x: '" + "a" * (1 << 18) + "'\n", "is too large for a recipe"),
        ("- 1\n", "is not a mapping of recipe keys"),
    ],
)
def test_the_recipe_file_of_an_older_artifact_is_read_as_any_recipe(tmp_path: Path, stored: str, said: str) -> None:
    with pytest.raises(TokError, match=said):
        open_artifact(older(tmp_path / "a", stored))
