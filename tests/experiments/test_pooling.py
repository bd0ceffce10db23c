from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from fractatlas.errors import InputError
from fractatlas.evaluation import metrics, paired_comparison
from fractatlas.evaluation.operating_point import calibrate
from fractatlas.experiments.pooling import ensemble, pool
from fractatlas.experiments.result_tables import difference_rows, recipe_rows, run_rows
from tests.experiments.conftest import POINTS, made_up_record

FIXED = {"threshold._target_": "fractatlas.evaluation.operating_point.fixed", "threshold.value": 0.5}


def test_the_same_records_are_pooled_once(folds):
    assert pool(folds, "test") is pool([*folds], "test")
    assert pool(folds, "test") is not pool(folds, "val")
    assert pool(folds, "test") is not pool([*folds[:2], made_up_record(1, 2)], "test")


def test_each_image_is_predicted_once_and_decided_by_the_threshold_of_its_fold(folds):
    table = pool(folds, "test").table
    assert len(table) == table["image_id"].nunique() == 180
    decided = [record.tables["test"].assign(positive=lambda rows, record=record: rows["probability"]
               >= record.point["threshold"]) for record in folds]  # fmt: skip
    expected = pd.concat(decided).set_index("image_id")["positive"]
    assert (metrics.classify(table, 0.99).to_numpy() == expected[table["image_id"]].to_numpy()).all()
    assert metrics.evaluate(table)["accuracy"]["value"] == pytest.approx(
        np.mean([(rows["positive"] == rows["label"]).mean() for rows in decided])
    )


def test_pooled_scores_are_those_of_calibrated_probabilities(folds):
    row = next(row for row in recipe_rows("A", [folds]) if row["subset"] == "test")
    tables = [record.tables["test"] for record in folds]
    labels = np.concatenate([table["label"] for table in tables])
    calibrated = np.concatenate([
        calibrate(table["probability"], temperature) for table, (_, temperature) in zip(tables, POINTS, strict=True)
    ])  # fmt: skip
    assert row["auroc"] == pytest.approx(roc_auc_score(labels, calibrated))
    assert row["auroc"] != pytest.approx(roc_auc_score(labels, np.concatenate([one["probability"] for one in tables])))
    assert (row["n"], row["split"]) == (180, "3 folds")


def test_all_seeds_of_an_image_are_resampled_together(folds):
    (_, one), (_, two) = (
        [row for row in recipe_rows("A", [folds] * seeds) if "ensemble" not in row["recipe"]] for seeds in (1, 2)
    )
    for end in ("", "_low", "_high"):
        assert two[f"average_precision{end}"] == pytest.approx(one[f"average_precision{end}"])


def test_a_pair_of_pooled_recipes_is_compared_by_the_decisions_of_the_folds(folds):
    first, second = (pool([made_up_record(seed, fold) for fold in range(3)], "test").table for seed in (1, 2))
    rows = paired_comparison.compare(first, second, (0.99, 0.99)).set_index("metric")
    assert rows.loc["accuracy", "first"] == metrics.evaluate(first)["accuracy"]["value"]
    assert rows.loc["accuracy", "second"] == metrics.evaluate(second)["accuracy"]["value"]


def test_ensemble_averages_calibrated_probabilities_and_chooses_thresholds_again():
    seeds = [[made_up_record(seed, fold) for fold in range(3)] for seed in (1, 2)]
    found = ensemble(seeds)
    table = found["test"].table.set_index("image_id")
    for fold, (_, temperature) in enumerate(POINTS):
        rows = [folds[fold].tables["test"].set_index("image_id") for folds in seeds]
        mean = np.mean([calibrate(one["probability"], temperature) for one in rows], axis=0)
        assert table.loc[rows[0].index, "probability"].to_numpy() == pytest.approx(mean)
        validation = found["val"].table[found["val"].table["image_id"].str.startswith(f"{(fold + 1) % 3}_")]
        threshold = table.loc[rows[0].index, "fold_threshold"].unique().item()
        assert validation["fold_threshold"].unique().item() == threshold
        best = max(
            metrics.decision_metrics(validation["label"].to_numpy(), validation["probability"] >= at, np.ones((1, 60)))[
                "balanced_accuracy"
            ][0]
            for at in validation["probability"]
        )
        chosen = metrics.decision_metrics(
            validation["label"].to_numpy(), validation["probability"] >= threshold, np.ones((1, 60))
        )
        assert chosen["balanced_accuracy"][0] == pytest.approx(best)


