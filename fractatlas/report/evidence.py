"""What a page is made from: a table of predictions, and whatever else lies beside it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from fractatlas.data.catalogue import read_boxes
from fractatlas.errors import InputError
from fractatlas.evaluation.localisation import Heatmaps, read_heatmaps
from fractatlas.evaluation.predictions import read_catalogue_file, read_predictions


@dataclass
class Evidence:
    """A run, or any system's predictions.

    Attributes:
        predictions: of ``read_predictions``.
        record: the contents of ``metrics.json``; at least ``task_name`` and ``operating_point``.
        config: the run's configuration, plain.
        catalogue: of the images.
        train: ``image_id, label`` of the training part.
        root: the data folder, for boxes and pictures.
        boxes: for each fractured image id, (n, 4) left, top, right, bottom in pixels of the upright radiograph.
        heatmaps: of some of the images.
    """

    predictions: pd.DataFrame
    record: dict[str, Any]
    config: dict[str, Any] | None = None
    catalogue: pd.DataFrame | None = None
    train: pd.DataFrame | None = None
    root: Path | None = None
    boxes: dict[str, np.ndarray] = field(default_factory=dict)
    heatmaps: Heatmaps | None = None


def gather(
    predictions: Path,
    record: dict[str, Any] | None = None,
    catalogue: Path | None = None,
    root: Path | None = None,
    heatmaps: Path | None = None,
    config: dict[str, Any] | None = None,
) -> Evidence:
    """Collect what lies beside a table of predictions: a run folder has all of it, a foreign table may have none.

    Args:
        predictions: ``image_id,label,probability``, and more; see ``read_predictions``.
        record: the contents of ``metrics.json``; ``None`` reads the file beside the predictions, if it is there.
        catalogue: another one than ``catalogue.csv`` beside the predictions.
        root: the data folder; ``None``: the one that the record names, if it is still there.
        heatmaps: another file than ``heatmaps.npz`` beside the predictions.
        config: under which the network was trained; ``None`` reads the run's, if the predictions lie in its folder.

    Raises:
        InputError: a file that was named is not there or not what it should be.
    """  # fmt: skip
    table, beside = read_predictions(predictions), predictions.parent
    if record is None:
        record = _json(beside / "metrics.json") if (beside / "metrics.json").is_file() else {}
    known = _named_or_beside(catalogue, beside / "catalogue.csv")
    split = beside / "split.csv"
    train = None
    if known and split.is_file():
        rows = pd.read_csv(split, dtype={"image_id": str})
        train = rows.loc[rows["split"] == "train", ["image_id", "label"]]
    if root is not None and not root.is_dir():
        raise InputError(f"data_root={root}: no such folder")
    root = root or Path(record.get("data", {}).get("root", ""))
    root = root if (root / "dataset.csv").is_file() else None
    hot = _named_or_beside(heatmaps, beside / "heatmaps.npz")
    file = beside / ".hydra" / "config.yaml"
    if config is None and file.is_file():
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
        config = found if "model" in found else None  # otherwise it says how a checkpoint was scored
    return Evidence(
        predictions=table,
        record=record,
        config=config,
        catalogue=read_catalogue_file(known) if known else None,
        train=train,
        root=root,
        boxes=read_boxes(root) if root else {},
        heatmaps=read_heatmaps(hot) if hot else None,
    )


def _named_or_beside(named: Path | None, beside: Path) -> Path | None:
    if named is not None:
        return named
    return beside if beside.is_file() else None


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
