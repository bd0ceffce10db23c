"""Compare the scores on data from elsewhere with those on the test subset that belongs to a checkpoint."""

from typing import Any

import numpy as np
import pandas as pd

from fractatlas.evaluation.bootstrap import Score, bootstrap_weights, interval, without_interval
from fractatlas.evaluation.metrics import calibration_metrics, evaluate, few_groups, resampled
from fractatlas.evaluation.operating_point import calibrate, is_at_limit, temperature

OTHER_SEED, SHARE_SEED = 1, 2  # of a bootstrap that is independent of the usual one, and of the share


def compare_with_own(own: pd.DataFrame, other: pd.DataFrame, threshold: float) -> dict[str, dict[str, Any]]:
    """Return the difference of every metric: on other data minus on the checkpoint's own test subset.

    The scores of both samples are those of ``metrics.evaluate``. The two samples are independent. The interval of the
    difference is that of two independent bootstraps over groups, and at least as wide as the one that follows from the
    intervals of both scores (Zou and Donner, Statistics in Medicine 27:1693, 2008), which also holds for small counts.

    Args:
        own: predictions of the own test subset, ``label, probability, group`` and ``probability_calibrated``.
        other: predictions of the other data, likewise.
        threshold: of the checkpoint.

    Returns:
        For each metric that both have: ``own, other, difference``, each ``value, low, high`` as from
        ``metrics.evaluate``.
    """
    weights = {"own": bootstrap_weights(own["group"]), "other": bootstrap_weights(other["group"], seed=OTHER_SEED)}
    tables = {"own": own, "other": other}
    scores = {"own": evaluate(own, threshold, weights["own"]), "other": evaluate(other, threshold)}
    values = {name: resampled(table, threshold, weights[name]) for name, table in tables.items()}
    rows = {}
    for metric in values["own"]:
        one, two = scores["own"].get(metric), scores["other"].get(metric)
        if not one or not two or metric not in values["other"]:
            continue
        count = min(len(values["own"][metric]), len(values["other"][metric]))
        differences = values["other"][metric][:count] - values["own"][metric][:count]
        rows[metric] = {"own": one, "other": two, "difference": _difference(one, two, differences)}
    return rows


def _difference(own: Score, other: Score, differences: np.ndarray) -> Score | None:
    for score in (own, other):
        if score["low"] is None:
            return without_interval(other["value"] - own["value"], score["reason"])
    difference = other["value"] - own["value"]
    below = np.hypot(other["value"] - other["low"], own["high"] - own["value"])
    above = np.hypot(other["high"] - other["value"], own["value"] - own["low"])
    return interval(differences, (difference - below, difference + above))


def recalibrate(predictions: pd.DataFrame, share: float, frozen: float) -> dict[str, Any]:
    """Choose the temperature again on a share of other data, and score the probabilities on the rest.

    Args:
        predictions: ``label, probability, group``.
        share: of the images, drawn by group.
        frozen: the temperature of the checkpoint.

    Returns:
        ``share``, ``n`` (of the share), ``n_rest``, ``temperature`` (the new one), ``at_limit`` (whether this is a
        limit of the search), ``frozen``, and on the rest for
        ``uncalibrated``, ``before`` (frozen temperature) and ``after``: ``brier, calibration_error``. ``brier_change``
        is the paired difference after minus before, with its interval over groups. Only ``share`` and ``reason`` if
        the share or the rest has images of one class only. As in ``metrics.evaluate``, a Brier score has no interval if
        the rest has too few groups of a class.
    """
    groups = np.random.default_rng(SHARE_SEED).permutation(np.sort(predictions["group"].astype(str).unique()))
    sizes = predictions["group"].astype(str).value_counts()[groups]
    count = int(np.searchsorted(sizes.cumsum().to_numpy(), share * len(predictions))) + 1
    chosen = predictions["group"].astype(str).isin(groups[:count])
    part, rest = predictions[chosen], predictions[~chosen]
    if part["label"].nunique() < 2 or rest["label"].nunique() < 2:
        where = f"{len(part)} images for the temperature, {len(rest)} to score"
        return {"share": share, "reason": f"one of the parts has images of one class only ({where})"}
    new = temperature(part["label"].to_numpy(), part["probability"].to_numpy(dtype=np.float64))
    weights, labels = bootstrap_weights(rest["group"], seed=OTHER_SEED), rest["label"].to_numpy()
    result: dict[str, Any] = {"share": share, "n": len(part), "n_rest": len(rest), "temperature": new, "frozen": frozen}
    result["at_limit"] = is_at_limit(new)
    few = few_groups(rest)
    values = {}

    def score(of: np.ndarray) -> Score | None:
        return without_interval(float(of[0]), few) if few else interval(of)

    for name, divisor in (("uncalibrated", 1.0), ("before", frozen), ("after", new)):
        values[name] = calibration_metrics(labels, calibrate(rest["probability"], divisor), weights)
        biased = without_interval(float(values[name]["calibration_error"][0]), "bootstrap samples increase its bias")
        result[name] = {"brier": score(values[name]["brier"]), "calibration_error": biased}
    result["brier_change"] = score(values["after"]["brier"] - values["before"]["brier"])
    return result


def describe_difference(title: str, row: dict[str, Any]) -> str:
    """Return one line about a row of ``compare_with_own``: ``AUROC 0.950 on its own test subset, 0.801 here (...)``."""
    change = row["difference"]
    ends = "" if change["low"] is None else f" [{change['low']:+.3f}, {change['high']:+.3f}]"
    values = f"{row['own']['value']:.3f} on its own test subset, {row['other']['value']:.3f} on these data"
    return f"{title} {values}: difference {change['value']:+.3f}{ends}"
