from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import average_precision_score, roc_auc_score
from threadpoolctl import threadpool_info, threadpool_limits

from fractatlas.data.sources.fracatlas import BODY_PARTS, VIEWS
from fractatlas.evaluation import metrics, paired_comparison
from fractatlas.evaluation.strata import shortcut_model
from fractatlas.experiments import control_tables
from fractatlas.experiments.control_tables import CONTROLS, compare_with_controls, fit_controls, write_controls
from fractatlas.experiments.pooling import pool
from fractatlas.experiments.run_records import RunRecord
from tests.experiments.conftest import made_up_record

SCORES = ("auroc", "average_precision")


def numbered(record: RunRecord, omit: str = "") -> RunRecord:
    """Return a record without the images of ``omit``; ids have one number, and their order is not that of folds."""
    names = record.predictions["image_id"].str.replace(r"(\d)_(\d+)", r"IMG\2\1.jp2", regex=True)
    predictions = record.predictions.assign(image_id=names)
    return replace(record, predictions=predictions[~predictions["image_id"].isin(omit.split())])


@pytest.fixture
def folds() -> list[RunRecord]:
    return [numbered(made_up_record(1, fold)) for fold in range(3)]


@pytest.fixture
def images(folds) -> pd.DataFrame:
    """Properties of the images, in random order: the mode is known from the label, the size is random."""
    table = pd.concat([record.tables["test"] for record in folds], ignore_index=True)
    random = np.random.default_rng(3)
    known = table[["image_id"]].assign(**dict.fromkeys((*BODY_PARTS, "multiscan", *VIEWS), 0))
    known["width"], known["height"] = random.integers(100, 900, (2, len(table)))
    known["hand"], known["frontal"] = random.integers(0, 2, (2, len(table)))
    known["bytes"], known["junk"], known["orientation"] = 7, 0, 1
    known["mode"], known["hardware"] = np.where(table["label"] == 1, "RGB", "L"), table["label"]
    return known.sample(frac=1, random_state=0)


class Remembering(ClassifierMixin, BaseEstimator):
    """A classifier that stores the images of each call."""

    calls: list = []  # noqa: RUF012

    def fit(self, inputs: pd.DataFrame, labels: pd.Series):
        self.classes_, self.fitted_ = np.unique(labels), {*inputs["number"]}
        return self

    def predict(self, inputs: pd.DataFrame) -> np.ndarray:
        raise NotImplementedError

    def predict_proba(self, inputs: pd.DataFrame) -> np.ndarray:
        threads = {one["num_threads"] for one in threadpool_info() if one["user_api"] == "openmp"}
        self.calls.append((self.fitted_, {*inputs["number"]}, threads))
        return np.full((len(inputs), 2), 0.5)


def test_a_control_that_knows_the_label_has_an_auroc_of_one(folds, images):
    rows = {row["control"]: row for row in fit_controls(folds, images).rows}
    assert [*rows] == [*CONTROLS]
    for name in ("hardware", "file", "file and record"):
        assert (rows[name]["auroc"], rows[name]["average_precision"]) == (1, 1)
        assert rows[name]["auroc_low"] < 1
    assert (rows["file"]["n"], rows["file"]["positives"], rows["file"]["folds"]) == (180, 45, "3 of 3")


def test_a_control_that_knows_nothing_has_an_auroc_near_one_half(folds, images):
    rows = {row["control"]: row for row in fit_controls(folds, images).rows}
    for name in ("size", "record"):
        assert rows[name]["auroc"] == pytest.approx(0.5, abs=0.1)
        assert rows[name]["auroc_low"] < 0.5 < rows[name]["auroc_high"]
        assert rows[name]["average_precision"] < 0.4


def test_models_see_all_folds_but_the_one_that_they_predict(folds, monkeypatch):
    monkeypatch.setattr(control_tables, "shortcut_model", lambda text: Remembering())
    monkeypatch.setattr(Remembering, "calls", [])
    with threadpool_limits(2, "openmp"):
        fit_controls(folds, None)
    numbers = [{*record.tables["test"]["image_id"].str[3:6].astype(float)} for record in folds]
    assert [predicted for _, predicted, _ in Remembering.calls] == numbers
    assert [fitted for fitted, *_ in Remembering.calls] == [{*set().union(*numbers) - one} for one in numbers]
    assert [threads for *_, threads in Remembering.calls] == [{1}] * 3


def test_predictions_are_those_of_the_shortcut_model_of_the_other_folds(folds, images):
    images["width"] = images["hardware"] * 100 + images["width"] % 150  # correlates with the label
    controls = fit_controls(folds, images)
    table = controls.tables["size"]
    assert table["image_id"].is_monotonic_increasing
    inputs = table.merge(images, on="image_id")[["width", "height"]]
    for record in folds:
        own = (table["fold"] == record.fold).to_numpy()
        assert {*table.loc[own, "image_id"]} == {*record.tables["test"]["image_id"]}
        expected = shortcut_model([]).fit(inputs[~own], table.loc[~own, "label"]).predict_proba(inputs[own])[:, 1]
        assert table.loc[own, "probability"].tolist() == expected.tolist()
    row = next(row for row in controls.rows if row["control"] == "size")
    scores = metrics.evaluate(table)
    assert row["auroc"] == pytest.approx(roc_auc_score(table["label"], table["probability"]))
    for name in SCORES:
        assert [row[name + end] for end in ("", "_low", "_high")] == [*scores[name].values()]


