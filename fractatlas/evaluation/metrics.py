"""Metrics of a binary classifier, with 95 % intervals.

Every metric is computed from labels, probabilities and *weights* (b, n): each row counts how often each image was
drawn. A row of ones gives the metric itself; 2,000 rows give its bootstrap distribution in one pass.

Predictions that are pooled over folds have the column ``fold_threshold``: each fold has its own threshold.
"""

from typing import Any

import numpy as np
import pandas as pd

from fractatlas.evaluation.bootstrap import (
    ONE_GROUP,
    Score,
    auroc_interval,
    bootstrap_weights,
    interval,
    mean_of_two_interval,
    proportion_interval,
    without_interval,
)
from fractatlas.wording import plural

MIN_GROUPS = 20  # of each class, for a bootstrap interval that no interval for small counts supports
BINS = 15  # of the calibration error
SPECIFICITY = 0.9  # of ``sensitivity_at_90_specificity``


def evaluate(table: pd.DataFrame, threshold: float = 0.5, weights: np.ndarray | None = None) -> dict[str, Any]:
    """Compute all metrics of a table of predictions.

    Args:
        table: one row per image with ``label`` (0 or 1), ``probability`` (of a fracture) and ``group``; images of one
            group are drawn together. If ``probability_calibrated`` is a column, its calibration metrics are added.
        threshold: the smallest probability that is classified as fractured, unless the table has ``fold_threshold``.
        weights: float64 (b, n), from ``bootstrap_weights``; ``None`` draws them.

    Returns:
        ``n, positives, majority_rate, threshold``, and for each metric ``value, low, high``: the value and its 95 %
        interval. A metric that is undefined is ``None``. A metric without an interval has ``None`` as ``low`` and
        ``high``, and the ``reason``.
    """
    weights = bootstrap_weights(table["group"]) if weights is None else weights
    return {**count(table), "threshold": threshold, **intervals(table, threshold, weights)}


def count(table: pd.DataFrame) -> dict[str, Any]:
    """Return ``n, positives`` and ``majority_rate`` of a table with ``label``."""
    positives = int(table["label"].sum())
    return {
        "n": len(table),
        "positives": positives,
        "majority_rate": max(positives, len(table) - positives) / len(table),
    }


def classify(table: pd.DataFrame, threshold: float) -> pd.Series:
    """Return whether each image is classified as fractured: bool (n,).

    Args:
        table: ``probability`` and, if each fold has its own threshold, ``fold_threshold``.
        threshold: the smallest probability that is classified as fractured, without the column ``fold_threshold``.
    """
    return table["probability"] >= table.get("fold_threshold", threshold)


def intervals(table: pd.DataFrame, threshold: float, weights: np.ndarray) -> dict[str, Score | None]:
    """Return every metric with its interval over the rows of ``weights`` (b, n), as ``evaluate`` does."""
    return intervals_of(resampled(table, threshold, weights), table, threshold)


def intervals_of(values: dict[str, np.ndarray], table: pd.DataFrame, threshold: float) -> dict[str, Score | None]:
    """Return every metric with its interval, as ``evaluate`` does.

    Args:
        values: for each metric, (b,), from ``resampled``. They can be means over several predictions of the images of
            ``table``; ``ppv``, ``npv`` and ``f1``, whose intervals depend on the decisions, are then not valid.
        table: ``label, probability, group``; of means, one of the predictions.
        threshold: as in ``evaluate``.
    """
    if table["group"].nunique() == 1:
        points = {name: float(of[0]) for name, of in values.items()}
        return {name: without_interval(point, ONE_GROUP) if np.isfinite(point) else None
                for name, point in points.items()}  # fmt: skip
    small, reasons = _small_count_intervals(table, threshold, values), _reasons(table, threshold)
    scores = {name: interval(of, small.get(name)) for name, of in values.items()}
    return {name: without_interval(score["value"], reasons[name]) if score and name in reasons else score
            for name, score in scores.items()}  # fmt: skip


def auroc_score(values: np.ndarray, table: pd.DataFrame) -> Score | None:
    """Return an AUROC with its interval: the bootstrap interval, at least as wide as ``auroc_interval``.

    Args:
        values: (b,), from ``ranking_metrics``.
        table: ``label, group`` of the images.
    """
    return interval(values, _small_auroc_interval(float(values[0]), table))


def few_groups(table: pd.DataFrame) -> str:
    """Return why a table has too few groups for an interval that rests on the bootstrap alone; ``""`` if it has enough.

    Args:
        table: ``label, group`` of the images.
    """
    groups = table.groupby("label")["group"].nunique().reindex([0, 1], fill_value=0)
    if groups.min() >= MIN_GROUPS:
        return ""
    few = "with a fracture" if groups[1] < MIN_GROUPS else "without a fracture"
    counted = plural(int(groups.min()), "group" if table["group"].duplicated().any() else "image")
    return f"{counted} {few}, fewer than {MIN_GROUPS}"


def _small_auroc_interval(auroc: float, table: pd.DataFrame) -> tuple[float, float] | None:
    if not np.isfinite(auroc):
        return None
    counts, groups = table["label"].value_counts(), table.groupby("label")["group"].nunique()
    # Images of one group are not independent. With many groups, the bootstrap takes this into account.
    counts = groups if auroc in (0, 1) or groups.min() < MIN_GROUPS else counts
    return auroc_interval(auroc, int(counts[1]), int(counts[0]))


