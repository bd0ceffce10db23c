"""Bootstrap intervals over groups of images, and intervals for small counts.

Percentile intervals: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13. They are too narrow for
few images and near 0 and 1, and have no width if a value is the same in all samples. Proportions, and AUROC, therefore
have at least the width of an interval for small counts.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import beta, norm, t

CONFIDENCE = 0.95
RESAMPLES = 2000
MAX_CELLS = 40_000_000  # images times resamples; limits memory for large tables
MIN_RESAMPLES = 100
NO_SPREAD = "the value is the same in all bootstrap samples"
ONE_GROUP = "all images are in one group"
TAIL = (1 - CONFIDENCE) / 2

Score = dict[str, Any]  # ``value, low, high``; without an interval, the ends are ``None``, and ``reason`` states why


def bootstrap_weights(groups: Sequence[Any] | pd.Series, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Draw bootstrap samples of groups, with replacement.

    Args:
        groups: the group of each of n images; images of one group are drawn together.
        resamples: number of samples; fewer, but at least ``MIN_RESAMPLES``, if n times this exceeds ``MAX_CELLS``.
        seed: of the random numbers.

    Returns:
        float64 (resamples + 1, n): how often each image was drawn. The first row is all ones: the images themselves.
    """
    codes = pd.factorize(np.asarray(groups, dtype=object))[0]
    count = codes.max() + 1
    resamples = min(resamples, max(MIN_RESAMPLES, MAX_CELLS // len(codes)))
    return np.vstack([np.ones(len(codes)), _draw(count, resamples, seed)[:, codes]]).astype(np.float64)


@functools.lru_cache(maxsize=8)
def _draw(groups: int, resamples: int, seed: int) -> np.ndarray:
    """Return how often each group is in each bootstrap sample: int32 (resamples, groups), not to be changed."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(groups, np.full(groups, 1 / groups), size=resamples).astype(np.int32)


def interval(values: np.ndarray, at_least: tuple[float, float] | None = None) -> Score | None:
    """Return a value with its 95 % percentile interval.

    Args:
        values: (b,), the value itself, then its values in the bootstrap samples. Samples that are not finite are
            ignored.
        at_least: an interval for small counts; the result contains it.

    Returns:
        ``value, low, high``; ``None`` if the value is not finite. If all samples are equal and there is no interval for
        small counts, ``low`` and ``high`` are ``None``, and ``reason`` is added.
    """
    value, resampled = values[0], values[1:][np.isfinite(values[1:])]
    if not np.isfinite(value):
        return None
    low, high = np.quantile(resampled, [TAIL, 1 - TAIL]) if len(resampled) else (value, value)
    if at_least:
        low, high = min(low, at_least[0]), max(high, at_least[1])
    if high - low < 1e-12:
        return without_interval(float(value), NO_SPREAD)
    return {"value": float(value), "low": float(low), "high": float(high)}


def without_interval(value: float, reason: str) -> Score:
    """Return a score that has no interval, with the reason."""
    return {"value": value, "low": None, "high": None, "reason": reason}


def proportion_interval(values: np.ndarray, images: int, groups: int) -> tuple[float, float] | None:
    """Return the exact interval of a proportion with the effective number of images of a sample of groups.

    The interval is that of Clopper and Pearson (Biometrika 26:404, 1934). The effective number of images is p (1 - p)
    divided by the variance over bootstrap samples, at most the number of images, and adjusted for the degrees of
    freedom (Korn and Graubard, Survey Methodology 24:193, 1998). For p = 0 and p = 1, where the variance is 0, it is
    the number of groups. The interval is never narrower than that of independent images.

    Args:
        values: (b,), the proportion, then its values in the bootstrap samples.
        images: in the denominator of the proportion.
        groups: of these images.

    Returns:
        Its ends; ``None`` if the proportion is not finite, or is between 0 and 1 with a single group.
    """
    p, resampled = float(values[0]), values[1:][np.isfinite(values[1:])]
    if not np.isfinite(p) or (groups < 2 and 0 < p < 1):
        return None
    effective = float(groups)
    if 0 < p < 1:
        variance = resampled.var() * groups / (groups - 1) if len(resampled) else 0.0
        effective = min(images, p * (1 - p) / variance) if variance > 0 else images
        effective *= (t.ppf(TAIL, max(1, images - 1)) / t.ppf(TAIL, groups - 1)) ** 2
    hits = p * effective
    low = beta.ppf(TAIL, hits, effective - hits + 1) if p > 0 else 0.0
    high = beta.ppf(1 - TAIL, hits + 1, effective - hits) if p < 1 else 1.0
    return float(low), float(high)


def auroc_interval(auroc: float, positives: int, negatives: int) -> tuple[float, float]:
    """Return the interval of an AUROC for small counts, which has a width also at 0 and 1.

    Both ends solve (AUROC - a)² = z² V(a), where V is the variance of Hanley and McNeil (Radiology 143:29, 1982) with
    the mean of both counts in place of each (Newcombe, Statistics in Medicine 25:559, 2006, method 5).

    Args:
        auroc: the value.
        positives: number of fractured images, or of their groups.
        negatives: number of the other images, or of their groups.
    """
    z, mean = norm.ppf(1 - TAIL), (positives + negatives) / 2

    def excess(a: float) -> float:
        spread = 1 + (mean - 1) * ((1 - a) / (2 - a) + a / (1 + a))
        return (auroc - a) ** 2 - z**2 * a * (1 - a) * spread / (positives * negatives)

    # ``excess`` is 0 at 0 and 1 if ``auroc`` is, which is not an end of the interval.
    edge = 1e-9
    low = brentq(excess, edge, max(edge, auroc - edge)) if excess(edge) > 0 > excess(auroc - edge) else 0.0
    high = brentq(excess, auroc + edge, 1 - edge) if excess(auroc + edge) < 0 < excess(1 - edge) else 1.0
    return low, high


def mean_of_two_interval(one: tuple[float, tuple[float, float]], other: tuple[float, tuple[float, float]]) -> tuple:
    """Return the interval of the mean of two independent proportions from their intervals.

    Zou and Donner, Statistics in Medicine 27:1693, 2008.

    Args:
        one: a proportion and the ends of its interval.
        other: likewise.
    """
    (p, (p_low, p_high)), (q, (q_low, q_high)) = one, other
    mean = (p + q) / 2
    return mean - np.hypot(p - p_low, q - q_low) / 2, mean + np.hypot(p_high - p, q_high - q) / 2