def test_only_controls_whose_columns_are_known_are_fitted(folds, images):
    assert [*fit_controls(folds, None).tables] == ["id"]
    assert [*fit_controls(folds, images[["image_id", "width", "height"]]).tables] == ["id", "size"]
    other = [made_up_record(1, fold) for fold in range(3)]  # ids with two numbers
    assert fit_controls(other, None).rows == []
    partly = [replace(folds[0], predictions=other[0].predictions), *folds[1:]]
    assert fit_controls(partly, None).rows == []


def test_an_image_without_properties_is_predicted(folds, images):
    control = fit_controls(folds, images.iloc[3:]).tables["file and record"]
    assert len(control) == 180
    assert control["probability"].between(0, 1).all()


def test_properties_that_are_text_are_used(folds, images):
    images["hardware"] = images["hardware"].map({0: "none", 1: "plate"})
    (row,) = [row for row in fit_controls(folds, images).rows if row["control"] == "hardware"]
    assert row["auroc"] == 1


def test_without_both_classes_in_the_other_folds_there_are_no_controls(folds, images):
    others = [replace(record, predictions=record.predictions.assign(label=0)) for record in folds[1:]]
    assert fit_controls([folds[0], *others], images).rows == []


def test_recipes_are_compared_as_the_mean_over_seeds_on_common_images(folds, images):
    controls = fit_controls(folds, images).tables
    omitted = "IMG050.jp2 IMG411.jp2"
    seeds = [[numbered(made_up_record(seed, fold), omitted) for fold in range(3)] for seed in (1, 2)]
    rows = {row["control"]: row for row in compare_with_controls("A", seeds, controls)}
    assert [*rows] == [*CONTROLS]
    tables = [pool(one, "test").table for one in seeds]
    common = tables[0]["image_id"]
    assert len(common) == 178
    for name, row in rows.items():
        control = controls[name].set_index("image_id").loc[common]
        for score, compute in (("auroc", roc_auc_score), ("average_precision", average_precision_score)):
            mean = np.mean([compute(table["label"], table["probability"]) for table in tables])
            assert row[f"{score}_difference"] == pytest.approx(
                mean - compute(control["label"], control["probability"])
            ), (name, score)
        assert (row["recipe"], row["seeds"], row["folds"], row["n"]) == ("A", 2, "3 of 3", 178)
        assert row["positives"] == control["label"].sum()
    assert rows["size"]["auroc_difference_low"] > 0 > rows["hardware"]["auroc_difference_high"]


def test_differences_are_paired(folds, images):
    controls = fit_controls(folds, images).tables
    (row,) = [row for row in compare_with_controls("A", [folds], controls) if row["control"] == "size"]
    expected = paired_comparison.compare(controls["size"], pool(folds, "test").table).set_index("metric")
    for score in SCORES:
        found = [row[f"{score}_difference{end}"] for end in ("", "_low", "_high")]
        assert found == pytest.approx(expected.loc[score, ["difference", "low", "high"]].tolist())
    assert np.isnan(compare_with_controls("A", [folds], {"A": pool(folds, "test").table})[0]["auroc_difference_low"])


def test_recipes_without_common_images_are_not_compared(folds, images):
    controls = fit_controls(folds, images[["image_id", "width", "height"]]).tables
    assert compare_with_controls("A", [[made_up_record(1, fold) for fold in range(3)]], controls) == []


def test_table_and_page_have_the_scores_and_the_differences(folds, images, tmp_path):
    controls = fit_controls(folds, images)
    compared = compare_with_controls("A", [folds], controls.tables)
    write_controls(tmp_path, [*controls.rows, *compared], "\nA note.\n")
    table = pd.read_csv(tmp_path / "controls.csv")
    assert table["control"].tolist() == [*CONTROLS] * 2
    assert table["recipe"].fillna("").tolist() == [""] * 6 + ["A"] * 6
    assert table["seeds"].fillna(0).tolist() == [0] * 6 + [1] * 6
    assert table["auroc"].dropna().tolist() == pytest.approx([row["auroc"] for row in controls.rows])
    assert table["auroc_difference"].dropna().tolist() == pytest.approx([row["auroc_difference"] for row in compared])
    text = (tmp_path / "controls.md").read_text()
    assert f"| size            | 3 of 3  | 180 (45)        | {table['auroc'][1]:.3f} [" in text
    assert (
        f"| A        | size            | 1       | 3 of 3  | 180 (45)        | {table['auroc_difference'][7]:+.3f} ["
        in text
    )
    assert text.endswith("\nA note.\n")


def test_a_constant_control_is_omitted(folds, images):
    assert "hardware" not in fit_controls(folds, images.assign(hardware=0)).tables