def _small_count_intervals(
    table: pd.DataFrame, threshold: float, values: dict[str, np.ndarray]
) -> dict[str, tuple[float, float] | None]:
    """Return the intervals for small counts of proportions, and of the metrics that can be derived from proportions."""
    fractured, positive = table["label"] == 1, classify(table, threshold)

    def proportion(of: np.ndarray, images: pd.Series) -> tuple[float, float] | None:
        return proportion_interval(of, int(images.sum()), table.loc[images, "group"].nunique())

    everything = fractured | True
    denominators = {"accuracy": everything, "sensitivity": fractured, "specificity": ~fractured, "ppv": positive,
                    "npv": ~positive, "sensitivity_at_90_specificity": fractured}  # fmt: skip
    small = {name: proportion(values[name], images) for name, images in denominators.items()}
    if (one := small["sensitivity"]) and (other := small["specificity"]):
        p, q = (float(values[name][0]) for name in ("sensitivity", "specificity"))
        small["balanced_accuracy"] = mean_of_two_interval((p, one), (q, other))
    # F1 = 2 j / (1 + j), where j is the proportion of true positives among fractured and predicted images.
    if ends := proportion(values["f1"] / (2 - values["f1"]), fractured | positive):
        small["f1"] = (2 * ends[0] / (1 + ends[0]), 2 * ends[1] / (1 + ends[1]))
    small["auroc"] = _small_auroc_interval(float(values["auroc"][0]), table)
    return small


def _reasons(table: pd.DataFrame, threshold: float) -> dict[str, str]:
    """Return, for each metric that has no interval in this table, the reason."""
    biased = "bootstrap samples increase its upward bias"
    reasons = dict.fromkeys(("calibration_error", "calibration_error_calibrated"), biased)
    if few := few_groups(table):
        reasons |= dict.fromkeys(("average_precision", "mcc", "brier", "brier_calibrated"), few)
    positive, constant = classify(table, threshold), table["probability"].nunique() == 1
    if positive.all() or not positive.any():
        reasons["balanced_accuracy"] = "all decisions are equal: the value is 0.5 for any images"
        reasons["mcc"] = "all decisions are equal: the value is 0 by convention"
    if not positive.any():
        reasons["f1"] = "no image is classified as fractured: the value is 0 for any images"
    if constant:
        reasons["auroc"] = "all probabilities are equal: the value is 0.5 for any images"
        reasons["sensitivity_at_90_specificity"] = "all probabilities are equal: the value is 0 for any images"
    return reasons


def resampled(table: pd.DataFrame, threshold: float, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return every metric under each row of ``weights`` (b, n): float64 (b,), NaN if undefined."""
    labels = table["label"].to_numpy()
    probabilities = table["probability"].to_numpy(dtype=np.float64)
    rows = {
        **decision_metrics(labels, classify(table, threshold).to_numpy(), weights),
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
    tp, fp, is_reached = weights_above(labels, scores, weights)
    fractured, others = tp[:, -1], fp[:, -1]
    # Each metric is a sum or a maximum over the scores of fractured images, which are few.
    at, before = np.flatnonzero(is_reached), np.flatnonzero(is_reached) - 1
    negatives = np.take(fp, at, axis=1) - np.where(before < 0, 0, np.take(fp, before, axis=1))
    tp, fp = np.take(tp, at, axis=1), np.take(fp, at, axis=1)
    positives = np.diff(tp, axis=1, prepend=0)
    below = others[:, None] - fp  # negatives below each score, since scores descend
    precision = np.zeros((len(weights), len(is_reached)))
    precision[:, at] = positives * (tp / np.maximum(tp + fp, 1))  # 0 / 0 above the highest score that was drawn
    allowed = fp <= (1 - SPECIFICITY) * others[:, None] * (1 + 1e-9)
    sensitive = np.where(allowed, tp, 0).max(axis=1, initial=0)
    return {
        "auroc": (positives * (below + negatives / 2)).sum(axis=1) / (fractured * others),
        "average_precision": precision.sum(axis=1) / np.where(others > 0, fractured, np.nan),
        "sensitivity_at_90_specificity": sensitive / np.where(others > 0, fractured, np.nan),
    }


@np.errstate(divide="ignore", invalid="ignore")
def calibration_metrics(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the metrics of the probabilities' values.

    ``brier``: the mean squared difference to the label (Brier, Monthly Weather Review 78:1, 1950).
    ``calibration_error``: the mean absolute difference between mean probability and fraction of fractures in ``BINS``
    equal bins of the probability, weighted by the images in each (Guo et al., On Calibration of Modern Neural Networks,
    ICML 2017). It is biased upwards in small samples, and more so in bootstrap samples. ``evaluate`` therefore gives it
    no interval.

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


def weights_above(
    labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, columns: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sum the weights of positives and of negatives at or above each distinct score.

    Args:
        labels: 0 or 1, (n,).
        scores: (n,), at least one.
        weights: (b, m), whole numbers.
        columns: the column of ``weights`` of each score, (n,); ``None`` if they are in the same order.

    Returns:
        For the k distinct scores, descending: the sums of positives and of negatives, two float64 (b, k), and whether
        there is a positive with this score, bool (k,).
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(scores[order]) < 0, True])  # the last of each distinct score
    positive = labels[order] == 1
    if columns is not None:
        order = columns[order]
    # Sums of whole numbers are exact, so that they can be differences of sums. np.take gives contiguous rows.
    every = np.cumsum(np.take(weights, order, axis=1), axis=1)
    every = every if len(ends) == len(order) else np.take(every, ends, axis=1)
    positives = np.cumsum(np.take(weights, order[positive], axis=1), axis=1)
    counts = np.cumsum(positive)[ends]
    tp = np.take(np.c_[np.zeros(len(weights)), positives], counts, axis=1)
    return tp, every - tp, np.diff(counts, prepend=0) > 0
