"""Scores by stratum (body part, view, image size, ...), and baselines that use no pixels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from fractatlas.data.attributes import attribute_columns, strata_of
from fractatlas.data.sources.fracatlas import BODY_PARTS, VIEWS
from fractatlas.data.tables import as_numbers
from fractatlas.evaluation.bootstrap import bootstrap_weights, interval
from fractatlas.evaluation.localisation import BOX_SIZES, SHORTER_SIDE
from fractatlas.evaluation.metrics import auroc_score, intervals, ranking_metrics

FOLDS = 5  # of cross-fitted baselines
MIN_COUNT = 10  # a stratum with fewer fractured or fewer other images is marked
LARGE_SIDE = 512  # pixels of the shorter side; no image of FracAtlas has a similar size
FILE_COLUMNS = ("width", "height", "bytes", "junk", "orientation", "mode")
RECORD_COLUMNS = (*BODY_PARTS, "multiscan", *VIEWS)


def stratify(
    table: pd.DataFrame, threshold: float, weights: np.ndarray, reference: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Compute every metric for all images and for every stratum.

    Args:
        table: predictions joined with the catalogue and, if there are boxes, ``box_size`` from ``box_sizes``.
            Attributes whose columns are missing are omitted.
        threshold: the smallest probability that is classified as fractured.
        weights: float64 (b, n), from ``bootstrap_weights``.
        reference: as in ``attributes.strata_of``.

    Returns:
        One row per stratum: ``attribute, stratum, n, positives, low_count`` (fewer than ``MIN_COUNT`` images of either
        class), then for each metric ``<name>, <name>_low, <name>_high``. A stratum by box size contains the fractured
        images of this size and all images without a fracture.
    """
    rows = [_row("all", "all", np.ones(len(table), dtype=bool), table, threshold, weights)]
    for attribute, values in _attributes(table, reference).items():
        for stratum in [name for name in values.cat.categories if (values == name).any()]:
            chosen = values == stratum
            if attribute == "box size":
                chosen |= table["label"] == 0
            rows.append(_row(attribute, stratum, chosen.to_numpy(), table, threshold, weights))
    return pd.DataFrame(rows)


