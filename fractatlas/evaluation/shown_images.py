"""Select the images that a report shows."""

import numpy as np
import pandas as pd

from fractatlas.evaluation.metrics import classify

ERRORS, HEATMAPS = 8, 12  # images of each kind


def most_confident_errors(table: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Select the most confident errors: up to ``ERRORS`` false negatives, then up to ``ERRORS`` false positives.

    Args:
        table: ``image_id, label, probability`` of one subset.
        threshold: as for ``metrics.classify``.
    """
    ranked = table.sort_values(["probability", "image_id"])
    positive = classify(ranked, threshold)
    false_negatives = ranked[(ranked["label"] == 1) & ~positive].head(ERRORS)
    false_positives = ranked[(ranked["label"] == 0) & positive].tail(ERRORS)[::-1]
    return pd.concat([false_negatives, false_positives])


def spread_by_probability(table: pd.DataFrame, count: int = HEATMAPS) -> pd.DataFrame:
    """Select ``count`` fractured images at even steps of the ranking by probability.

    Args:
        table: ``image_id, label, probability`` of one subset.
        count: how many images, fewer if the subset has fewer.
    """
    fractured = table[table["label"] == 1].sort_values(["probability", "image_id"], ascending=[False, True])
    return fractured.iloc[np.unique(np.linspace(0, len(fractured) - 1, min(count, len(fractured))).round().astype(int))]
