"""Bootstrap intervals over groups of images.

Percentile intervals: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

CONFIDENCE = 0.95
RESAMPLES = 2000
MAX_CELLS = 40_000_000  # images times resamples; limits memory for large tables
MIN_RESAMPLES = 100


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
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=resamples)[:, codes]
    return np.vstack([np.ones(len(codes)), drawn]).astype(np.float64)


def interval(values: np.ndarray, trials: int | None = None) -> dict[str, float] | None:
    """Return a value with its 95 % percentile interval.

    Args:
        values: (b,), the value itself, then its values in the bootstrap samples. Samples that are not finite are
            ignored.
        trials: for a proportion, the number of groups in it. At 0 or 1 all bootstrap samples are equal; then the exact
            interval is returned (Clopper and Pearson, Biometrika 26:404, 1934).

    Returns:
        ``value, low, high``; ``None`` if the value is not finite.
    """
    value, resampled = values[0], values[1:][np.isfinite(values[1:])]
    if not np.isfinite(value):
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail]) if len(resampled) else (value, value)
    if trials and value in (0, 1):
        low, high = binomtest(int(value) * trials, trials).proportion_ci(CONFIDENCE)
    return {"value": float(value), "low": float(low), "high": float(high)}
