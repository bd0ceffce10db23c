"""The bootstrap over groups: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

A resample is a row of *weights* that count how often each image was drawn. A statistic that takes weights gives its
value and its whole bootstrap from one matrix of them.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

CONFIDENCE = 0.95


def draws(groups: Sequence | np.ndarray | pd.Series, resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """Draw groups with replacement, and with a group all of its images.

    Args:
        groups: of each image, (n,), any kind of name; at least one image.
        resamples: how many, b.
        seed: same seed, same draws.

    Returns:
        float64 (b + 1, n): how often each image was drawn; the first row is all ones and stands for the images
        themselves.
    """
    codes = pd.factorize(np.asarray(groups))[0]
    count = codes.max() + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)[:, codes]
    return np.vstack([np.ones(len(codes)), drawn])


def interval(values: np.ndarray) -> dict[str, float] | None:
    """Give a statistic's value with its percentile interval at ``CONFIDENCE``.

    Args:
        values: (b + 1,): the statistic of each row of ``draws``. Resamples where it is not finite are left out.

    Returns:
        ``value, low, high``; ``None`` where the value itself is not finite.
    """
    value, resampled = values[0], values[1:][np.isfinite(values[1:])]
    if not np.isfinite(value):
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail]) if len(resampled) else (value, value)
    return {"value": float(value), "low": float(low), "high": float(high)}
