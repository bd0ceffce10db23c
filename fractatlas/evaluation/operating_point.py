"""Choose the operating point on the validation subset: decision threshold and calibration temperature."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from fractatlas.evaluation.metrics import weights_above

Rule = Callable[[np.ndarray, np.ndarray], float]
# Without two classes in the validation subset.
DEFAULT_OPERATING_POINT: dict[str, Any] = {"rule": "default", "threshold": 0.5, "temperature": 1.0}
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
SEARCH_RANGE = f"the search range ({MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g})"
EPSILON = 1e-15  # probabilities are clipped to this distance from 0 and 1 before the logit


def fixed(labels: np.ndarray, probabilities: np.ndarray, *, value: float) -> float:
    """Return ``value``."""
    return value


def youden(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the threshold of maximal sensitivity + specificity - 1.

    Youden, Index for rating diagnostic tests, Cancer 3:32, 1950.
    """
    scores, sensitivity, specificity = _curve(labels, probabilities)
    return midpoint_below(scores, int(np.argmax(sensitivity + specificity)))


def highest_accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the threshold of maximal accuracy among those that classify at least one image as fractured.

    Of several, rounding errors decide which is returned.
    """
    scores, sensitivity, specificity = _curve(labels, probabilities)
    share = labels.mean()
    return midpoint_below(scores, int(np.argmax(share * sensitivity + (1 - share) * specificity)))


def target_sensitivity(labels: np.ndarray, probabilities: np.ndarray, *, sensitivity: float) -> float:
    """Return the highest threshold whose sensitivity is at least ``sensitivity``."""
    scores, reached, _ = _curve(labels, probabilities)
    return midpoint_below(scores, int(np.argmax(reached >= sensitivity - 1e-9)))


def choose_operating_point(validation: pd.DataFrame, rule: Rule, name: str) -> dict[str, Any]:
    """Choose threshold and temperature on the validation subset.

    Args:
        validation: ``label`` (0 or 1) and ``probability``.
        rule: maps labels (n,) and probabilities (n,) to a threshold on the probability.
        name: name of the rule.

    Returns:
        ``rule, threshold, temperature``; ``DEFAULT_OPERATING_POINT`` if all labels are equal.
    """
    labels, probabilities = validation["label"].to_numpy(), validation["probability"].to_numpy(dtype=np.float64)
    if len(set(labels)) < 2:
        return dict(DEFAULT_OPERATING_POINT)
    threshold = float(rule(labels, probabilities))
    return {"rule": name, "threshold": threshold, "temperature": temperature(labels, probabilities)}


def temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the number that minimises the cross-entropy when all logits are divided by it.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017.

    Args:
        labels: 0 or 1, (n,).
        probabilities: of a fracture, (n,).

    Returns:
        Between ``MIN_TEMPERATURE`` and ``MAX_TEMPERATURE``.
    """
    logits, signs = _logits(probabilities), 2 * labels - 1

    def cross_entropy(log_temperature: float) -> float:
        return float(np.logaddexp(0, -signs * logits / np.exp(log_temperature)).mean())

    bounds = (np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE))
    return float(np.exp(minimize_scalar(cross_entropy, bounds=bounds, method="bounded").x))


def is_at_limit(temperature: float) -> bool:
    """Return whether a temperature is a limit of ``SEARCH_RANGE``."""
    return any(math.isclose(temperature, limit, rel_tol=1e-3) for limit in (MIN_TEMPERATURE, MAX_TEMPERATURE))


def calibrate(probabilities: np.ndarray | pd.Series, temperature: float) -> np.ndarray:
    """Return the probabilities (n,) after their logits are divided by ``temperature``."""
    return expit(_logits(np.asarray(probabilities, dtype=np.float64)) / temperature)


def _logits(probabilities: np.ndarray) -> np.ndarray:
    return logit(np.clip(probabilities, EPSILON, 1 - EPSILON))


def _curve(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct scores, descending, with sensitivity and specificity at each as threshold: three (k,)."""
    weights = np.ones((1, len(labels)))
    (tp,), (fp,), _ = weights_above(labels, probabilities, weights)
    scores = np.unique(probabilities)[::-1]
    return scores, tp / tp[-1], 1 - fp / fp[-1]


def midpoint_below(scores: np.ndarray, index: int) -> float:
    """Return the midpoint between a score and the next lower one, so that rounding changes no decision."""
    lower = scores[index + 1] if index + 1 < len(scores) else 0.0
    return float((scores[index] + lower) / 2)