def test_a_fixed_threshold_of_one_half_is_the_same_in_all_folds():
    seeds = [[made_up_record(seed, fold, FIXED) for fold in range(3)] for seed in (1, 2)]
    assert ensemble(seeds)["test"].table["fold_threshold"].unique().tolist() == [0.5]


def test_a_single_run_is_not_calibrated():
    record = made_up_record(1, None)
    pooled = pool([record], "test")
    assert pooled.table["probability"].tolist() == record.tables["test"]["probability"].tolist()
    assert (pooled.threshold, "fold_threshold" in pooled.table) == (POINTS[0][0], False)


def test_an_image_in_two_folds_is_refused(folds):
    with pytest.raises(InputError, match="0_00 is in the test subset of two folds; delete the records"):
        pool([folds[0], *folds], "test")


def test_seeds_with_other_images_are_refused(folds):
    other = [made_up_record(2, fold) for fold in range(3)]
    other[1].predictions = other[1].predictions.iloc[:-1]
    with pytest.raises(InputError, match="A: the seeds have other test images"):
        recipe_rows("A", [folds, other])


def test_an_ensemble_has_the_images_that_all_seeds_have_and_needs_the_same_labels_and_folds(folds):
    other = [made_up_record(2, fold) for fold in range(3)]
    removed = other[1].predictions["image_id"].iloc[-1]
    other[1].predictions = other[1].predictions.iloc[:-1]
    images = ensemble([folds, other])["test"].table["image_id"]
    assert set(pool(folds, "test").table["image_id"]) - set(images) == {removed}
    relabelled = [made_up_record(2, fold) for fold in range(3)]
    relabelled[0].predictions["label"] = 1 - relabelled[0].predictions["label"]
    with pytest.raises(InputError, match="A: .* has different labels; use recipes of one data set"):
        ensemble([folds, relabelled])
    with pytest.raises(InputError, match="A and B: .* has different labels; use recipes of one data set"):
        difference_rows(("A", [folds]), ("B", [relabelled]))
    moved = [made_up_record(2, fold) for fold in (1, 0, 2)]
    moved = [replace(record, facts=record.facts | {"fold": fold}) for fold, record in enumerate(moved)]
    with pytest.raises(InputError, match="A: .* is in different folds or subsets; an ensemble needs one split"):
        ensemble([folds, moved])
    elsewhere = made_up_record(3, 0)
    elsewhere.predictions = elsewhere.predictions.assign(image_id="x" + elsewhere.predictions["image_id"])
    with pytest.raises(InputError, match="A: an ensemble needs val images that all seeds have; use the same split"):
        ensemble([folds[:1], [elsewhere]])


def test_rows_of_runs_have_the_scores_of_each_fold_and_of_all(folds):
    rows = [row for row in run_rows("A", [folds]) if row["subset"] == "test"]
    assert [row["fold"] for row in rows] == [0, 1, 2, None]
    for row, record in zip(rows, folds, strict=False):
        table = record.tables["test"]
        assert row["auroc"] == pytest.approx(roc_auc_score(table["label"], table["probability"]))
        assert (row["threshold"], row["temperature"]) == (
            pytest.approx(calibrate(np.array([record.point["threshold"]]), record.point["temperature"])[0]),
            record.point["temperature"],
        )
    assert (rows[-1]["n"], rows[-1]["temperature"]) == (180, None)
