"""Rows by lineage, columns by protocol, marks of judges that took part in a training."""

import json
import re
from dataclasses import replace

import pytest

from tokcli.evaluation.judge import asked_for
from tokcli.evaluation.lineage import ancestry, involved
from tokcli.evaluation.records import Against, Measured, Measurement
from tokcli.evaluation.tables import build_tables, warning_of_small_sets
from tokcli.evaluation.text_tables import as_csv, as_text
from tokcli.metrics.reported import Reported

VAL, TRAIN = Against("data-1", "set/val", 100), Against("data-2", "set/train", 900)

SHA = "ab" * 32


def measured(kind, *found, tokenizer="tokenizer-1", mode=None, size=64, recipe=None, name="vqkd", id="x"):
    path = f"/ws/{kind}-{id}"
    if kind == "samples":
        found = [replace(m, what=replace(m.what, mode=mode)) for m in found]
    return Measured(f"{kind}-{id}", kind, name, path, tokenizer, mode, size, {}, recipe or {}, list(found))


def number(metric, value, count=100, extractor=None, **keys):
    return Measurement(Reported(metric, extractor), value, count, **keys)


def fd(value, count=500, against=VAL, involved=(), extractor="vits14"):
    interval = (value - 1, value + 1)
    return number("fd", value, count, extractor, against=against, involved=involved, interval=interval)


def usage(value):
    return number("codebook_usage", value, 6400, of="tokens", against=VAL)


def headings(table):
    return [column.heading for column in table.columns]


def test_a_family_is_one_row_with_the_paper_s_columns_in_its_order():
    samples = [measured("samples", fd(v), mode=m, id=m) for v, m in ((11.0, "nar"), (12.0, "ar"))]
    found = build_tables(
        [*samples, measured("tokenizer", usage(0.5), number("top_code_share", 0.1, 6400, of="tokens", against=VAL))]
    )
    assert headings(found.paper) == [
        "usage % ↑", "rFID ↓", "PPL ↓", "FD_AR vits14 ↓", "FD_NAR vits14 ↓", "IS ↑",
    ]  # fmt: skip
    assert as_text(found.paper).splitlines()[2].split() == ["vqkd", "50.0", "-", "-", "12.00", "11.00", "-"]
    assert headings(found.more) == ["top code % ↓"]


def test_numbers_of_patches_with_content_are_in_no_table():
    nonblank = Measurement(Reported("codebook_usage", nonblank=True), 0.4, 3200, "tokens", VAL)
    found = measured("tokenizer", usage(0.5), nonblank)
    assert [set(row.cells) for row in build_tables([found]).whole.rows] == [{"codebook_usage"}]
    assert found.metrics == {"codebook_usage": 0.5, "codebook_usage_nonblank": 0.4}


def test_other_columns_stand_in_the_order_of_metrics_and_those_of_an_extractor_last():
    drawn = measured("samples", number("kd", 0.1, extractor="vits14"), mode="ar")
    found = build_tables(
        [drawn, measured("proposal", number("token_accuracy", 0.1)), measured("decoder", number("psnr", 20.0))]
    )
    assert [column.key for column in found.more.columns] == ["psnr", "token_accuracy", "kd_vits14_ar"]


def test_sets_too_small_for_a_distance_are_listed_once_each():
    few = measured("samples", fd(9.0, count=18), fd(8.0, count=18, extractor="efflite0"), usage(0.5), id="few")
    many = measured("samples", fd(9.0, count=5000), fd(9.0, count=5000, against=TRAIN), id="many")
    said = warning_of_small_sets([few, many])
    assert said is not None and said.endswith("equal N: samples-few (18), set/val (100), set/train (900)")
    found = build_tables([few, many])
    assert said in found.paper.notes and said in found.whole.notes and said not in found.more.notes
    assert warning_of_small_sets([measured("tokenizer", usage(0.5))]) is None


