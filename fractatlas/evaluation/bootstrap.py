"""Bootstrap over groups: how much a number depends on which patients happened to be drawn.

Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13: percentile intervals.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

CONFIDENCE = 0.95
RESAMPLES = 2000
CELLS = 40_000_000  # images times resamples; of more images there are fewer resamples, but never under FEWEST
FEWEST = 100


def draws(groups: Sequence[Any] | pd.Series, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Draw as many groups as there are, with replacement, again and again.

    Args:
        groups: for each of n images, whom it is drawn together with.
        resamples: how often; less often above ``CELLS / resamples`` images, which are tables beyond this data set.
        seed: another seed, other draws.

    Returns:
        float64 (resamples + 1, n): how often each image was drawn; in the first row each once.
    """
    codes = pd.factorize(np.asarray(groups, dtype=object))[0]
    count = codes.max() + 1
    resamples = min(resamples, max(FEWEST, CELLS // len(codes)))
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=resamples)[:, codes]
    return np.vstack([np.ones(len(codes)), drawn]).astype(np.float64)


def interval(values: np.ndarray, trials: int | None = None) -> dict[str, float] | None:
    """Give the first of ``values``, with the 95 % percentile interval of the finite ones among the others.

    Args:
        values: the value, then those of the resamples.
        trials: of how many groups the value is a share, if it is one. Where all of them went one way no resample
            can differ, and the interval is the exact one of Clopper and Pearson, Biometrika 26:404, 1934.

    Returns:
        ``value, low, high``; ``None`` where the value is not finite.
    """
    value, resampled = values[0], values[1:][np.isfinite(values[1:])]
    if not np.isfinite(value):
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail]) if len(resampled) else (value, value)
    if trials and value in (0, 1):
        low, high = binomtest(int(value) * trials, trials).proportion_ci(CONFIDENCE)
    return {"value": float(value), "low": float(low), "high": float(high)}
