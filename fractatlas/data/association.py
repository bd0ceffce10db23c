"""Measure whether the label and the source of the images go together, when several data sets are used as one."""

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd

STRONG = 0.1  # Cramér's V from which on a warning is given; 0.1 is a small effect (Cohen 1988)


@dataclass(frozen=True)
class Association:
    """A log line about label and source, and its level."""

    text: str
    level: int


def cramers_v(first: pd.Series, second: pd.Series) -> float:
    """Return the association of two categorical columns, 0 (independent) to 1.

    Cramér, Mathematical Methods of Statistics, 1946, chapter 21. 0 if one of the columns has a single value.
    """
    counts = pd.crosstab(first.to_numpy(), second.to_numpy()).to_numpy(dtype=float)
    smaller = min(counts.shape) - 1
    if smaller < 1:
        return 0.0
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum()
    return float(np.sqrt(((counts - expected) ** 2 / expected).sum() / counts.sum() / smaller))


def describe_association(table: pd.DataFrame) -> Association | None:
    """Describe the share of fractured images of each source.

    Args:
        table: ``label`` and, if there are several sources, ``source``.

    Returns:
        ``None`` for a single source; a warning if the association is at least ``STRONG``.
    """
    if "source" not in table or table["source"].nunique() < 2:
        return None
    association = cramers_v(table["label"], table["source"])
    shares = table.groupby("source")["label"].agg(["size", "mean"])
    parts = zip(shares.index, shares["size"], shares["mean"], strict=True)
    listed = ", ".join(f"{100 * mean:.1f} % of {size} images of {name}" for name, size, mean in parts)
    text = f"fractured by source: {listed} (Cramér's V {association:.2f})"
    if association >= STRONG:
        text = f"label and source go together, so that a network can use the source as a shortcut: {text}"
        return Association(text, logging.WARNING)
    return Association(text, logging.INFO)
