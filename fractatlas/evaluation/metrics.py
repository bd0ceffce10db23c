"""Metrics of a binary classifier, with bootstrap intervals.

Every metric is computed from labels, probabilities and *weights* (b, n): each row counts how often each image was
drawn. A row of ones gives the metric itself; 2,000 rows give its bootstrap distribution in one pass.
"""

from typing import Any

import numpy as np
import pandas as pd

from fractatlas.evaluation.bootstrap import bootstrap_weights, interval

BINS = 15  # of the calibration error
SPECIFICITY = 0.9  # of ``sensitivity_at_90_specificity``


def evaluate(table: pd.DataFrame, threshold: float = 0.5, weights: np.ndarray | None = None) -> dict[str, Any]:
    """Compute all metrics of a table of predictions.

    Args:
        table: one row per image with ``label`` (0 or 1), ``probability`` (of a fracture) and ``group``; images of one
            group are drawn together. If ``probability_calibrated`` is a column, its calibration metrics are added.
        threshold: the smallest probability that is classified as fractured.
        weights: float64 (b, n), from ``bootstrap_weights``; ``None`` draws them.

    Returns:
        ``n, positives, majority_rate, threshold``, and for each metric ``value, low, high``: the value and its 95 %
        interval. A metric that is undefined is ``None``.
    """
    weights = bootstrap_weights(table["group"]) if weights is None else weights
    positives = int(table["label"].sum())
    return {
        "n": len(table),
        "positives": positives,
        "majority_rate": max(positives, len(table) - positives) / len(table),
        "threshold": threshold,
        **intervals(table, threshold, weights),
    }


def intervals(table: pd.DataFrame, threshold: float, weights: np.ndarray) -> dict[str, dict[str, float] | None]:
    """Return every metric with its ``interval`` over the rows of ``weights`` (b, n)."""
    fractured, positive = table["label"] == 1, table["probability"] >= threshold
    denominators = {"accuracy": slice(None), "sensitivity": fractured, "specificity": ~fractured,
                    "ppv": positive, "npv": ~positive}  # fmt: skip
    trials = {name: table.loc[rows, "group"].nunique() for name, rows in denominators.items()}
    return {name: interval(values, trials.get(name)) for name, values in resampled(table, threshold, weights).items()}


def resampled(table: pd.DataFrame, threshold: float, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return every metric under each row of ``weights`` (b, n): float64 (b,), NaN if undefined."""
    labels = table["label"].to_numpy()
    probabilities = table["probability"].to_numpy(dtype=np.float64)
    rows = {
        **decision_metrics(labels, probabilities >= threshold, weights),
        **ranking_metrics(labels, probabilities, weights),
        **calibration_metrics(labels, probabilities, weights),
    }
    if "probability_calibrated" in table:
        again = calibration_metrics(labels, table["probability_calibrated"].to_numpy(dtype=np.float64), weights)
        rows |= {f"{name}_calibrated": values for name, values in again.items()}
    return rows


@np.errstate(divide="ignore", invalid="ignore")
def decision_metrics(labels: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the metrics of decisions at one threshold.

    Args:
        labels: 0 or 1, (n,).
        predicted: 0 or 1, (n,).
        weights: (b, n).

    Returns:
        For each metric, (b,); NaN for 0 / 0. F1 and MCC are NaN only if all labels are equal; if all decisions are
        equal, they are 0 by convention.
    """
    fractured, positive = labels == 1, predicted.astype(bool)
    tp, fn = weights @ (fractured & positive), weights @ (fractured & ~positive)
    fp, tn = weights @ (~fractured & positive), weights @ (~fractured & ~positive)
    sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
    two_classes = np.where((tp + fn > 0) & (tn + fp > 0), 1, np.nan)
    mcc = (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return {
        "accuracy": (tp + tn) / (tp + tn + fp + fn),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": tp / (tp + fp),
        "npv": tn / (tn + fn),
        "f1": two_classes * np.nan_to_num(2 * tp / (2 * tp + fp + fn)),
        "mcc": two_classes * np.nan_to_num(mcc),
    }


@np.errstate(divide="ignore", invalid="ignore")
def ranking_metrics(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the metrics that depend on the order of the scores only.

    ``auroc``: the probability that a fractured image scores higher than one without a fracture, ties count half (Hanley
    and McNeil, Radiology 143:29, 1982).
    ``average_precision``: the mean of the precision at each score, weighted by the increase in recall.
    ``sensitivity_at_90_specificity``: the highest sensitivity among thresholds with at least 90 % specificity.

    Args:
        labels: 0 or 1, (n,).
        scores: (n,).
        weights: (b, n).

    Returns:
        For each metric, (b,); NaN if all labels are equal.
    """
    positives, negatives = weights_by_score(labels, scores, weights)
    tp, fp = np.cumsum(positives, axis=1), np.cumsum(negatives, axis=1)
    fractured, others = tp[:, -1], fp[:, -1]
    below = others[:, None] - fp  # negatives below each score, since scores descend
    precision = tp / np.maximum(tp + fp, 1)  # 0 / 0 above the highest score that was drawn
    allowed = fp <= (1 - SPECIFICITY) * others[:, None] * (1 + 1e-9)
    return {
        "auroc": (positives * (below + negatives / 2)).sum(axis=1) / (fractured * others),
        "average_precision": (positives * precision).sum(axis=1) / np.where(others > 0, fractured, 0),
        "sensitivity_at_90_specificity": np.where(allowed, tp, 0).max(axis=1) / np.where(others > 0, fractured, 0),
    }


@np.errstate(divide="ignore", invalid="ignore")
def calibration_metrics(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the metrics of the probabilities' values.

    ``brier``: the mean squared difference to the label (Brier, Monthly Weather Review 78:1, 1950).
    ``calibration_error``: the mean absolute difference between mean probability and fraction of fractures in ``BINS``
    equal bins of the probability, weighted by the images in each (Guo et al., On Calibration of Modern Neural Networks,
    ICML 2017). It is biased upwards in small samples, and more so in bootstrap samples: its interval can lie above its
    value.

    Args:
        labels: 0 or 1, (n,).
        probabilities: (n,).
        weights: (b, n).

    Returns:
        For each metric, (b,).
    """
    total = weights.sum(axis=1)
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    gaps = np.zeros((len(labels), BINS))
    gaps[np.arange(len(labels)), bins] = probabilities - labels
    return {
        "brier": weights @ (probabilities - labels) ** 2 / total,
        "calibration_error": np.abs(weights @ gaps).sum(axis=1) / total,
    }


def weights_by_score(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum the weights of positives and of negatives at each distinct score, descending: two (b, k)."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) < 0])
    ordered, labels = weights[:, order], labels[order]
    positives, negatives = (np.add.reduceat(ordered * (labels == value), starts, axis=1) for value in (1, 0))
    return positives, negatives
