import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, log_loss, recall_score

from fractatlas.evaluation.operating_point import calibrate, fixed, settle, target_sensitivity, temperature, youden


@pytest.fixture
def validation():
    generator = np.random.default_rng(0)
    label = (generator.random(500) < 0.2).astype(int)
    logits = generator.normal(3.0 * label - 3, 1.5)
    return pd.DataFrame({"label": label, "probability": 1 / (1 + np.exp(-logits))})


def test_youdens_threshold_has_the_best_balanced_accuracy(validation):
    labels, probabilities = validation["label"].to_numpy(), validation["probability"].to_numpy()
    chosen = balanced_accuracy_score(labels, probabilities >= youden(labels, probabilities))
    others = [balanced_accuracy_score(labels, probabilities >= score) for score in probabilities]
    assert chosen == pytest.approx(max(others))


@pytest.mark.parametrize("target", [0.5, 0.9, 1.0])
def test_a_target_sensitivity_is_reached_and_no_higher_threshold_reaches_it(validation, target):
    labels, probabilities = validation["label"].to_numpy(), validation["probability"].to_numpy()
    threshold = target_sensitivity(labels, probabilities, sensitivity=target)
    assert recall_score(labels, probabilities >= threshold) >= target
    higher = probabilities[probabilities >= threshold].min() + 1e-12
    assert recall_score(labels, probabilities >= higher) < target


def test_a_threshold_does_not_lie_on_a_score(validation):
    labels, probabilities = validation["label"].to_numpy(), validation["probability"].to_numpy()
    assert np.abs(probabilities - youden(labels, probabilities)).min() > 1e-9


def test_the_temperature_is_that_of_a_logistic_regression_without_intercept(validation):
    """Overconfident by a factor of three."""
    labels, spoilt = validation["label"].to_numpy(), calibrate(validation["probability"], 1 / 3)
    logits = np.log(spoilt / (1 - spoilt))[:, None]
    slope = LogisticRegression(fit_intercept=False, C=1e9, tol=1e-9).fit(logits, labels).coef_[0, 0]
    assert temperature(labels, spoilt) == pytest.approx(1 / slope, rel=1e-3)


def test_calibration_mends_overconfidence_and_keeps_the_order(validation):
    labels, spoilt = validation["label"].to_numpy(), calibrate(validation["probability"], 1 / 3)
    mended = calibrate(spoilt, temperature(labels, spoilt))
    assert log_loss(labels, mended) < log_loss(labels, spoilt)
    assert (np.argsort(mended) == np.argsort(spoilt)).all()


def test_certain_probabilities_are_calibrated_to_finite_ones():
    labels, certain = np.array([0, 0, 1, 1]), np.array([0.0, 1.0, 1.0, 0.0])
    assert np.isfinite(calibrate(certain, temperature(labels, certain))).all()


def test_what_is_settled_is_plain(validation):
    point = settle(validation, lambda labels, probabilities: fixed(labels, probabilities, value=0.3), "fixed")
    assert point == {"rule": "fixed", "threshold": 0.3, "temperature": pytest.approx(1.5**2 / 3, rel=0.3)}
    assert all(type(value) in (str, float) for value in point.values())