def test_what_was_not_measured_is_said_once():
    found = build_tables([measured("tokenizer", usage(0.5))])
    assert found.paper.notes[0] == "-: not measured" and "-: not measured" not in found.more.notes


def test_two_tokenizers_are_two_rows_told_apart_by_id_where_names_are_equal():
    found = build_tables(
        [measured("tokenizer", usage(v), tokenizer=f"tokenizer-{v}00000", id=str(v)) for v in (0.1, 0.2)]
    )
    assert [row.name for row in found.paper.rows] == ["vqkd 100000", "vqkd 200000"]


@pytest.mark.parametrize(
    "other",
    [fd(9.0, count=5000), fd(9.0, against=TRAIN), fd(9.0, against=replace(VAL, images=99))],
    ids=["another N", "another reference", "another number of reference images"],
)
def test_unlike_protocols_are_never_in_one_column(other):
    rows = [
        measured("samples", found, tokenizer=f"tokenizer-{n}", mode="ar", name=f"t{n}", id=str(n))
        for n, found in enumerate((fd(8.0), other))
    ]
    found = build_tables(rows)
    assert headings(found.paper)[3:5] == ["FD_AR vits14 (a) ↓", "FD_AR vits14 (b) ↓"]
    assert [list(row.cells) for row in found.paper.rows] == [["fd_vits14_ar (a)"], ["fd_vits14_ar (b)"]]


@pytest.mark.parametrize(
    ("kind", "metric", "extractor", "mode", "key"),
    [("tokenizer", "feature_loss", None, None, "feature_loss"), ("samples", "clip_score", "clip", "t2i", "clip_score_t2i"), ("samples", "fd", "vits14", "t2i", "fd_vits14_t2i")],
)  # fmt: skip
@pytest.mark.parametrize("other", ["first", "second"])
def test_features_of_other_teachers_and_other_captions_are_never_in_one_column(
    kind, metric, extractor, mode, key, other
):
    rows = [
        measured(
            kind,
            number(metric, 0.5, extractor=extractor, against=VAL, by=by),
            tokenizer=name,
            name=name,
            id=name,
            mode=mode,
        )
        for name, by in (("one", "first"), ("other", other))
    ]
    found = build_tables(rows).whole
    wanted = [{f"{key} (a)"}, {f"{key} (b)"}] if other == "second" else [{key}, {key}]
    assert [set(row.cells) for row in found.rows] == wanted
    assert all(any(note.endswith(f"64 px, {by}") for note in found.notes) for by in ("first", other))


def test_another_image_size_is_another_protocol():
    rows = [measured("samples", fd(8.0), tokenizer=f"tokenizer-{s}", mode="ar", size=s, id=str(s)) for s in (32, 64)]
    assert sum("vits14" in heading for heading in headings(build_tables(rows).paper)) == 2


def test_train_and_validation_references_stand_side_by_side():
    found = build_tables([measured("samples", fd(8.0), fd(6.0, against=TRAIN), mode="ar")])
    assert list(found.paper.rows[0].cells) == ["fd_vits14_ar (a)", "fd_vits14_ar (b)"]
    notes = "\n".join(found.paper.notes)
    assert "FD_AR vits14 (a): 500 images against 100 images of set/val (data-1), 64 px" in notes
    assert "FD_AR vits14 (b): 500 images against 900 images of set/train (data-2), 64 px" in notes


def test_a_second_artifact_in_one_place_gets_its_own_row_named_by_what_differs():
    sweep = [
        measured("samples", fd(v), mode="ar", recipe={"sample": {"cfg_scale": s, "top_k": 0}}, id=str(s))
        for v, s in ((8.0, 1.0), (7.0, 2.0))
    ]
    found = build_tables([measured("tokenizer", usage(0.5)), *sweep])
    assert [row.name for row in found.paper.rows] == ["vqkd", "vqkd: cfg_scale=2.0"]
    assert [row.cells["fd_vits14_ar"].value for row in found.paper.rows] == [8.0, 7.0]


