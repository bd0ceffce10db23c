from dataclasses import replace

import pandas as pd
import pytest

from fractatlas.data.sources.fracatlas import BODY_PARTS
from fractatlas.evaluation.detection import FALSE_ALARMS
from fractatlas.experiments.run_records import read_images
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
    assert len(both.curves["test"]["sensitivity"]) == 60


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
