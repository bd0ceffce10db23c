"""Two sets of predictions of the same images: which is better, and could it be chance?"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fractatlas.errors import InputError
from fractatlas.evaluation.bootstrap import draws, interval
from fractatlas.evaluation.metrics import resampled


def compare(first: pd.DataFrame, second: pd.DataFrame, thresholds: tuple[float, float] = (0.5, 0.5)) -> pd.DataFrame:
    """Compare on the images that both have, drawing the same images for both.

    Args:
        first: ``image_id, label, probability, group``.
        second: ``image_id, label, probability``.
        thresholds: of the first and of the second.

    Returns:
        One row per metric: ``metric, n, first, second, difference`` (second minus first), its 95 % interval ``low,
        high``, and ``p``: twice the smaller share of the bootstrap's differences on one side of zero (Efron and
        Tibshirani, An Introduction to the Bootstrap, 1993, chapter 15), at least 1 / (resamples + 1). A metric that
        one of the two leaves undefined is left out.

    Raises:
        InputError: they have no image in common, or give one image different labels.
    """
    return compare_seeds([first], [second], ([thresholds[0]], [thresholds[1]]))


def compare_seeds(
    first: Sequence[pd.DataFrame],
    second: Sequence[pd.DataFrame],
    thresholds: tuple[Sequence[float], Sequence[float]],
) -> pd.DataFrame:
    """``compare`` for two recipes of several seeds each: the difference of the means over seeds.

    The interval is over images; that another few seeds would have given other means is not in it.
    """
    left = first[0][["image_id", "label", "group"]]
    for table in (*first[1:], *second):
        both = left.merge(table[["image_id", "label"]], on="image_id", suffixes=("", "_second"))
        if both.empty:
            raise InputError("the two tables of predictions have no image in common")
        if (differing := both["label"] != both["label_second"]).any():
            name = both.loc[differing, "image_id"].iloc[0]
            raise InputError(f"{differing.sum()} images have different labels in the two tables, the first {name}")
        left = both[["image_id", "label", "group"]]
    weights = draws(left["group"])
    one, other = (
        seed_means([left.merge(table[["image_id", "probability"]], on="image_id") for table in tables], at, weights)
        for tables, at in zip((first, second), thresholds, strict=True)
    )
    rows = []
    for name in one:
        difference = interval(other[name] - one[name])
        if difference is None:
            continue
        row = {"metric": name, "n": len(left), "first": one[name][0], "second": other[name][0]}
        row |= {"difference": difference["value"], "low": difference["low"], "high": difference["high"]}
        rows.append(row | {"p": _two_sided((other[name] - one[name])[1:])})
    return pd.DataFrame(rows)


def seed_means(
    tables: Sequence[pd.DataFrame], thresholds: Sequence[float], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """The mean over seeds of every metric under each row of ``weights`` (b, n): arrays (b,).

    Args:
        tables: of each seed, the same n images in the same order, ``label`` and ``probability``.
        thresholds: of each seed.
        weights: of ``draws``.
    """
    each = [resampled(table, at, weights) for table, at in zip(tables, thresholds, strict=True)]
    return {name: np.mean([values[name] for values in each], axis=0) for name in each[0]}


def difference_columns(compared: pd.DataFrame, names: Sequence[str]) -> dict[str, float]:
    """The rows ``names`` of ``compare`` as ``<name>_difference`` with ``_low, _high, _p``, for a wider table."""
    found = compared.set_index("metric")
    ends = {"": "difference", "_low": "low", "_high": "high", "_p": "p"}
    return {f"{name}_difference{end}": found.loc[name, column] for name in names for end, column in ends.items()}


def spread(values: pd.DataFrame) -> pd.DataFrame:
    """Mean and sample standard deviation of each metric over several seeds.

    Args:
        values: one row per seed, one column per metric.

    Returns:
        One row per metric: ``metric, seeds, mean, sd``; ``sd`` is NaN for a single seed.
    """
    table = values.agg(["count", "mean", "std"]).T.rename(columns={"count": "seeds", "std": "sd"})
    return table.rename_axis("metric").reset_index().astype({"seeds": int})


def _two_sided(differences: np.ndarray) -> float:
    finite = differences[np.isfinite(differences)]
    one_side = min((finite <= 0).sum(), (finite >= 0).sum()) + 1
    return float(min(1.0, 2 * one_side / (len(finite) + 1)))