def drawn(proposal, decoder, mode="ar", value=8.0, **recipe):
    one = measured(
        "samples", fd(value), mode=mode, recipe={"sample": recipe}, id=f"{mode}-{proposal}-{decoder}-{value}"
    )
    return replace(one, inputs={"proposal": f"proposal-{proposal}", "decoder": f"decoder-{decoder}"})


def network(kind, id, metric, mode=None, **recipe):
    return measured(kind, number(metric, float(ord(id[0])), against=VAL), mode=mode, id=id, recipe=recipe)


def test_a_row_holds_samples_of_its_own_networks_only():
    ppl = lambda id, **recipe: network("proposal", id, "proposal_ppl", "ar", **recipe)  # noqa: E731
    family = [
        measured("tokenizer", usage(0.5)), network("decoder", "d", "psnr"), network("decoder", "e", "psnr", widths=2), ppl("a", seed=0),
        ppl("b", seed=5), drawn("b", "d", value=2.0), drawn("a", "e", value=3.0), drawn("n", "d", "nar", value=4.0), drawn("a", "d", value=1.0),
        drawn("n", "d", "nar", value=5.0, cfg_scale=2),
    ]  # fmt: skip
    rows = {row.name: {k: c.value for k, c in row.cells.items()} for row in build_tables(family).whole.rows}
    assert rows == {
        "vqkd": {"codebook_usage": 0.5, "psnr": 100.0, "proposal_ppl": 98.0, "fd_vits14_ar": 2.0, "fd_vits14_nar": 4.0},
        "vqkd: widths=2; seed=0": {"psnr": 101.0, "proposal_ppl": 97.0, "fd_vits14_ar": 3.0},
        "vqkd: seed=0": {"fd_vits14_ar": 1.0},
        "vqkd: cfg_scale=2": {"fd_vits14_nar": 5.0},
    }


def test_a_decoder_beside_one_that_the_tokenizer_holds_has_its_own_row():
    t = measured("tokenizer", usage(0.5), number("psnr", 20.0, against=VAL), id="t")
    family = [t, network("decoder", "d", "psnr"), drawn("a", "d")]
    found = build_tables(family).whole.rows
    assert [set(row.cells) for row in found] == [{"codebook_usage", "psnr"}, {"psnr", "fd_vits14_ar"}]
    assert found[0].cells["psnr"].value == 20.0


def test_samples_asked_for_otherwise_have_a_row_of_their_own():
    other = drawn("a", "d", value=2.0, classes=["Flags"])
    other = replace(other, measurements=[replace(m, by="classes Flags") for m in other.measurements])
    found = build_tables([measured("tokenizer", usage(0.5)), drawn("a", "d"), other]).whole
    assert [list(row.cells) for row in found.rows] == [["codebook_usage", "fd_vits14_ar (a)"], ["fd_vits14_ar (b)"]]
    assert found.rows[1].name == "vqkd: classes=['Flags']"


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ({}, None), ({"classes": None, "prompts": None}, None), ({"classes": "data"}, "classes as in the data"),
        ({"classes": ["Flags", 2]}, "classes Flags, 2"), ({"prompts": ["a dog", "a cat"]}, "captions a dog, a cat"),
        ({"prompts": ["a dog"] * 99}, r"99 captions \(........\)"),
    ],
)  # fmt: skip
def test_what_samples_were_asked_to_show_is_said(sample, said):
    found = asked_for(sample)
    assert found is None if said is None else re.fullmatch(said, found)


def test_a_cell_is_marked_where_its_judge_took_part():
    found = build_tables(
        [measured("samples", fd(8.0, involved=("teacher",)), fd(9.0, extractor="efflite0"), mode="ar")]
    )
    line = as_text(found.paper).splitlines()
    assert "8.00*" in line[2] and "9.00*" not in line[2]
    assert line[-1] == "* its judge took part in the training: vits14 (teacher)"


