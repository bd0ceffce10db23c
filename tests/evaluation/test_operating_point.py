from functools import partial

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, recall_score

from fractatlas.evaluation.operating_point import (
    DEFAULT_OPERATING_POINT,
    calibrate,
    choose_operating_point,
    fixed,
    highest_accuracy,
    target_sensitivity,
    temperature,
    youden,
)


@pytest.fixture
def validation():
    generator = np.random.default_rng(0)
    label = (generator.random(500) < 0.2).astype(int)
    logits = generator.normal(3.0 * label - 3, 1.5)
    return pd.DataFrame({"label": label, "probability": 1 / (1 + np.exp(-logits))})


def test_youdens_threshold_has_the_highest_balanced_accuracy(validation):
    labels, probabilities = validation["label"].to_numpy(), validation["probability"].to_numpy()
    chosen = balanced_accuracy_score(labels, probabilities >= youden(labels, probabilities))
    others = [balanced_accuracy_score(labels, probabilities >= score) for score in probabilities]
    assert chosen == pytest.approx(max(others))


def test_the_accuracy_is_highest_at_its_threshold(validation):
    labels, probabilities = validation["label"].to_numpy(), validation["probability"].to_numpy()
    chosen = accuracy_score(labels, probabilities >= highest_accuracy(labels, probabilities))
    assert chosen == pytest.approx(max(accuracy_score(labels, probabilities >= score) for score in probabilities))
    assert chosen > max(1 - labels.mean(), accuracy_score(labels, probabilities >= youden(labels, probabilities)))


def test_the_highest_accuracy_is_not_that_of_always_answering_not_fractured():
    labels, probabilities = np.array([1, 0, 0, 0, 0]), np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    assert (probabilities >= highest_accuracy(labels, probabilities)).tolist() == [False] * 4 + [True]


@pytest.mark.parametrize("target", [0.5, 0.9, 1.0])
def test_the_target_sensitivity_is_reached_by_no_higher_threshold(validation, target):
    labels, probabilities = validation["label"].to_numpy(), validation["probability"].to_numpy()
    threshold = target_sensitivity(labels, probabilities, sensitivity=target)
    assert recall_score(labels, probabilities >= threshold) >= target
    higher = probabilities[probabilities >= threshold].min() + 1e-12
    assert recall_score(labels, probabilities >= higher) < target


def test_the_threshold_is_not_equal_to_a_score(validation):
    labels, probabilities = validation["label"].to_numpy(), validation["probability"].to_numpy()
    assert np.abs(probabilities - youden(labels, probabilities)).min() > 1e-9


def test_the_temperature_equals_a_logistic_regression_without_intercept(validation):
    labels, overconfident = (
        validation["label"].to_numpy(),
        calibrate(validation["probability"], 1 / 3),
    )
    logits = np.log(overconfident / (1 - overconfident))[:, None]
    slope = LogisticRegression(fit_intercept=False, C=1e9, tol=1e-9).fit(logits, labels).coef_[0, 0]
    assert temperature(labels, overconfident) == pytest.approx(1 / slope, rel=1e-3)


def test_calibration_reduces_the_log_loss_and_keeps_the_order(validation):
    labels, overconfident = (
        validation["label"].to_numpy(),
        calibrate(validation["probability"], 1 / 3),
    )
    calibrated = calibrate(overconfident, temperature(labels, overconfident))
    assert log_loss(labels, calibrated) < log_loss(labels, overconfident)
    assert (np.argsort(calibrated) == np.argsort(overconfident)).all()


def test_probabilities_of_0_and_1_are_calibrated_to_finite_ones():
    labels, extreme = np.array([0, 0, 1, 1]), np.array([0.0, 1.0, 1.0, 0.0])
    assert np.isfinite(calibrate(extreme, temperature(labels, extreme))).all()


def test_the_operating_point_contains_plain_values(validation):
    point = choose_operating_point(validation, partial(fixed, value=0.3), "fixed")
    assert point == {"rule": "fixed", "threshold": 0.3, "temperature": pytest.approx(1.5**2 / 3, rel=0.3)}
    assert all(type(value) in (str, float) for value in point.values())


def test_without_two_classes_the_default_operating_point_is_used(validation):
    negatives = validation[validation["label"] == 0]
    assert choose_operating_point(negatives, youden, "youden") == DEFAULT_OPERATING_POINT
