from dataclasses import replace

import pandas as pd
import pytest

from fractatlas.data.sources.fracatlas import BODY_PARTS
from fractatlas.evaluation.detection import FALSE_ALARMS
from fractatlas.experiments.pooling import pool
from fractatlas.experiments.run_records import RunRecord, read_images
from fractatlas.experiments.where_tables import curve_style, score_located, write_froc, write_located


def value(table: pd.DataFrame, subset: str, stratum: str) -> pd.Series:
    (row,) = table[(table["subset"] == subset) & (table["stratum"] == stratum)].to_dict("records")
    return pd.Series(row)


def test_scores_are_those_of_the_run(kept, tmp_path):
    record, folder, run = kept
    write_located(tmp_path, [score_located("A", [[record]], ("val", "test"), read_images(folder))])
    table = pd.read_csv(tmp_path / "where.csv")
    for subset in ("val", "test"):
        expected, located = run.metrics["detection"][subset], run.metrics["localisation"][subset]
        row = value(table, subset, "all")
        assert (row["images"], row["boxes"]) == (expected["n"], expected["boxes"])
        for rate in FALSE_ALARMS:
            for end in ("value", "low", "high"):
                column = f"froc_{rate}" + ("" if end == "value" else f"_{end}")
                assert row[column] == pytest.approx(expected["froc"][rate][end])
        for name in ("ap_30", "ap_50"):
            assert row[name] == pytest.approx(expected[name]["value"])
        strata = table[table["subset"] == subset].set_index("stratum")
        assert strata["n"].to_dict() == {name: one["n"] for name, one in located.items() if one["n"]}
        assert {"all", "below 16 px"} & {*strata.index}
        assert {*BODY_PARTS} & {*strata.index}
        for stratum, scores in strata.iterrows():
            for name in ("hit", "hit_centre", "hit_chance"):
                assert scores[name] == pytest.approx(located[stratum][name]["value"], abs=1e-5)
            assert scores["hit_centre_high"] == pytest.approx(located[stratum]["hit_centre"]["high"], abs=1e-5)
        assert strata.loc[strata.index != "all", "froc_1"].isna().all()
    text = (tmp_path / "where.md").read_text()
    assert "| val" not in text  # of a recipe, the test subset is shown
    assert f"{value(table, 'test', 'all')['froc_1']:.3f} [" in text


def test_froc_curves_are_drawn_and_removed_with_their_scores(kept, tmp_path):
    write_froc(tmp_path, [score_located("A", [[kept[0]]], ["test"])])
    assert (tmp_path / "froc.png").read_bytes().startswith(b"\x89PNG")
    write_froc(tmp_path, [])
    assert not (tmp_path / "froc.png").exists()


def test_styles_of_curves_are_distinct():
    styles = [curve_style(number) for number in range(36)]
    assert len({(style["color"], style["linestyle"]) for style in styles}) == 36
    for name in ("color", "linestyle"):
        assert len({style[name] for style in styles[:6]}) == 6


def test_scores_are_means_over_seeds(kept):
    record = kept[0]
    lucky = replace(record, boxes=record.boxes.assign(hit=1), candidates=record.candidates[:0])
    one, both = (score_located("A", seeds, ["test"]) for seeds in ([[record]], [[record], [lucky]]))
    row, mean = one.rows[0], both.rows[0]
    assert (mean["seeds"], mean["hit"], row["hit"]) == (2, 0.5, 0)
    assert row["froc_4"] > 0  # the candidates outside boxes of the second network are gone, those of the boxes are not
    assert mean["froc_1/8"] >= row["froc_1/8"]
    assert mean["ap_30"] == pytest.approx(row["ap_30"] / 2)
    curve = dict(zip(both.curves["test"]["false_alarms"], both.curves["test"]["sensitivity"], strict=True))
    assert [curve[rate] for rate in FALSE_ALARMS.values()] == pytest.approx(
        [mean[f"froc_{name}"] for name in FALSE_ALARMS], abs=1e-4
    )


def test_variants_have_the_validation_subset(kept, tmp_path):
    write_located(tmp_path, [score_located("V", [[kept[0]]], ["val"])], "A note.\n")
    assert set(pd.read_csv(tmp_path / "where.csv")["subset"]) == {"val"}
    text = (tmp_path / "where.md").read_text()
    assert "| val" in text
    assert text.endswith("A note.\n")


def test_a_recipe_without_heatmaps_has_no_row(kept):
    record = replace(kept[0], facts=kept[0].facts | {"located": [], "detected": []})
    found = score_located("A", [[record]], ("val", "test"))
    assert (found.rows, found.curves) == ([], {})


def test_without_the_heatmaps_of_all_images_there_is_the_pointing_game_only(kept, tmp_path):
    record = replace(kept[0], facts=kept[0].facts | {"detected": []})
    located = score_located("A", [[record]], ["test"])
    write_located(tmp_path, [located])
    write_froc(tmp_path, [located])
    table = pd.read_csv(tmp_path / "where.csv")
    assert "froc_1" not in table
    assert table["n"].iloc[0] == kept[0].boxes.query("split == 'test'")["image_id"].nunique()
    assert "FROC" not in (tmp_path / "where.md").read_text()
    assert not (tmp_path / "froc.png").exists()


def as_fold(record: RunRecord, fold: int, scale: float) -> RunRecord:
    """Return a record of a fold with the same images under other names, whose candidates have scaled scores."""
    named = (table.assign(image_id=f"{fold}" + table["image_id"]) for table in (record.boxes, record.candidates))
    boxes, candidates = (table.assign(score=table["score"] * scale) for table in named)
    predictions = record.predictions.assign(**{
        name: f"{fold}" + record.predictions[name].astype(str) for name in ("image_id", "group")
    })  # fmt: skip
    settings = record.facts["settings"] | {"split.folds": 2}
    return RunRecord(record.facts | {"fold": fold, "settings": settings}, predictions, boxes, candidates)


def test_folds_are_averaged_at_equal_rates_of_false_alarms_whatever_the_scale_of_their_scores(kept):
    record = kept[0]
    one, two, scaled = (
        score_located("A", [[as_fold(record, fold, scale) for fold, scale in enumerate(scales)]], ["test"])
        for scales in ((1.0,), (1.0, 1.0), (1.0, 1e-3))
    )
    for name in (*(f"froc_{rate}" for rate in FALSE_ALARMS), "ap_30", "ap_50"):
        assert two.rows[0][name] == pytest.approx(one.rows[0][name], abs=0.02)
        assert scaled.rows[0][name] == pytest.approx(two.rows[0][name])
    assert 0 < one.rows[0]["froc_4"] < 1


def test_the_order_within_a_fold_is_kept(kept):
    record = kept[0]
    pooled = pool([as_fold(record, 0, 1.0)], "test")
    before = record.candidates.query("split == 'test'")["score"]
    assert (pooled.candidates["score"].rank().to_numpy() == before.rank().to_numpy()).all()
    alarms = int((record.candidates.query("split == 'test'")["in_box"] == 0).sum())
    images = record.predictions.query("split == 'test'")["image_id"].nunique()
    assert pooled.candidates["score"].min() >= -alarms / images - 1e-5
    found = record.boxes.query("split == 'test'")["score"]
    assert (pooled.boxes["score"].isna().to_numpy() == found.isna().to_numpy()).all()
    assert pooled.boxes["score"].max() <= 0
