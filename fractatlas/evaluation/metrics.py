"""Metrics of a binary classifier, each with a bootstrap interval.

Every metric is a function of labels, probabilities and *weights*, the rows of ``bootstrap.draws``.
"""

from typing import Any

import numpy as np
import pandas as pd

from fractatlas.evaluation.bootstrap import draws, interval


def evaluate(table: pd.DataFrame, threshold: float = 0.5, seed: int = 0) -> dict[str, Any]:
    """Score predictions.

    Args:
        table: one row per image with ``label`` (0 or 1), ``probability`` (of a fracture) and ``group``; images of one
            group are drawn together.
        threshold: fractured from this probability on.
        seed: of the bootstrap.

    Returns:
        ``n, positives, majority_rate, threshold``, and for each metric ``value, low, high``: the value and its 95 %
        percentile interval over bootstrap samples of groups. A metric that the labels leave undefined is ``None``.
    """
    labels = table["label"].to_numpy()
    probabilities = table["probability"].to_numpy(dtype=np.float64)
    weights = draws(table["group"], seed=seed)

    with np.errstate(divide="ignore", invalid="ignore"):
        rows = {
            **at_threshold(labels, probabilities >= threshold, weights),
            "auroc": auroc(labels, probabilities, weights),
            "average_precision": average_precision(labels, probabilities, weights),
            "brier": weights @ (probabilities - labels) ** 2 / weights.sum(axis=1),
        }
    positives = int(labels.sum())
    return {
        "n": len(table),
        "positives": positives,
        "majority_rate": max(positives, len(table) - positives) / len(table),
        "threshold": threshold,
        **{name: interval(values) for name, values in rows.items()},
    }


def at_threshold(labels: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of a decision.

    Args:
        labels: 0 or 1, (n,).
        predicted: 0 or 1, (n,).
        weights: (b, n).

    Returns:
        Each metric, (b,); NaN where it is 0 / 0, but for F1 and MCC, which are 0 there as is the convention.
    """
    fractured, positive = labels == 1, predicted.astype(bool)
    tp, fn = weights @ (fractured & positive), weights @ (fractured & ~positive)
    fp, tn = weights @ (~fractured & positive), weights @ (~fractured & ~positive)
    sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
    return {
        "accuracy": (tp + tn) / (tp + tn + fp + fn),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": tp / (tp + fp),
        "npv": tn / (tn + fn),
        "f1": np.nan_to_num(2 * tp / (2 * tp + fp + fn)),
        "mcc": np.nan_to_num((tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))),
    }


def auroc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: how often a fractured image scores above another, ties half; (b,).

    Hanley and McNeil, Radiology 143:29, 1982. Arguments as ``at_threshold``, with scores (n,).
    """
    positives, negatives = _by_score(labels, scores, weights)
    below = np.cumsum(negatives, axis=1) - negatives
    wins = (positives * (below + negatives / 2)).sum(axis=1)
    return wins / (positives.sum(axis=1) * negatives.sum(axis=1))


def average_precision(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Precision at each score, weighted by the recall that it adds; (b,). Arguments as ``auroc``."""
    positives, negatives = (counts[:, ::-1] for counts in _by_score(labels, scores, weights))
    found, drawn = np.cumsum(positives, axis=1), np.cumsum(positives + negatives, axis=1)
    precision = found / np.maximum(drawn, 1)  # scores above the highest one drawn have neither
    return (positives * precision).sum(axis=1) / positives.sum(axis=1)


def _by_score(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weight of positives and of negatives at each distinct score, ascending: two (b, k)."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    ordered, labels = weights[:, order], labels[order]
    return tuple(np.add.reduceat(ordered * (labels == value), starts, axis=1) for value in (1, 0))
