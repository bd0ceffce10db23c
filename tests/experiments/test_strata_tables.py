from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from fractatlas.data.sources.fracatlas import BODY_PARTS, VIEWS
from fractatlas.evaluation import metrics, strata
from fractatlas.evaluation.bootstrap import bootstrap_weights
from fractatlas.experiments.pooling import pool
from fractatlas.experiments.result_tables import recipe_rows
from fractatlas.experiments.strata_tables import SCORES, score_strata, write_strata
from tests.experiments.conftest import made_up_record

ENDS = ("", "_low", "_high")


@pytest.fixture
def images(folds) -> pd.DataFrame:
    """Properties of the images, in another order: every third is of a leg, four fractured and 30 others have metal."""
    table = pd.concat([record.tables["test"] for record in folds], ignore_index=True)
    known = table[["image_id"]].assign(**dict.fromkeys((*BODY_PARTS, "multiscan", *VIEWS, "hardware"), 0))
    known["hand"], known["leg"] = (table.index % 3 > 0).astype(int), (table.index % 3 == 0).astype(int)
    known["lateral"], known["width"] = 1, 454
    for label, count in ((1, 4), (0, 30)):
        known.loc[table.index[table["label"] == label][:count], "hardware"] = 1
    return known[::-1]


@pytest.fixture
def seeds(folds) -> list:
    return [folds, [made_up_record(2, fold) for fold in range(3)]]


def row_of(rows: list[dict], attribute: str, stratum: str) -> dict:
    (row,) = [row for row in rows if (row["attribute"], row["stratum"]) == (attribute, stratum)]
    return row


def test_a_stratum_has_the_mean_over_seeds_of_the_scores_of_its_images(seeds, images):
    row = row_of(score_strata("A", seeds, images), "body part", "hand")
    chosen = images.loc[images["hand"] == 1, "image_id"]
    scores = []
    for folds in seeds:
        table = pool(folds, "test").table
        table = table[table["image_id"].isin(chosen)]
        decided = table["probability"] >= table["fold_threshold"]
        scores.append({
            "accuracy": (decided == table["label"]).mean(),
            "auroc": roc_auc_score(table["label"], table["probability"]),
            "average_precision": average_precision_score(table["label"], table["probability"]),
            "sensitivity": decided[table["label"] == 1].mean(),
            "specificity": (~decided[table["label"] == 0]).mean(),
        })  # fmt: skip
    assert set(SCORES) == {*scores[0]}
    for name in SCORES:
        assert row[name] == pytest.approx(np.mean([one[name] for one in scores])), name
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
    n, positives = len(table), table["label"].sum()
    assert (row["n"], row["positives"], row["low_count"]) == (n, positives, False)
    assert row["majority_rate"] == (n - positives) / n
    assert (row["recipe"], row["seeds"], row["folds"]) == ("A", 2, "3 of 3")


def test_the_rows_of_one_seed_are_those_of_the_report_page(folds, images):
    pooled = pool(folds, "test")
    expected = strata.stratify(
        pooled.table.merge(images, on="image_id"), pooled.threshold, bootstrap_weights(pooled.table["group"])
    )
    found = pd.DataFrame(score_strata("A", [folds], images))
    columns = ["attribute", "stratum", "n", "positives", "low_count", *(name + end for name in SCORES for end in ENDS)]
    pd.testing.assert_frame_equal(found[columns], expected[columns], check_dtype=False)
    assert found["attribute"].tolist() == ["all", "body part", "body part", "view", *["hardware"] * 2, "several scans"]


def test_the_row_of_all_images_has_the_values_of_the_recipe(seeds, images):
    recipe = next(row for row in recipe_rows("A", seeds) if row["subset"] == "test")
    row = row_of(score_strata("A", seeds, images), "all", "all")
    for name in ("n", "positives", "majority_rate", *SCORES):
        assert row[name] == pytest.approx(recipe[name]), name
    for name in SCORES:
        assert row[f"{name}_low"] <= recipe[f"{name}_low"] + 1e-12
        assert row[f"{name}_high"] >= recipe[f"{name}_high"] - 1e-12


