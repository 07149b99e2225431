"""The paper's columns, and its figures in rows of their own under ours."""

import pytest
from test_evaluation import TRAIN, fd, headings, measured, number, usage
from test_faults import refusal
from test_report_page import EXTRACTORS

from tokcli.evaluation.aims import PAPER, TABLES, Published
from tokcli.evaluation.html import write_report
from tokcli.evaluation.tables import build_tables
from tokcli.evaluation.text_tables import as_csv, as_markdown, as_text
from tokcli.recipe.yaml import read_yaml, recipes_root
from tokcli.stages.evaluate import EvalRecipe

AIMS = Published(
    source="a paper, table 1", assumed=["the decoder"],
    rows={"vqkd": {"codebook_usage": 0.9, "fid_ar": 24.11, "fid_nar": 20.5}, "fsq": {"fid_ar": 40.17}},
)  # fmt: skip


def fid(value, **keys):
    return fd(value, extractor="inception", **keys)


def samples(*found, mode="ar", id="s", **recipe):
    return measured("samples", *found, mode=mode, id=id, recipe={"sample": recipe})


def lines(table):
    return {line[: line.index("  ")]: line.split()[-len(table.columns) :] for line in as_text(table).splitlines()[2:]
            if "  " in line}  # fmt: skip


def test_the_paper_s_columns_with_lpips_last_where_it_is_measured():
    family = [measured("tokenizer", usage(0.5), number("lpips", 0.2)), samples(fid(9.0), mode="t2i")]
    assert headings(build_tables(family).paper) == [
        "usage % ↑", "rFID ↓", "PPL ↓", "FID_AR ↓", "FID_T2I ↓", "IS ↑", "LPIPS ↓",
    ]  # fmt: skip
    assert "FID_NAR ↓" in headings(build_tables([*family, samples(fid(9.0), mode="nar", id="n")]).paper)
    assert headings(build_tables(family[:1]).paper)[3:] == ["FID_AR ↓", "FID_NAR ↓", "IS ↑", "LPIPS ↓"]


def test_a_published_fid_of_masked_sampling_has_its_column_beside_samples_of_captions():
    family = [measured("tokenizer", usage(0.5)), samples(fid(9.0), mode="t2i")]
    assert "FID_NAR ↓" in headings(build_tables(family, AIMS).paper)
    assert "FID_NAR ↓" not in headings(build_tables(family).paper)


def test_a_published_share_is_at_most_one():
    with pytest.raises(ValueError, match=r"x.codebook_usage: must be a share in \[0, 1\]"):
        Published(source="a paper", rows={"x": {"codebook_usage": 1.5}})


def test_an_inception_score_with_other_weights_stands_in_the_paper_s_column():
    score = number("inception_score", 3.0, extractor="inception-ab12cd34")
    assert headings(build_tables([samples(score)]).paper)[-1] == "IS_AR inception-ab12cd34 ↑"


def test_published_figures_stand_under_ours_and_are_no_measurements():
    found = build_tables([measured("tokenizer", usage(0.5)), samples(fid(30.0))], AIMS)
    assert lines(found.paper) == {
        "vqkd": ["50.0", "-", "-", "30.00", "-", "-"], "vqkd, published": ["90.0", "-", "-", "24.11", "20.50", "-"],
    }  # fmt: skip
    assert [row["name"] for row in found.as_json["rows"]] == ["vqkd"]
    (one,) = found.as_json["published"]
    assert one["cells"]["fid_ar"] == {"value": 24.11, "text": "24.11"} and one["source"] == "a paper, table 1"
    assert "| vqkd, published | 90.0 |" in as_markdown(found.paper)
    assert as_csv(found.whole).splitlines()[2].startswith("vqkd, published") or '"vqkd, published",0.9' in as_csv(
        found.whole
    )
    assert (
        found.paper.notes[-2].startswith("published: a paper, table 1")
        and "assumed: the decoder" in found.paper.notes[-1]
    )


def test_nothing_is_said_of_figures_that_no_tokenizer_here_has():
    found = build_tables([measured("tokenizer", usage(0.5), name="cluster-clip")], AIMS)
    assert len(found.paper.rows) == 1 and not any("published" in note for note in found.paper.notes)


