"""All that can be said of a set of predictions: how good, how sure, where it fails, where it looks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fractatlas.evaluation import localisation, strata
from fractatlas.evaluation.bootstrap import draws
from fractatlas.evaluation.localisation import Heatmaps
from fractatlas.evaluation.predictions import join

PARTS = ("train", "val", "test")


@dataclass
class Part:
    """One part of a split, assessed.

    Attributes:
        name: ``val`` or ``test``; ``train`` where somebody asked for it.
        table: its predictions, joined with the catalogue.
        strata: of ``strata.stratify``; the first row is the whole part.
        shortcuts: of ``strata.shortcuts``; empty without a training part.
        located: of ``localisation.localise``; empty without heatmaps.
        pointing: of ``localisation.summarise``; empty without heatmaps.
    """

    name: str
    table: pd.DataFrame
    strata: pd.DataFrame
    shortcuts: dict[str, dict[str, Any]]
    located: pd.DataFrame
    pointing: dict[str, dict[str, Any]]


def assess(
    predictions: pd.DataFrame,
    threshold: float,
    catalogue: pd.DataFrame | None = None,
    train: pd.DataFrame | None = None,
    boxes: Mapping[str, np.ndarray] | None = None,
    heatmaps: Heatmaps | None = None,
) -> list[Part]:
    """Assess every part that the predictions hold.

    Args:
        predictions: as ``read_predictions`` gives them.
        threshold: fractured from this probability on.
        catalogue: a run's, or any table with an ``image_id`` and some of its columns.
        train: ``image_id, label`` of the training part, for the baseline that looks at no pixel.
        boxes: for each fractured image id, (n, 4): left, top, right, bottom in pixels.
        heatmaps: of all fractured images of a part, or of none.
    """
    known = pd.DataFrame({"image_id": predictions["image_id"]}) if catalogue is None else catalogue
    sized = {"width", "height"} <= {*known}
    assessed = []
    for name in PARTS:
        table = join(predictions[predictions["split"] == name].reset_index(drop=True), known)
        if table.empty:
            continue
        if boxes and sized:
            table["box_size"] = strata.box_sizes(table, boxes)
        located, pointing = pd.DataFrame(), {}
        fractured = table[table["label"] == 1]
        if heatmaps is not None and boxes and sized and fractured["image_id"].isin(heatmaps.image_id).any():
            sizes = {row.image_id: (int(row.width), int(row.height)) for row in fractured.itertuples()}
            located = localisation.localise(heatmaps, boxes, sizes)
            pointing = localisation.summarise(located, table.set_index("image_id")["group"])
        beside = strata.shortcuts(join_train(train, known), table) if train is not None else {}
        rows = strata.stratify(table, threshold, draws(table["group"]))
        assessed.append(Part(name, table, rows, beside, located, pointing))
    return assessed


def join_train(train: pd.DataFrame, catalogue: pd.DataFrame) -> pd.DataFrame:
    """Add the catalogue's columns to the labels of the training part."""
    return train[["image_id", "label"]].merge(catalogue.drop(columns="label", errors="ignore"), on="image_id")
