import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from fractatlas.evaluation.exam_scores import cohens_kappa, exam_table, score_exams


@pytest.fixture
def table() -> pd.DataFrame:
    """Predictions of 60 exams of one to three images, and of two images without an exam."""
    generator = np.random.default_rng(0)
    exams = np.repeat([f"e{number}" for number in range(60)], generator.integers(1, 4, 60))
    labels = np.array([int(name[1:]) % 3 == 0 for name in exams]).astype(int)
    probability = 1 / (1 + np.exp(-(generator.normal(size=len(exams)) + 2 * labels - 1)))
    images = pd.DataFrame({"given_exam": exams, "label": labels, "probability": probability, "group": exams})
    return pd.concat(
        [images, pd.DataFrame({"given_exam": ["", ""], "label": 1, "probability": 0.9, "group": ["x", "y"]})]
    )


def test_an_exam_has_the_mean_probability_and_is_fractured_if_an_image_is(table):
    rows = exam_table(table).set_index("exam")
    images = table[table["given_exam"] == "e3"]
    assert rows.at["e3", "probability"] == pytest.approx(images["probability"].mean())
    assert (rows.at["e3", "n"], rows.at["e3", "label"]) == (len(images), 1)
    mixed = table.assign(label=np.where(np.arange(len(table)) == 0, 1, 0), given_exam="one")
    assert exam_table(mixed)["label"].tolist() == [1]


def test_scores_of_exams_are_those_of_scikit_learn_with_intervals(table):
    scores, rows = score_exams(table, 0.5), exam_table(table)
    decisions = (rows["probability"] >= 0.5).astype(int)
    assert (scores["n"], scores["positives"], scores["images"]) == (60, 20, len(table) - 2)
    assert scores["kappa"]["value"] == pytest.approx(cohen_kappa_score(rows["label"], decisions))
    assert scores["auroc"]["value"] == pytest.approx(roc_auc_score(rows["label"], rows["probability"]))
    assert scores["sensitivity"]["value"] == pytest.approx(decisions[rows["label"] == 1].mean())
    for name in ("kappa", "sensitivity", "specificity", "accuracy", "auroc"):
        assert scores[name]["low"] < scores[name]["value"] < scores[name]["high"], name


def test_kappa_is_undefined_where_labels_and_decisions_are_one_class():
    ones = np.ones(4, dtype=int)
    assert np.isnan(cohens_kappa(ones, ones, np.ones((1, 4))))[0]
    assert cohens_kappa(np.array([0, 1]), np.array([0, 1]), np.ones((1, 2)))[0] == 1


def test_without_given_exams_there_are_no_scores(table):
    assert score_exams(table.drop(columns="given_exam"), 0.5) is None
    assert score_exams(table.assign(given_exam=""), 0.5) is None
