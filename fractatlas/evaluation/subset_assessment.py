"""Assess predictions subset by subset: scores by stratum, shortcut baselines, localisation."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fractatlas.data.splits import SCORED
from fractatlas.evaluation import strata
from fractatlas.evaluation.bootstrap import bootstrap_weights
from fractatlas.evaluation.localisation import Heatmaps, localise, summarise
from fractatlas.evaluation.predictions_table import join
from fractatlas.io import write_csv


@dataclass
class SubsetAssessment:
    """The assessment of one subset.

    Attributes:
        name: ``val`` or ``test``; ``train`` or ``all`` if it was requested.
        table: its predictions, joined with the catalogue.
        strata: from ``strata.stratify``; the first row is the complete subset.
        shortcuts: from ``strata.shortcuts``; empty without a training subset.
        localisation: from ``localisation.localise``; empty without heatmaps.
        localisation_summary: from ``localisation.summarise``; empty without heatmaps.
    """

    name: str
    table: pd.DataFrame
    strata: pd.DataFrame
    shortcuts: dict[str, dict[str, Any]]
    localisation: pd.DataFrame
    localisation_summary: dict[str, dict[str, Any]]


def assess(
    predictions: pd.DataFrame,
    threshold: float,
    catalogue: pd.DataFrame | None = None,
    train: pd.DataFrame | None = None,
    boxes: Mapping[str, np.ndarray] | None = None,
    heatmaps: Heatmaps | None = None,
) -> list[SubsetAssessment]:
    """Assess every subset that the predictions contain.

    Args:
        predictions: as ``read_predictions`` returns them.
        threshold: the smallest probability that is classified as fractured.
        catalogue: ``image_id`` and any of the columns of a run's ``catalogue.csv``.
        train: ``image_id, label`` of the training subset, for the shortcut baselines.
        boxes: for each fractured image id, (n, 4): left, top, right, bottom in pixels.
        heatmaps: of all fractured images of a subset, or of none.

    Returns:
        The assessments in the order of ``data.splits.SCORED``.

    Raises:
        InputError: a subset has fractured images with a heatmap and fractured images without one.
    """
    assessed = []
    for name in SCORED:
        table = subset_table(predictions, name, catalogue, boxes)
        if table.empty:
            continue
        rows, summary = pd.DataFrame(), {}
        fractured = table[table["label"] == 1]
        if heatmaps is not None and "box_size" in table and fractured["image_id"].isin(heatmaps.image_id).any():
            sized = fractured.dropna(subset=["width"])
            sizes = {row.image_id: (int(row.width), int(row.height)) for row in sized.itertuples()}
            rows = localise(heatmaps, boxes or {}, sizes)
            summary = summarise(rows, table.set_index("image_id")["group"])
        shortcuts = {}
        if train is not None and catalogue is not None:
            labels = train[["image_id", "label"]]
            columns = catalogue.drop(columns="label", errors="ignore")
            shortcuts = strata.shortcuts(labels.merge(columns, on="image_id"), table)
        stratified = strata.stratify(table, threshold, bootstrap_weights(table["group"]))
        assessed.append(SubsetAssessment(name, table, stratified, shortcuts, rows, summary))
    return assessed


def subset_table(
    predictions: pd.DataFrame, name: str, catalogue: pd.DataFrame | None, boxes: Mapping[str, np.ndarray] | None
) -> pd.DataFrame:
    """Return one subset's predictions joined with the catalogue, with ``box_size`` if boxes and sizes are known."""
    table = predictions[predictions["split"] == name].reset_index(drop=True)
    if catalogue is not None:
        table = join(table, catalogue)
    if boxes and {"width", "height"} <= {*table}:
        table["box_size"] = strata.box_sizes(table, boxes)
    return table


def write(folder: Path, assessed: list[SubsetAssessment]) -> dict[str, Any]:
    """Write ``strata.csv`` and, if there are heatmaps and boxes, ``localisation.csv``.

    Returns:
        The entries for ``metrics.json``: ``shortcuts`` and ``localisation`` (the summary) of each subset.
    """
    write_csv(folder / "strata.csv", pd.concat([one.strata.assign(subset=one.name) for one in assessed]))
    (folder / "localisation.csv").unlink(missing_ok=True)  # of an earlier evaluation in this folder
    if rows := [one.localisation.assign(split=one.name) for one in assessed if len(one.localisation)]:
        write_csv(folder / "localisation.csv", pd.concat(rows))
    return {
        "shortcuts": {one.name: one.shortcuts for one in assessed if one.shortcuts},
        "localisation": {one.name: one.localisation_summary for one in assessed if one.localisation_summary},
    }
