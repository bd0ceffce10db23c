"""Assess predictions subset by subset: scores by stratum, shortcut baselines, localisation, detection."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fractatlas.data.sources.fracatlas import BODY_PARTS
from fractatlas.data.splits import SCORED
from fractatlas.evaluation import detection, strata
from fractatlas.evaluation.bootstrap import bootstrap_weights
from fractatlas.evaluation.candidates import COLUMNS, DECIMALS, find_candidates
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
        candidates: from ``candidates.find_candidates``, with ``in_box`` (1 if the peak is in a box, else 0); empty
            unless all images have a heatmap.
        detection: from ``detection.score``, likewise.
    """

    name: str
    table: pd.DataFrame
    strata: pd.DataFrame
    shortcuts: dict[str, dict[str, Any]]
    localisation: pd.DataFrame
    localisation_summary: dict[str, dict[str, Any]]
    candidates: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=[*COLUMNS, "in_box"]))
    detection: dict[str, Any] = field(default_factory=dict)


def assess(
    predictions: pd.DataFrame,
    threshold: float,
    catalogue: pd.DataFrame | None = None,
    train: pd.DataFrame | None = None,
    boxes: Mapping[str, np.ndarray] | None = None,
    heatmaps: Heatmaps | None = None,
    box_threshold: float | None = None,
) -> list[SubsetAssessment]:
    """Assess every subset that the predictions contain.

    Args:
        predictions: as ``read_predictions`` returns them.
        threshold: the smallest probability that is classified as fractured.
        catalogue: ``image_id`` and any of the columns of a run's ``catalogue.csv``.
        train: ``image_id, label`` of the training subset, for the shortcut baselines.
        boxes: for each fractured image id, (n, 4): left, top, right, bottom in pixels.
        heatmaps: of all fractured images of a subset, or of none. Candidates are scored if all images of the subset
            have one.
        box_threshold: the smallest score of a candidate that counts as an alarm.

    Returns:
        The assessments in the order of ``data.splits.SCORED``.

    Raises:
        InputError: a subset has fractured images with a heatmap and fractured images without one.
    """
    usable = catalogue
    if catalogue is not None and "excluded" in catalogue:
        usable = catalogue[catalogue["excluded"].fillna("") == ""]
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
            parts = table[["image_id", *(part for part in BODY_PARTS if part in table)]]
            summary = summarise(rows.merge(parts, on="image_id"), table.set_index("image_id")["group"])
        shortcuts = {}
        if train is not None and catalogue is not None:
            labels = train[["image_id", "label"]]
            columns = catalogue.drop(columns="label", errors="ignore")
            shortcuts = strata.shortcuts(labels.merge(columns, on="image_id"), table)
        stratified = strata.stratify(table, threshold, bootstrap_weights(table["group"]), usable)
        one = SubsetAssessment(name, table, stratified, shortcuts, rows, summary)
        if detections := detect(table, boxes, heatmaps):
            one.candidates = detections.candidates[COLUMNS].assign(in_box=detections.candidates["in_box"].astype(int))
            one.detection = detection.score(detections, box_threshold)
        assessed.append(one)
    return assessed


def detect(
    table: pd.DataFrame, boxes: Mapping[str, np.ndarray] | None, heatmaps: Heatmaps | None
) -> detection.Detections | None:
    """Find candidate boxes in the heatmaps of a subset, and match them with the boxes of the fractures.

    Args:
        table: from ``subset_table``.
        boxes: as in ``assess``.
        heatmaps: of any images.

    Returns:
        ``None`` if an image has no heatmap or no known size, or if no image has a box.
    """
    if heatmaps is None or "box_size" not in table or table[["width", "height"]].isna().any(axis=None):
        return None
    if not table["image_id"].isin(heatmaps.image_id).all():
        return None
    sizes = {row.image_id: (int(row.width), int(row.height)) for row in table.itertuples()}
    detections = detection.match(table, find_candidates(heatmaps, sizes), boxes or {})
    return detections if len(detections.boxes) else None


def choose_box_threshold(
    predictions: pd.DataFrame,
    catalogue: pd.DataFrame | None,
    boxes: Mapping[str, np.ndarray] | None,
    heatmaps: Heatmaps | None,
) -> dict[str, float]:
    """Choose ``box_threshold`` on the validation subset, as ``detection.choose_box_threshold`` does.

    Arguments are those of ``assess``.

    Returns:
        The entry for the operating point; empty if ``detect`` finds nothing to match in the validation subset, or if no
        peak is in a box.
    """
    detections = detect(subset_table(predictions, "val", catalogue, boxes), boxes, heatmaps)
    threshold = detection.choose_box_threshold(detections) if detections else None
    return {} if threshold is None else {"box_threshold": threshold}


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
    """Write ``strata.csv`` and, if there are heatmaps and boxes, ``localisation.csv`` and ``candidates.csv``.

    Returns:
        The entries for ``metrics.json``: ``shortcuts``, ``localisation`` (the summary) and ``detection`` of each
        subset.
    """
    write_csv(folder / "strata.csv", pd.concat([one.strata.assign(subset=one.name) for one in assessed]))
    for file, tables in (
        ("localisation.csv", {one.name: one.localisation for one in assessed if len(one.localisation)}),
        ("candidates.csv", {one.name: one.candidates.round(DECIMALS) for one in assessed if one.detection}),
    ):
        (folder / file).unlink(missing_ok=True)  # of an earlier evaluation in this folder
        if tables:
            write_csv(folder / file, pd.concat([table.assign(split=name) for name, table in tables.items()]))
    return {
        "shortcuts": {one.name: one.shortcuts for one in assessed if one.shortcuts},
        "localisation": {one.name: one.localisation_summary for one in assessed if one.localisation_summary},
        "detection": {one.name: one.detection for one in assessed if one.detection},
    }
