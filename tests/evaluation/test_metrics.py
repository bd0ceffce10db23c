import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn import metrics as reference
from torchmetrics.classification import BinaryCalibrationError, BinarySensitivityAtSpecificity

from fractatlas.evaluation.bootstrap import bootstrap_weights
from fractatlas.evaluation.metrics import decision_metrics, evaluate, ranking_metrics


@pytest.fixture
def table():
    generator = np.random.default_rng(0)
    label = (generator.random(600) < 0.18).astype(int)
    # Rounded, so that there are ties.
    probability = np.round(1 / (1 + np.exp(-generator.normal(2.0 * label - 2, 1.0))), 2)
    return pd.DataFrame({"label": label, "probability": probability, "group": np.arange(600)})


def test_values_equal_those_of_scikit_learn_and_torchmetrics(table):
    truth, probability = table["label"], table["probability"]
    predicted = probability >= 0.5
    expected = {
        "accuracy": reference.accuracy_score(truth, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(truth, predicted),
        "sensitivity": reference.recall_score(truth, predicted),
        "specificity": reference.recall_score(truth, predicted, pos_label=0),
        "ppv": reference.precision_score(truth, predicted),
        "npv": reference.precision_score(truth, predicted, pos_label=0),
        "f1": reference.f1_score(truth, predicted),
        "mcc": reference.matthews_corrcoef(truth, predicted),
        "auroc": reference.roc_auc_score(truth, probability),
        "average_precision": reference.average_precision_score(truth, probability),
        "brier": reference.brier_score_loss(truth, probability),
    }
    label, score = torch.tensor(truth), torch.tensor(probability)
    expected |= {
        "calibration_error": BinaryCalibrationError(n_bins=15)(score, label).item(),
        "sensitivity_at_90_specificity": BinarySensitivityAtSpecificity(0.9)(score, label)[0].item(),
    }
    report = evaluate(table)
    assert {name: report[name]["value"] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert report["majority_rate"] == 1 - truth.mean()
    assert (report["n"], report["positives"]) == (600, truth.sum())


def test_resampled_values_equal_scikit_learns_with_sample_weights(table):
    weights = np.random.default_rng(1).multinomial(600, np.full(600, 1 / 600), size=5).astype(float)
    truth, scores = table["label"].to_numpy(), table["probability"].to_numpy()
    ranked = ranking_metrics(truth, scores, weights)
    for row, area, precision, mcc in zip(
        weights,
        ranked["auroc"],
        ranked["average_precision"],
        decision_metrics(truth, scores >= 0.5, weights)["mcc"],
        strict=True,
    ):
        assert area == pytest.approx(reference.roc_auc_score(truth, scores, sample_weight=row))
        assert precision == pytest.approx(reference.average_precision_score(truth, scores, sample_weight=row))
        assert mcc == pytest.approx(reference.matthews_corrcoef(truth, scores >= 0.5, sample_weight=row))


def test_intervals_equal_scipys(table):
    truth, scores = table["label"].to_numpy(), table["probability"].to_numpy()
    report = evaluate(table)
    for name, statistic in (("auroc", reference.roc_auc_score), ("brier", reference.brier_score_loss)):
        theirs = stats.bootstrap(
            (truth, scores), statistic, paired=True, vectorized=False, n_resamples=2000, method="percentile", rng=0
        ).confidence_interval
        width = theirs.high - theirs.low
        assert report[name]["low"] == pytest.approx(theirs.low, abs=0.1 * width)
        assert report[name]["high"] == pytest.approx(theirs.high, abs=0.1 * width)


def test_images_of_one_group_are_drawn_together(table):
    """Duplicates in one group do not narrow the interval."""
    twice = pd.concat([table, table], ignore_index=True)
    once, grouped = evaluate(table)["auroc"], evaluate(twice)["auroc"]
    apart = evaluate(twice.assign(group=np.arange(1200)))["auroc"]
    assert grouped["high"] - grouped["low"] == pytest.approx(once["high"] - once["low"], rel=0.1)
    assert apart["high"] - apart["low"] < 0.8 * (once["high"] - once["low"])


def test_equal_seeds_give_equal_intervals(table):
    def report(seed: int) -> dict:
        return evaluate(table, weights=bootstrap_weights(table["group"], seed=seed))

    assert report(1) == report(1) != report(2)


def test_constant_predictions_have_the_majority_rate_and_no_skill(table):
    report = evaluate(table.assign(probability=0.0))
    assert report["accuracy"]["value"] == report["majority_rate"] > 0.8
    assert report["sensitivity"]["value"] == report["f1"]["value"] == report["mcc"]["value"] == 0
    assert report["balanced_accuracy"]["value"] == report["auroc"]["value"] == 0.5
    assert report["ppv"] is None


@pytest.mark.parametrize("label", [0, 1])
def test_metrics_that_need_two_classes_are_none_for_one_class(table, label):
    report = evaluate(table[table["label"] == label])
    assert report["auroc"] is None
    assert (report["sensitivity"] is None) == (label == 0)
    assert report["accuracy"] is not None
