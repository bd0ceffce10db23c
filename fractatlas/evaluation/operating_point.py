"""What is settled on the validation part and then frozen: the threshold of the decision, and the temperature."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from fractatlas.evaluation.metrics import by_score

Rule = Callable[[np.ndarray, np.ndarray], float]
COLDEST, HOTTEST = 0.05, 20.0
UNSETTLED = {"rule": "unsettled", "threshold": 0.5, "temperature": 1.0}  # without a validation part
NEARLY = 1e-15  # how near to 0 and 1 a probability may come before its logit is taken


def fixed(labels: np.ndarray, probabilities: np.ndarray, *, value: float) -> float:
    """Take ``value``, whatever the validation part says."""
    return value


def youden(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Maximise sensitivity + specificity - 1 (Youden, Index for rating diagnostic tests, Cancer 3:32, 1950)."""
    scores, sensitivity, specificity = _curve(labels, probabilities)
    return _below(scores, int(np.argmax(sensitivity + specificity)))


def target_sensitivity(labels: np.ndarray, probabilities: np.ndarray, *, sensitivity: float) -> float:
    """Take the highest threshold that finds at least the share ``sensitivity`` of the fractures."""
    scores, reached, _ = _curve(labels, probabilities)
    return _below(scores, int(np.argmax(reached >= sensitivity - 1e-9)))


def settle(validation: pd.DataFrame, rule: Rule, name: str) -> dict[str, Any]:
    """Choose threshold and temperature on the validation part.

    Args:
        validation: ``label`` (0 or 1) and ``probability``; with one class alone, nothing can be settled.
        rule: labels and probabilities to a threshold on the raw probability.
        name: how the rule is called.

    Returns:
        ``rule, threshold, temperature``.
    """
    labels, probabilities = validation["label"].to_numpy(), validation["probability"].to_numpy(dtype=np.float64)
    if len(set(labels)) < 2:
        return dict(UNSETTLED)
    return {
        "rule": name,
        "threshold": float(rule(labels, probabilities)),
        "temperature": temperature(labels, probabilities),
    }


def temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Find the number that logits are divided by, so that their cross-entropy is least.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017. Between ``COLDEST`` and ``HOTTEST``.

    Args:
        labels: 0 or 1, (n,).
        probabilities: of a fracture, (n,).
    """
    logits, signs = _logits(probabilities), 2 * labels - 1

    def cross_entropy(log_temperature: float) -> float:
        return float(np.logaddexp(0, -signs * logits / np.exp(log_temperature)).mean())

    bounds = (np.log(COLDEST), np.log(HOTTEST))
    return float(np.exp(minimize_scalar(cross_entropy, bounds=bounds, method="bounded").x))


def calibrate(probabilities: np.ndarray | pd.Series, temperature: float) -> np.ndarray:
    """Give the probabilities whose logits are divided by ``temperature``; (n,)."""
    return expit(_logits(np.asarray(probabilities, dtype=np.float64)) / temperature)


def _logits(probabilities: np.ndarray) -> np.ndarray:
    return logit(np.clip(probabilities, NEARLY, 1 - NEARLY))


def _curve(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct scores, descending, with sensitivity and specificity from each on: three (k,)."""
    positives, negatives = (counts[0] for counts in by_score(labels, probabilities, np.ones((1, len(labels)))))
    scores = np.unique(probabilities)[::-1]
    return scores, np.cumsum(positives) / positives.sum(), 1 - np.cumsum(negatives) / negatives.sum()


def _below(scores: np.ndarray, index: int) -> float:
    """Half way to the next lower score, so that no rounding moves the image that the threshold rests on."""
    lower = scores[index + 1] if index + 1 < len(scores) else 0.0
    return float((scores[index] + lower) / 2)
