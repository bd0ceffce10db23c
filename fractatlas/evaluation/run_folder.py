"""Read the files of a run folder."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from fractatlas.data import leaks
from fractatlas.data.catalogue import image_sizes
from fractatlas.data.sources.fracatlas import FracAtlas
from fractatlas.data.sources.phantom import is_generated
from fractatlas.data.sources.registry import open_source
from fractatlas.data.sources.source import Source
from fractatlas.errors import InputError
from fractatlas.evaluation.candidates import COLUMNS
from fractatlas.evaluation.localisation import Heatmaps, read_heatmaps
from fractatlas.evaluation.predictions_table import read_predictions
from fractatlas.evaluation.subset_assessment import SubsetAssessment, subset_table
from fractatlas.io import read_csv

CROSS_VALIDATION = "runs/*/seed_*_fold_*/checkpoints/best.ckpt"  # in the folder of ``fractatlas crossval``


def best_checkpoint(path: Path) -> Path:
    """Return the best checkpoint of a run folder; any other path is returned unchanged.

    Raises:
        InputError: the path is a folder without ``checkpoints/best.ckpt``.
    """
    if not path.is_dir():
        return path
    file = path / "checkpoints" / "best.ckpt"
    if not file.is_file():
        raise InputError(f"{path} has no checkpoints/best.ckpt; give the run folder of a training, or a checkpoint")
    return file


def best_checkpoints(path: Path) -> list[Path]:
    """Return the best checkpoints of all runs of a cross-validation; for any other path, that of ``best_checkpoint``.

    Raises:
        InputError: as ``best_checkpoint``.
    """
    found = sorted(path.glob(CROSS_VALIDATION)) if path.is_dir() else []
    return found or [best_checkpoint(path)]


class RunFolder:
    """A run folder of training or evaluation; each file is read when it is first needed.

    Args:
        path: the folder.
        given: files by name that replace those of the folder; ``None`` replaces nothing. With ``given``, the folder
            can be any folder with the predictions of another system.

    Raises:
        InputError: the folder has no ``metrics.json`` or ``predictions.csv``, or a file in it is broken.
    """

    def __init__(self, path: Path, given: Mapping[str, str | None] | None = None):
        self.path, self._given = path, given or {}
        for name in ("metrics.json", "predictions.csv") if given is None else ():
            if not (path / name).is_file():
                raise InputError(f"{path}: not finished ({name} is missing); give the folder of a finished run")

    def file(self, *names: str) -> Path | None:
        """Return the path of the first of several files that was given or is in the folder."""
        for name in names:
            if given := self._given.get(name):
                return Path(given)
            if (self.path / name).is_file():
                return self.path / name
        return None

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The contents of ``metrics.json``; empty if there is none."""
        if not (file := self.file("metrics.json")):
            return {}
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{file} is not valid JSON: {error}; run the training or evaluation again") from None

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """The table that ``read_predictions`` returns."""
        return read_predictions(self.file("predictions.csv") or self.path / "predictions.csv")

    @property
    def threshold(self) -> float:
        """The smallest probability that is classified as fractured."""
        return self.metrics["operating_point"]["threshold"]

    @property
    def config_file(self) -> Path | None:
        """The configuration of the training; evaluation stores it separately from its own, which is in .hydra/."""
        return self.file("training_config.yaml", ".hydra/config.yaml")

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """The contents of ``config_file``, plain; ``None`` for predictions of another system."""
        config = yaml.safe_load(self.config_file.read_text(encoding="utf-8")) if self.config_file else {}
        return config if "model" in config else None

    @cached_property
    def catalogue(self) -> pd.DataFrame | None:
        """The table of ``catalogue.csv``, if there is one."""
        if not (file := self.file("catalogue.csv")):
            return None
        remedy = "use the catalogue.csv of a run"
        text = dict.fromkeys(("image_id", "group", *leaks.COLUMNS.values()), str)
        return read_csv(file, ["image_id"], remedy, dtype=text, keep_default_na=False)

    @cached_property
    def training_labels(self) -> pd.DataFrame | None:
        """The columns ``image_id, label`` of the training subset in ``split.csv``, if there is one."""
        if not (file := self.file("split.csv")):
            return None
        rows = read_csv(file, ["image_id", "label", "split"], "use the split.csv of a run", dtype={"image_id": str})
        return rows.loc[rows["split"] == "train", ["image_id", "label"]]

    @cached_property
    def source(self) -> Source | None:
        """The source of the images, if its files still exist."""
        data = self.metrics.get("data", {})
        settings, root = data.get("source"), self.metrics.get("data_root")
        if not settings or root:  # a run of an earlier version, or a folder that was given with predictions
            root = root or data.get("root")
            source: Source | None = FracAtlas(root) if root and (Path(root) / "dataset.csv").is_file() else None
            return source
        source = open_source(settings | ({"prepare": None} if "prepare" in settings else {}))
        try:
            source.require()
        except InputError:
            return None
        return source

    @property
    def data_root(self) -> Path | None:
        """The data folder, if it still exists."""
        return self.source.root if self.source else None

    @cached_property
    def has_phantoms(self) -> bool:
        """Whether the images are generated phantoms, according to the data folder or the configuration."""
        if self.data_root is not None and is_generated(self.data_root):
            return True
        # An evaluation on other data stores their source; the configuration is that of the training.
        settings = self.metrics.get("data", {}).get("source") or (self.config or {}).get("data", {})
        return bool(settings.get("prepare"))

    @cached_property
    def boxes(self) -> dict[str, np.ndarray]:
        """For each fractured image id, (n, 4) left, top, right, bottom in pixels of the upright radiograph.

        Boxes without area in their image are ignored, as they are when the network is trained and scored.
        """
        if self.source is None:
            return {}
        if self.catalogue is not None and {"width", "height"} <= {*self.catalogue}:
            self.source.ignore_outside(image_sizes(self.catalogue))
        return self.source.boxes()

    @cached_property
    def heatmaps(self) -> Heatmaps | None:
        """The heatmaps of ``heatmaps.npz``, if there is one."""
        file = self.file("heatmaps.npz")
        return read_heatmaps(file) if file else None

    @cached_property
    def subsets(self) -> list[SubsetAssessment]:
        """The assessment of each subset, as evaluation wrote it.

        Raises:
            InputError: the run has no ``strata.csv``, because it ran with ``report=false``.
        """
        if not (file := self.file("strata.csv")):
            raise InputError(f"{self.path} has no strata.csv: the run had report=false; run it again with report=true")
        strata, rows = pd.read_csv(file), pd.DataFrame({"split": []})
        candidates = pd.DataFrame(columns=[*COLUMNS, "in_box", "split"])
        if file := self.file("localisation.csv"):
            rows = pd.read_csv(file, dtype={"image_id": str})
        if file := self.file("candidates.csv"):
            candidates = pd.read_csv(file, dtype={"image_id": str})
        return [
            SubsetAssessment(
                name,
                subset_table(self.predictions, name, self.catalogue, self.boxes),
                strata[strata["subset"] == name].drop(columns="subset").reset_index(drop=True),
                self.metrics.get("shortcuts", {}).get(name, {}),
                rows[rows["split"] == name].drop(columns="split"),
                self.metrics.get("localisation", {}).get(name, {}),
                candidates[candidates["split"] == name].drop(columns="split"),
                self.metrics.get("detection", {}).get(name, {}),
            )
            for name in strata["subset"].unique()
        ]
