"""Where a classifier fails: every metric for every kind of image, and what can be told without looking at the bones."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from fractatlas.data.catalogue import BODY_PARTS, VIEWS
from fractatlas.data.groups import BODY
from fractatlas.evaluation.bootstrap import draws, interval
from fractatlas.evaluation.localisation import SHORTER_SIDE, SIZES
from fractatlas.evaluation.metrics import intervals, ranking

FEW = 10  # fractured, or not fractured, images below which a row is marked
LARGE = 512  # pixels of the shorter side; FracAtlas' images are far from it on either side
FILE = ("width", "height", "bytes", "junk", "orientation", "mode")
RECORD = (*BODY_PARTS, "multiscan", *VIEWS)


def stratify(table: pd.DataFrame, threshold: float, weights: np.ndarray) -> pd.DataFrame:
    """Score every kind of image that the table can tell.

    Args:
        table: predictions joined with the catalogue (any of its columns) and, where there are boxes, ``box_size``, of
            ``box_sizes``.
        threshold: fractured from this probability on.
        weights: float64 (b, n), from ``draws``.

    Returns:
        One row per stratum: ``attribute, stratum, n, positives, few`` (fewer than ``FEW`` of either class), then for
        each metric ``<name>, <name>_low, <name>_high``. Fractured images are told apart by the size of their box, and
        each size is scored against all images without a fracture.
    """
    rows = [_row("all", "all", np.ones(len(table), dtype=bool), table, threshold, weights)]
    for attribute, values in _attributes(table).items():
        for stratum in [name for name in values.cat.categories if (values == name).any()]:
            chosen = values == stratum
            if attribute == "box size":
                chosen |= table["label"] == 0
            rows.append(_row(attribute, stratum, chosen.to_numpy(), table, threshold, weights))
    return pd.DataFrame(rows)


def shortcuts(train: pd.DataFrame, table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Score gradient boosting on what is known of a file without its pixels, beside the classifier.

    Args:
        train: the training part, joined with the catalogue.
        table: the part to score, joined likewise, with ``probability``.

    Returns:
        For ``file`` (its size in pixels and bytes, colour mode, EXIF rotation), ``record`` (body part, views,
        several scans) and both: ``auroc`` and ``classifier_above``, how much higher the classifier's is, each with its
        interval. Empty where a part has but one class or the catalogue lacks the columns.
    """
    found: dict[str, dict[str, Any]] = {}
    if train["label"].nunique() < 2 or table["label"].nunique() < 2:
        return found
    weights, labels = draws(table["group"]), table["label"].to_numpy()
    own = ranking(labels, table["probability"].to_numpy(), weights)["auroc"]
    for name, columns in (("file", FILE), ("record", RECORD), ("file and record", (*FILE, *RECORD))):
        if not {*columns} <= {*train} & {*table}:
            continue
        text = [column for column in columns if column == "mode"]
        model = make_pipeline(
            make_column_transformer(
                (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), text), remainder="passthrough"
            ),
            HistGradientBoostingClassifier(max_depth=3, max_iter=100, learning_rate=0.05, random_state=0),
        )
        model.fit(train[list(columns)], train["label"])
        auroc = ranking(labels, model.predict_proba(table[list(columns)])[:, 1], weights)["auroc"]
        found[name] = {"auroc": interval(auroc), "classifier_above": interval(own - auroc)}
    return found


def box_sizes(table: pd.DataFrame, boxes: Mapping[str, np.ndarray]) -> pd.Series:
    """Measure the largest box of every image: its longer side where the shorter side is ``SHORTER_SIDE``.

    Args:
        table: ``image_id, width, height``.
        boxes: for each image id with a fracture, (n, 4): left, top, right, bottom in pixels.

    Returns:
        float (n,), NaN for an image without a box.
    """
    shorter = table[["width", "height"]].astype(float).min(axis=1)
    longest = [
        float((boxes[image_id][:, 2:] - boxes[image_id][:, :2]).max()) if image_id in boxes else np.nan
        for image_id in table["image_id"]
    ]
    return pd.Series(longest, index=table.index) * SHORTER_SIDE / shorter


def _attributes(table: pd.DataFrame) -> dict[str, pd.Series]:
    """For each attribute that the table can tell, every image's stratum, categorical; missing where it has none."""
    found = {}
    for attribute, names in (("body part", BODY), ("view", VIEWS)):
        if {*names} <= {*table}:
            flags = table[list(names)].fillna(0).astype(float)
            one = flags.idxmax(axis=1).where(flags.sum(axis=1) == 1, "several").where(flags.sum(axis=1) > 0)
            found[attribute] = one.astype(pd.CategoricalDtype([*names, "several"]))
    for attribute, name in (("hardware", "hardware"), ("several scans", "multiscan")):
        if name in table:
            found[attribute] = table[name].map({0: "no", 1: "yes"}).astype("category")
    if {"width", "height"} <= {*table}:
        shorter = table[["width", "height"]].astype(float).min(axis=1)
        edges, names = [0, LARGE, np.inf], [f"shorter side to {LARGE} px", f"above {LARGE} px"]
        found["image size"] = pd.cut(shorter, edges, labels=names)
    if "box_size" in table:
        edges = [low for low, _ in SIZES.values()] + [np.inf]
        found["box size"] = pd.cut(table["box_size"], edges, labels=list(SIZES), right=False)
    return found


def _row(
    attribute: str, stratum: str, chosen: np.ndarray, table: pd.DataFrame, threshold: float, weights: np.ndarray
) -> dict[str, Any]:
    part = table[chosen]
    n, positives = len(part), int(part["label"].sum())
    row = {"attribute": attribute, "stratum": stratum, "n": n, "positives": positives}
    row["few"] = min(positives, n - positives) < FEW
    for name, score in intervals(part, threshold, weights[:, chosen]).items():
        score = score or dict.fromkeys(("value", "low", "high"), np.nan)
        row |= {name: score["value"], f"{name}_low": score["low"], f"{name}_high": score["high"]}
    return row
