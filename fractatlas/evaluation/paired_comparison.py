"""Compare predictions of the same images: paired differences with bootstrap intervals and p values."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fractatlas.errors import InputError
from fractatlas.evaluation.bootstrap import bootstrap_weights, interval
from fractatlas.evaluation.metrics import resampled


def compare(first: pd.DataFrame, second: pd.DataFrame, thresholds: tuple[float, float] = (0.5, 0.5)) -> pd.DataFrame:
    """Compare two tables of predictions on the images that both contain.

    Every bootstrap sample draws the same images for both tables.

    Args:
        first: ``image_id, label, probability, group``.
        second: ``image_id, label, probability``. Both may have ``fold_threshold``.
        thresholds: of the first and of the second table.

    Returns:
        One row per metric: ``metric, n, first, second, difference`` (second minus first), the 95 % interval of the
        difference ``low, high``, and ``p``: two-sided, twice the smaller fraction of bootstrap differences on one side
        of zero, at least 1 / (resamples + 1) (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter
        15). Metrics that are undefined for one of the tables are omitted.

    Raises:
        InputError: the tables have no image in common, or different labels for one image.
    """
    return compare_seeds([first], [second], ([thresholds[0]], [thresholds[1]]))


def compare_seeds(
    first: Sequence[pd.DataFrame],
    second: Sequence[pd.DataFrame],
    thresholds: tuple[Sequence[float], Sequence[float]],
) -> pd.DataFrame:
    """Compare two recipes of several seeds each by the difference of their means over seeds.

    Arguments and result are those of ``compare``, with one table and one threshold for each seed. The interval covers
    the choice of images. It does not cover the choice of seeds.
    """
    left = first[0][["image_id", "label", "group"]]
    for table in (*first[1:], *second):
        both = left.merge(table[["image_id", "label"]], on="image_id", suffixes=("", "_second"))
        if both.empty:
            raise InputError("the runs have no image in common; compare runs with the same split")
        if (differ := both["label"] != both["label_second"]).any():
            name = both.loc[differ, "image_id"].iloc[0]
            raise InputError(f"{differ.sum()} images, such as {name}, have different labels; use runs of one data set")
        left = both[["image_id", "label", "group"]]
    weights = bootstrap_weights(left["group"])
    one, other = (
        seed_means([left.merge(_predicted(table), on="image_id") for table in tables], at, weights)
        for tables, at in zip((first, second), thresholds, strict=True)
    )
    rows = [{"metric": name, "n": len(left)} | row for name in one if (row := difference(one[name], other[name]))]
    return pd.DataFrame(rows)


def _predicted(table: pd.DataFrame) -> pd.DataFrame:
    return table[[name for name in ("image_id", "probability", "fold_threshold") if name in table]]


def difference(first: np.ndarray, second: np.ndarray) -> dict[str, float] | None:
    """Return ``first, second, difference, low, high, p`` of one metric, as ``compare`` does.

    Args:
        first: (b,), the value itself, then its values in the bootstrap samples.
        second: likewise, in the same samples.

    Returns:
        ``None`` if the difference is not finite.
    """
    if not (score := interval(second - first)):
        return None
    row = {"first": first[0], "second": second[0], "difference": score["value"]}
    return row | {"low": score["low"], "high": score["high"], "p": _two_sided_p((second - first)[1:])}


def seed_means(
    tables: Sequence[pd.DataFrame], thresholds: Sequence[float], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the mean over seeds of every metric, for each bootstrap sample.

    Args:
        tables: for each seed, ``label, probability`` of the same n images in the same order.
        thresholds: for each seed.
        weights: (b, n), from ``bootstrap_weights``.

    Returns:
        For each metric, float64 (b,).
    """
    each = [resampled(table, at, weights) for table, at in zip(tables, thresholds, strict=True)]
    return {name: np.mean([values[name] for values in each], axis=0) for name in each[0]}


def difference_columns(compared: pd.DataFrame, names: Sequence[str]) -> dict[str, float]:
    """Return rows of ``compare`` as columns of a wider table: ``<name>_difference`` with ``_low, _high, _p``."""
    rows = compared.set_index("metric")
    ends = {"": "difference", "_low": "low", "_high": "high", "_p": "p"}
    return {f"{name}_difference{end}": rows.loc[name, column] for name in names for end, column in ends.items()}


def spread(values: pd.DataFrame) -> pd.DataFrame:
    """Return the mean and the sample standard deviation of each metric over several seeds.

    Args:
        values: one row per seed, one column per metric.

    Returns:
        One row per metric: ``metric, seeds, mean, sd``; ``sd`` is NaN for a single seed.
    """
    table = values.agg(["count", "mean", "std"]).T.rename(columns={"count": "seeds", "std": "sd"})
    return table.rename_axis("metric").reset_index().astype({"seeds": int})


def _two_sided_p(differences: np.ndarray) -> float:
    finite = differences[np.isfinite(differences)]
    one_side = min((finite <= 0).sum(), (finite >= 0).sum()) + 1
    return float(min(1.0, 2 * one_side / (len(finite) + 1)))