def test_a_score_that_all_samples_share_has_an_interval_for_small_counts(folds, images):
    perfect = [
        replace(one, predictions=one.predictions.assign(probability=0.01 + 0.98 * one.predictions["label"]))
        for one in folds
    ]
    rows = score_strata("A", [perfect, perfect], images)
    single = score_strata("A", [perfect], images)
    row = row_of(rows, "hardware", "yes")
    assert row["sensitivity"] == 1
    assert row["sensitivity_low"] == pytest.approx(row_of(single, "hardware", "yes")["sensitivity_low"])
    assert row["sensitivity_low"] < 0.6
    assert row["auroc_low"] < 1


def test_a_stratum_with_few_images_of_a_class_is_marked(folds, images, tmp_path):
    rows = score_strata("A", [folds], images)
    assert {row["stratum"] for row in rows if row["low_count"]} == {"yes"}
    write_strata(tmp_path, rows, "\nA note.\n")
    table = pd.read_csv(tmp_path / "strata.csv")
    assert table["low_count"].tolist() == [row["low_count"] for row in rows]
    assert table["auroc"].tolist() == pytest.approx([row["auroc"] for row in rows])
    text = (tmp_path / "strata.md").read_text()
    marked = [line for line in text.splitlines() if "‡" in line and line.startswith("|")]
    assert [line.split("|")[6].strip() for line in marked] == ["34 (4) ‡"]
    assert "‡ Fewer than 10 images" in text
    assert text.endswith("\nA note.\n")
    write_strata(tmp_path, [row for row in rows if not row["low_count"]])
    assert "‡" not in (tmp_path / "strata.md").read_text()


def test_the_page_groups_recipes_by_stratum(folds, images, tmp_path):
    rows = [row for name in ("B", "A") for row in score_strata(name, [folds], images)]
    write_strata(tmp_path, rows)
    assert pd.read_csv(tmp_path / "strata.csv")["recipe"].tolist() == ["B"] * 7 + ["A"] * 7
    lines = (tmp_path / "strata.md").read_text().splitlines()[2:16]
    cells = [[cell.strip() for cell in line.split("|")[1:4]] for line in lines]
    strata_in_order = [(row["attribute"], row["stratum"]) for row in rows[:7]]
    assert cells == [[*key, name] for key in strata_in_order for name in ("B", "A")]
    value = row_of(rows[:7], "body part", "hand")["auroc"]
    assert f"{value:.3f} [" in lines[2]


def test_a_score_that_is_undefined_is_empty(folds, images):
    labels = pd.concat([record.tables["test"] for record in folds]).set_index("image_id")["label"]
    images["hardware"] = images["image_id"].map(labels)
    row = row_of(score_strata("A", [folds, folds], images), "hardware", "yes")
    assert (row["n"], row["positives"], row["majority_rate"]) == (45, 45, 1)
    assert np.isnan([row[name + end] for name in ("auroc", "average_precision", "specificity") for end in ENDS]).all()
    assert row["accuracy"] == row["sensitivity"] > 0


def test_attributes_without_their_columns_are_omitted(folds, images):
    rows = score_strata("A", [folds], images[["image_id", "hardware", "hand"]])
    assert [row["attribute"] for row in rows] == ["all", "hardware", "hardware"]
    assert score_strata("A", [folds], images[["image_id", "width"]]) == []
    assert score_strata("A", [folds], None) == []


def test_images_without_properties_are_in_no_stratum(folds, images):
    known = images[images["hardware"] == 0]
    rows = score_strata("A", [folds], known)
    assert [(row["stratum"], row["n"]) for row in rows if row["attribute"] in ("all", "hardware")] == [
        ("all", 180), ("no", 146),
    ]  # fmt: skip


def test_means_of_equal_predictions_have_their_intervals(folds):
    table = pool(folds, "test").table
    weights = bootstrap_weights(table["group"])
    values = metrics.resampled(table, 0.5, weights)
    assert metrics.intervals_of(values, table, 0.5) == metrics.intervals(table, 0.5, weights)
