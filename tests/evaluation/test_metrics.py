import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn import metrics as reference
from torchmetrics.classification import BinaryCalibrationError, BinarySensitivityAtSpecificity

from fractatlas.evaluation.bootstrap import bootstrap_weights
from fractatlas.evaluation.metrics import (
    classify,
    decision_metrics,
    evaluate,
    ranking_metrics,
    resampled,
    weights_above,
)


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
    for name, value in (("balanced_accuracy", "0.5"), ("f1", "0"), ("mcc", "0"), ("auroc", "0.5")):
        assert report[name]["low"] is report[name]["high"] is None
        assert f"the value is {value} " in report[name]["reason"]
    groups = (table["label"] == 1).sum()
    assert report["sensitivity"]["high"] == pytest.approx(1 - 0.025 ** (1 / groups))


def test_perfect_predictions_have_intervals_with_a_width_or_the_reason(table):
    report = evaluate(table.assign(probability=table["label"].astype(float)))
    for name in ("accuracy", "sensitivity", "auroc", "balanced_accuracy", "f1", "sensitivity_at_90_specificity"):
        assert report[name]["value"] == report[name]["high"] == 1
        assert 0.9 < report[name]["low"] < 0.999
    for name in ("average_precision", "mcc", "brier"):
        assert report[name]["low"] is None
        assert report[name]["reason"] == "the value is the same in all bootstrap samples"


def test_no_interval_has_equal_ends(table):
    one = table.assign(probability=np.where(table.index == 0, 0.9, 0.1))
    few = pd.concat([table[table["label"] == 1].head(2), table[table["label"] == 0].head(30)])
    for rows in (one, few, table.head(1), table.assign(group=0), table.assign(probability=0.5)):
        scores = [score for score in evaluate(rows).values() if isinstance(score, dict)]
        assert scores
        for score in scores:
            assert score.get("reason") if score["low"] is None else score["low"] < score["high"]


def test_metrics_that_need_many_images_of_each_class_have_no_interval_with_few(table):
    few = pd.concat([table[table["label"] == 1].head(3), table[table["label"] == 0].head(30)])
    report = evaluate(few)
    assert report["average_precision"]["reason"] == "3 images with a fracture, fewer than 20"
    assert report["auroc"]["high"] - report["auroc"]["low"] > 0.3


def test_the_calibration_error_has_no_interval(table):
    assert "bias" in evaluate(table)["calibration_error"]["reason"]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("fractured", "others", "size", "separation", "correlation"),
    [(3, 20, 1, 2.0, 0), (10, 50, 2, 2.5, 0.8), (20, 60, 2, 2.5, 0.8), (20, 80, 3, 2.0, 0.9)],
)
def test_intervals_cover_the_true_value(fractured, others, size, separation, correlation):
    """Simulate groups of images with a common component of the score; takes ten seconds each on an idle core."""
    generator, cut = np.random.default_rng(0), separation / 2

    def draw(positives: int, negatives: int, size: int) -> pd.DataFrame:
        group = np.repeat(np.arange(positives + negatives), size)
        label = (group < positives).astype(int)
        shared, own = generator.normal(size=positives + negatives)[group], generator.normal(size=len(group))
        score = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own + separation * label - cut
        return pd.DataFrame({"label": label, "probability": stats.norm.cdf(score), "group": group})

    many = 100_000 // (fractured + others)
    population = resampled(large := draw(fractured * many, others * many, 1), 0.5, np.ones((1, len(large))))
    covered: dict[str, list[bool]] = {}
    for _ in range(1000):
        sample = draw(fractured, others, size)
        for name, score in evaluate(sample, 0.5, bootstrap_weights(sample["group"], 400)).items():
            if isinstance(score, dict) and score["low"] is not None:
                true = population[name][0]
                covered.setdefault(name, []).append(score["low"] - 1e-9 <= true <= score["high"] + 1e-9)
    shares = {name: np.mean(values) for name, values in covered.items()}
    exact = ("accuracy", "sensitivity", "specificity", "ppv", "npv", "f1", "balanced_accuracy")
    assert min(shares[name] for name in exact) > 0.945
    assert min(shares.values()) > 0.9  # the bootstrap is approximate


@pytest.mark.parametrize("label", [0, 1])
def test_metrics_that_need_two_classes_are_none_for_one_class(table, label):
    report = evaluate(table[table["label"] == label])
    assert report["auroc"] is None
    assert (report["sensitivity"] is None) == (label == 0)
    assert report["accuracy"] is not None


def test_decisions_use_the_threshold_of_each_row_if_there_is_one(table):
    thresholds = np.where(np.arange(600) % 2, 0.2, 0.7)
    folds = table.assign(fold_threshold=thresholds)
    expected = table["probability"] >= thresholds
    assert (classify(folds, 0.99) == expected).all()
    scores = evaluate(folds, 0.99)
    assert scores["accuracy"]["value"] == reference.accuracy_score(table["label"], expected)
    assert scores["sensitivity"]["value"] == reference.recall_score(table["label"], expected)
    same = evaluate(table.assign(fold_threshold=0.3), 0.99)
    assert {name: same[name] for name in ("accuracy", "f1", "ppv")} == {
        name: evaluate(table, 0.3)[name] for name in ("accuracy", "f1", "ppv")
    }


def test_weights_above_each_score_are_sums_over_ties_and_repeated_columns():
    random = np.random.default_rng(0)
    labels, scores, columns = (random.integers(0, high, 50) for high in (2, 12, 20))
    scores[labels == 1] += scores[labels == 1] % 2  # some scores of images without a fracture only
    weights = random.integers(0, 4, (5, 20)).astype(float)
    tp, fp, is_reached = weights_above(labels, scores, weights, columns)
    distinct = np.unique(scores)[::-1]
    for number, score in enumerate(distinct):
        for found, label in ((tp, 1), (fp, 0)):
            counted = columns[(scores >= score) & (labels == label)]
            assert found[:, number].tolist() == weights[:, counted].sum(axis=1).tolist()
        assert is_reached[number] == ((scores == score) & (labels == 1)).any()
    assert 0 < is_reached.sum() < len(distinct) < 50