def test_a_published_fid_is_never_in_the_column_of_another_extractor():
    found = build_tables([measured("tokenizer", usage(0.5)), samples(fd(30.0, extractor="inception-ab12cd34"))], AIMS)
    assert lines(found.paper)["vqkd, published"] == ["90.0", "-", "-", "-", "20.50", "-"]
    assert "without a column here: FID_AR (FID" in found.paper.notes[-1]


def test_two_guidance_scales_and_two_references_are_two_rows_of_two_columns_a_mode():
    both = lambda v: (fid(v), fid(v - 1, against=TRAIN))  # noqa: E731
    sweep = [
        samples(*both(30.0 + 10 * n - 5 * s), mode=mode, id=f"{mode}-{s}", cfg_scale=s)
        for n, mode in enumerate(("ar", "nar")) for s in (1.0, 1.75)
    ]  # fmt: skip
    found = build_tables([measured("tokenizer", usage(0.5)), *sweep], AIMS)
    assert headings(found.paper)[3:7] == ["FID_AR (a) ↓", "FID_AR (b) ↓", "FID_NAR (a) ↓", "FID_NAR (b) ↓"]
    assert {name: cells[3:7] for name, cells in lines(found.paper).items()} == {
        "vqkd": ["25.00", "24.00", "35.00", "34.00"], "vqkd: cfg_scale=1.75": ["21.25", "20.25", "31.25", "30.25"],
        "vqkd, published": ["24.11", "-", "20.50", "-"],
    }  # fmt: skip


def test_two_lines_that_differ_alike_in_one_mode_keep_names_of_their_own():
    family = [samples(fid(v), id=f"{v:.0f}-abcdef{n}", cfg_scale=min(v, 2.0)) for n, v in enumerate((1.0, 2.0, 3.0))]
    names = [row.name for row in build_tables(family).paper.rows]
    assert names == ["vqkd", "vqkd: cfg_scale=2.0", "vqkd: cfg_scale=2.0, bcdef2"]


@pytest.mark.parametrize("name", ["fid_arr", "fid", "rfidd"])
def test_a_figure_of_no_known_metric_is_a_recipe_error(name, photos, make_artifact, tmp_path):
    a = make_artifact(tmp_path / "t", inputs={"data": {"id": "d", "path": str(photos / "val")}})
    figures = f"eval.published={{source: x, rows: {{vqgan: {{{name}: 1.0}}}}}}"
    said = refusal("eval", a.path, "--data", photos / "val", "--recipe", "toy/eval", "--set", figures)
    assert "eval.published.rows" in said and f"vqgan.{name}: no such metric" in said


@pytest.mark.parametrize("folder", TABLES)
def test_the_recipes_of_the_paper_s_tables_hold_all_its_figures(folder):
    aims = EvalRecipe.model_validate(read_yaml(recipes_root() / folder / "eval.yaml")).eval.published
    assert list(aims.rows) == ["vqgan", "fsq", "vqkd-clip", "vqkd-vit", "vqkd-dino", "vqkd-mae"]
    columns = [column.what.name for column in PAPER if folder in column.tables]
    assert len(columns) == 5 and all(list(one) == columns for one in aims.rows.values())
    assert any("shifted by one patch" in one for one in aims.assumed)


def test_the_page_sets_published_figures_apart(tmp_path):
    family = [measured("tokenizer", usage(0.5)), samples(fid(30.0))]
    protocol = {
        "held_out": {"id": "d", "name": "set/val", "images": 9}, "resize": "crop", "references": [],
        "extractors": EXTRACTORS, "mask_ratio": 0.5,
    }  # fmt: skip
    report = {
        "protocol": protocol,
        "artifacts": [m.as_json() for m in family],
        "table": build_tables(family, AIMS).as_json,
    }
    write_report(tmp_path, report, logs={}, recipes={}, sheets=[], title="x")
    page = (tmp_path / "report.html").read_text()
    assert '<tr class="published"><th scope="row">vqkd, published</th><td class="published">90.0</td>' in page
