"""Metrics of a binary classifier, each with a bootstrap interval.

Every metric is a function of labels, probabilities and *weights*: a row of weights counts how often each image was
drawn, so that a row of ones gives the value itself and 2,000 rows at once give its bootstrap.
"""

from typing import Any

import numpy as np
import pandas as pd

from fractatlas.evaluation.bootstrap import draws, interval

BINS = 15  # of the calibration error
SPECIFICITY = 0.9  # at which ``sensitivity_at_90_specificity`` is read


def evaluate(table: pd.DataFrame, threshold: float = 0.5, weights: np.ndarray | None = None) -> dict[str, Any]:
    """Score predictions.

    Args:
        table: one row per image with ``label`` (0 or 1), ``probability`` (of a fracture) and ``group``; images of one
            group are drawn together. ``probability_calibrated``, where it is there, is scored beside it.
        threshold: fractured from this probability on.
        weights: float64 (b, n), the first row of ones; ``None`` draws them.

    Returns:
        ``n, positives, majority_rate, threshold``, and for each metric ``value, low, high``: the value and its 95 %
        percentile interval over bootstrap samples of groups. A metric that the labels leave undefined is ``None``.
    """
    weights = draws(table["group"]) if weights is None else weights
    positives = int(table["label"].sum())
    return {
        "n": len(table),
        "positives": positives,
        "majority_rate": max(positives, len(table) - positives) / len(table),
        "threshold": threshold,
        **intervals(table, threshold, weights),
    }


def intervals(table: pd.DataFrame, threshold: float, weights: np.ndarray) -> dict[str, dict[str, float] | None]:
    """Every metric with its ``interval`` over the rows of ``weights`` (b, n)."""
    fractured, positive = table["label"] == 1, table["probability"] >= threshold
    shares_of = {"accuracy": slice(None), "sensitivity": fractured, "specificity": ~fractured,
                 "ppv": positive, "npv": ~positive}  # fmt: skip
    trials = {name: table.loc[rows, "group"].nunique() for name, rows in shares_of.items()}
    return {name: interval(values, trials.get(name)) for name, values in resampled(table, threshold, weights).items()}


def resampled(table: pd.DataFrame, threshold: float, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric under each row of ``weights`` (b, n): arrays (b,), NaN where it is undefined."""
    labels = table["label"].to_numpy()
    probabilities = table["probability"].to_numpy(dtype=np.float64)
    rows = {
        **at_threshold(labels, probabilities >= threshold, weights),
        **ranking(labels, probabilities, weights),
        **calibration(labels, probabilities, weights),
    }
    if "probability_calibrated" in table:
        again = calibration(labels, table["probability_calibrated"].to_numpy(dtype=np.float64), weights)
        rows |= {f"{name}_calibrated": values for name, values in again.items()}
    return rows


@np.errstate(divide="ignore", invalid="ignore")
def at_threshold(labels: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of a decision.

    Args:
        labels: 0 or 1, (n,).
        predicted: 0 or 1, (n,).
        weights: (b, n).

    Returns:
        Each metric, (b,); NaN where it is 0 / 0. F1 and MCC are NaN only where there is but one class; of a decision
        that is always the same they are 0, as is the convention.
    """
    fractured, positive = labels == 1, predicted.astype(bool)
    tp, fn = weights @ (fractured & positive), weights @ (fractured & ~positive)
    fp, tn = weights @ (~fractured & positive), weights @ (~fractured & ~positive)
    sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
    both = np.where((tp + fn > 0) & (tn + fp > 0), 1, np.nan)
    return {
        "accuracy": (tp + tn) / (tp + tn + fp + fn),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": tp / (tp + fp),
        "npv": tn / (tn + fn),
        "f1": both * np.nan_to_num(2 * tp / (2 * tp + fp + fn)),
        "mcc": both * np.nan_to_num((tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))),
    }


@np.errstate(divide="ignore", invalid="ignore")
def ranking(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of the order of the scores.

    ``auroc``: how often a fractured image scores above another, ties half (Hanley and McNeil, Radiology 143:29, 1982).
    ``average_precision``: precision at each score, weighted by the recall that it adds.
    ``sensitivity_at_90_specificity``: the highest sensitivity of a threshold that keeps 90 % specificity.

    Args:
        labels: 0 or 1, (n,).
        scores: (n,).
        weights: (b, n).

    Returns:
        Each metric, (b,); NaN where there is but one class.
    """
    positives, negatives = by_score(labels, scores, weights)
    found, false = np.cumsum(positives, axis=1), np.cumsum(negatives, axis=1)
    fractured, others = found[:, -1], false[:, -1]
    above = others[:, None] - false  # negatives below each score, since scores descend
    precision = found / np.maximum(found + false, 1)  # scores above the highest one drawn have neither
    allowed = false <= (1 - SPECIFICITY) * others[:, None] * (1 + 1e-9)
    return {
        "auroc": (positives * (above + negatives / 2)).sum(axis=1) / (fractured * others),
        "average_precision": (positives * precision).sum(axis=1) / np.where(others > 0, fractured, 0),
        "sensitivity_at_90_specificity": np.where(allowed, found, 0).max(axis=1) / np.where(others > 0, fractured, 0),
    }


@np.errstate(divide="ignore", invalid="ignore")
def calibration(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """How far the probabilities are to be believed.

    ``brier``: the mean squared distance from the label (Brier, Monthly Weather Review 78:1, 1950).
    ``calibration_error``: the mean distance between probability and share of fractures in ``BINS`` equal bins of the
    probability, weighted by their images (Guo et al., On Calibration of Modern Neural Networks, ICML 2017). It has an
    upward bias in small samples, and in bootstrap samples more so: its interval can lie above its value.

    Args:
        labels: 0 or 1, (n,).
        probabilities: (n,).
        weights: (b, n).

    Returns:
        Each, (b,).
    """
    total = weights.sum(axis=1)
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    gaps = np.zeros((len(labels), BINS))
    gaps[np.arange(len(labels)), bins] = probabilities - labels
    return {
        "brier": weights @ (probabilities - labels) ** 2 / total,
        "calibration_error": np.abs(weights @ gaps).sum(axis=1) / total,
    }


def by_score(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weight of positives and of negatives at each distinct score, descending: two (b, k)."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) < 0])
    ordered, labels = weights[:, order], labels[order]
    return tuple(np.add.reduceat(ordered * (labels == value), starts, axis=1) for value in (1, 0))