def test_the_table_in_json_carries_each_cell_s_provenance():
    found = build_tables([measured("samples", fd(8.0, involved=("teacher",)), mode="ar")])
    (row,) = json.loads(json.dumps(found.as_json))["rows"]
    assert row["cells"]["fd_vits14_ar"] == {
        "value": 8.0, "text": "8.00*", "artifact": "samples-x", "measurement": 0, "involved": ["teacher"], "interval": [7.0, 9.0]
    }  # fmt: skip
    (column,) = [c for c in found.as_json["columns"] if c["key"] == "fd_vits14_ar"]
    assert column["better"] == "lower" and column["protocol"].startswith("500 images against 100")
    assert as_csv(found.whole).splitlines()[1].split(",")[4] == "8.0"


def test_metrics_of_an_artifact_are_those_of_the_first_reference():
    one = measured("samples", fd(8.0), fd(6.0, against=TRAIN), mode="ar")
    assert one.as_json()["metrics"] == {"fd_vits14": 8.0}
    assert [m["against"]["name"] for m in one.as_json()["measurements"]] == ["set/val", "set/train"]


@pytest.fixture
def family(make_artifact, tmp_path):
    """A tokenizer with teacher efflite0, a decoder with a perceptual loss and a discriminator on squeezenet, samples."""
    ref = lambda a: {"id": a.id, "path": str(a.path)}  # noqa: E731
    data = {"data": {"id": "data-1", "path": "set/train"}}
    teacher = {"teacher": {"name": "timm:x"}}
    t = make_artifact(
        tmp_path / "t", inputs=data, recipe=teacher, facts={"teacher": {"name": "x", "sha256": SHA, "feature_dim": 8}}
    )
    loss = {"l1": {"weight": 1.0}, "perceptual": {"weight": 1.0, "network": "squeezenet"}}
    gan = {"discriminator": {"name": "features", "network": "dinov2-s"}}
    weights = {"weights-perceptual": {"id": f"weights-{'cd' * 6}", "path": "x"}}
    d = make_artifact(
        tmp_path / "d",
        b"2",
        "decoder",
        inputs={**data, "tokenizer": ref(t), **weights},
        recipe={"loss": loss, "gan": gan},
    )
    s = make_artifact(tmp_path / "s", b"3", "samples", inputs={"decoder": ref(d), "tokenizer": ref(t)})
    return t, d, s


def test_judges_of_the_whole_lineage_are_found(family):
    t, d, s = family
    lineage = ancestry(s)
    assert {a.id for a in lineage} == {t.id, d.id, s.id}
    assert involved(lineage, "timm:x", None) == ("teacher",)
    assert involved(lineage, "squeezenet", None) == ("perceptual loss",)
    assert involved(lineage, "timm:vit_small_patch14_dinov2.lvd142m", None) == ("discriminator",)  # dinov2-s in full
    assert involved(lineage, "vits14", SHA) == ("teacher",)  # the same weights under another name
    assert involved(lineage, "vits14", "12" * 32) == ()
    assert involved(lineage, "vits14", "cd" * 32) == ("perceptual loss",)
    assert involved(ancestry(t), "squeezenet", None) == ()  # the tokenizer has not seen its decoder's losses


def test_inputs_that_are_no_artifacts_are_no_missing_ancestors(make_artifact, tmp_path, caplog):
    inputs = {role: {"id": f"{role}-1", "path": "x"} for role in ("data", "image", "mask", "checkpoint")}
    inputs["weights-tiny"] = {"id": "weights-abc", "path": "x"}
    assert len(ancestry(make_artifact(tmp_path / "s", b"4", "samples", inputs=inputs))) == 1
    assert "not at hand" not in caplog.text


def test_an_ancestor_that_is_gone_is_named_and_ends_nothing(family, caplog):
    t, d, s = family
    (t.path / "manifest.json").unlink()
    assert {a.id for a in ancestry(s)} == {d.id, s.id}
    assert f"{t.id}: this input is not at" in caplog.text