def shortcuts(train: pd.DataFrame, table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Score gradient boosting on properties of the file and the record, without pixels.

    A high score means that the labels correlate with these properties, so that a network can use them as shortcuts. If
    the images to score are training images, the baseline is cross-fitted: it predicts each group with a model that was
    fitted on the other groups.

    Args:
        train: labels of the training subset, joined with the catalogue.
        table: predictions of the subset to score, joined with the catalogue.

    Returns:
        For ``file`` (``FILE_COLUMNS``), ``record`` (``RECORD_COLUMNS``, or the attributes of another source) and ``file
        and record``: ``auroc`` of the baseline, and ``classifier_above``, the classifier's AUROC minus it, each with
        its interval. The second is ``None`` for training images, because the classifier was fitted on them and the
        baseline was not. Empty if a subset has only one class or the catalogue lacks the columns, or if there are too
        few groups to cross-fit.
    """
    scores: dict[str, dict[str, Any]] = {}
    if train["label"].nunique() < 2 or table["label"].nunique() < 2:
        return scores
    trained_on = bool(table["image_id"].isin(train["image_id"]).any())
    folds = min(FOLDS, int(table.groupby("label")["group"].nunique().min()))
    if trained_on and folds < 2:
        return scores
    weights, labels = bootstrap_weights(table["group"]), table["label"].to_numpy()
    own = ranking_metrics(labels, table["probability"].to_numpy(), weights)["auroc"]
    both = {*train} & {*table}
    record = RECORD_COLUMNS if {*RECORD_COLUMNS} <= both else tuple(c for c in attribute_columns(table) if c in both)
    baselines: dict[str, tuple[str, ...]] = {"file": FILE_COLUMNS}
    if record:
        baselines |= {"record": record, "file and record": (*FILE_COLUMNS, *record)}
    train, table = train.copy(), table.copy()
    texts = {"mode"}
    if record != RECORD_COLUMNS:
        texts |= {column for column in record if not _made_numeric(column, train, table)}
    for name, columns in baselines.items():
        if not {*columns} <= both:
            continue
        model = shortcut_model([column for column in columns if column in texts])
        inputs = table[list(columns)]
        if trained_on:
            splits = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
            predicted = cross_val_predict(
                model, inputs, labels, groups=table["group"], cv=splits, method="predict_proba"
            )  # fmt: skip
        else:
            predicted = model.fit(train[list(columns)], train["label"]).predict_proba(inputs)
        auroc = ranking_metrics(labels, predicted[:, 1], weights)["auroc"]
        above = None if trained_on else interval(own - auroc)
        scores[name] = {"auroc": auroc_score(auroc, table), "classifier_above": above}
    return scores


def shortcut_model(text: Sequence[str]) -> Pipeline:
    """Return the gradient boosting of ``shortcuts``, not fitted.

    Args:
        text: the columns of its inputs that are text; all others are numbers.
    """
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    return make_pipeline(
        make_column_transformer((encoder, list(text)), remainder="passthrough"),
        HistGradientBoostingClassifier(max_depth=3, max_iter=100, learning_rate=0.05, random_state=0),
    )


def _made_numeric(column: str, *tables: pd.DataFrame) -> bool:
    """Turn a column of all tables into numbers, or into text if one of them is not numeric; return which."""
    numbers = [as_numbers(table[column]) for table in tables]
    is_number = all(one is not None for one in numbers)
    for table, values in zip(tables, numbers, strict=True):
        table[column] = values if is_number else table[column].astype(str)
    return is_number


def box_sizes(table: pd.DataFrame, boxes: Mapping[str, np.ndarray]) -> pd.Series:
    """Return the longest side of a box of every image, scaled to a shorter side of ``SHORTER_SIDE`` pixels.

    Args:
        table: ``image_id, width, height``.
        boxes: for each fractured image id, (n, 4): left, top, right, bottom in pixels.

    Returns:
        float (n,), NaN for an image without a box.
    """
    longest = {image_id: float((corners[:, 2:] - corners[:, :2]).max()) for image_id, corners in boxes.items()}
    return table["image_id"].map(longest) * SHORTER_SIDE / table[["width", "height"]].astype(float).min(axis=1)


def _attributes(table: pd.DataFrame, reference: pd.DataFrame | None) -> dict[str, pd.Series]:
    """Return every image's stratum, categorical, for each attribute; missing if the image belongs to none."""
    attributes = strata_of(table, reference)
    if {"width", "height"} <= {*table}:
        shorter = table[["width", "height"]].astype(float).min(axis=1)
        labels = [f"shorter side to {LARGE_SIDE} px", f"above {LARGE_SIDE} px"]
        attributes["image size"] = pd.cut(shorter, [0, LARGE_SIDE, np.inf], labels=labels)
    if "box_size" in table:
        edges = [low for low, _ in BOX_SIZES.values()] + [np.inf]
        attributes["box size"] = pd.cut(table["box_size"], edges, labels=list(BOX_SIZES), right=False)
    return attributes


def _row(
    attribute: str, stratum: str, chosen: np.ndarray, table: pd.DataFrame, threshold: float, weights: np.ndarray
) -> dict[str, Any]:
    images = table[chosen]
    n, positives = len(images), int(images["label"].sum())
    row = {"attribute": attribute, "stratum": stratum, "n": n, "positives": positives}
    row["low_count"] = min(positives, n - positives) < MIN_COUNT
    for name, score in intervals(images, threshold, weights[:, chosen]).items():
        for end, key in (("", "value"), ("_low", "low"), ("_high", "high")):
            row[name + end] = score[key] if score and score[key] is not None else np.nan
    return row
