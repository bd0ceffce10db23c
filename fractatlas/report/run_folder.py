"""Read the files of a run folder."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from fractatlas.data.sources.fracatlas import read_boxes
from fractatlas.errors import InputError
from fractatlas.evaluation.assessment import SubsetAssessment, subset_table
from fractatlas.evaluation.localisation import Heatmaps, read_heatmaps
from fractatlas.evaluation.predictions_table import read_catalogue_file, read_metrics, read_predictions


class RunFolder:
    """A finished run folder of training or evaluation; each file is read when it is first needed.

    Args:
        path: the folder.

    Raises:
        InputError: the folder has no ``metrics.json`` or ``predictions.csv``, or a file in it is broken.
    """

    def __init__(self, path: Path):
        self.path = path
        for name in ("metrics.json", "predictions.csv"):
            if not (path / name).is_file():
                raise InputError(f"{path} is not a finished run folder: it has no {name}")

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The contents of ``metrics.json``."""
        return read_metrics(self.path / "metrics.json")

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """The table that ``read_predictions`` returns."""
        return read_predictions(self.path / "predictions.csv")

    @property
    def threshold(self) -> float:
        """The probability from which on an image counts as fractured."""
        return self.metrics["operating_point"]["threshold"]

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """The configuration of the training, plain; ``None`` for predictions of another system."""
        # Evaluation stores the checkpoint's configuration in a file of its own: .hydra/ holds the evaluation's.
        for name in ("training_config.yaml", ".hydra/config.yaml"):
            if (self.path / name).is_file():
                config = yaml.safe_load((self.path / name).read_text(encoding="utf-8"))
                if "model" in config:
                    return config
        return None

    @cached_property
    def catalogue(self) -> pd.DataFrame | None:
        """The table of ``catalogue.csv``, if there is one."""
        file = self.path / "catalogue.csv"
        return read_catalogue_file(file) if file.is_file() else None

    @cached_property
    def data_root(self) -> Path | None:
        """The data folder, if it still exists."""
        root = self.metrics.get("data_root") or self.metrics.get("data", {}).get("root")
        return Path(root) if root and (Path(root) / "dataset.csv").is_file() else None

    @cached_property
    def boxes(self) -> dict[str, np.ndarray]:
        """For each fractured image id, (n, 4) left, top, right, bottom in pixels of the upright radiograph."""
        return read_boxes(self.data_root) if self.data_root else {}

    @cached_property
    def heatmaps(self) -> Heatmaps | None:
        """The heatmaps of ``heatmaps.npz``, if there is one."""
        file = self.path / "heatmaps.npz"
        return read_heatmaps(file) if file.is_file() else None

    @cached_property
    def subsets(self) -> list[SubsetAssessment]:
        """The assessment of each subset, as evaluation wrote it.

        Raises:
            InputError: the run has no ``strata.csv``, because it ran with ``report=false``.
        """
        file = self.path / "strata.csv"
        if not file.is_file():
            raise InputError(f"{self.path} has no strata.csv: the run had report=false; run it again with report=true")
        strata, rows = pd.read_csv(file), pd.DataFrame({"split": []})
        if (file := self.path / "localisation.csv").is_file():
            rows = pd.read_csv(file, dtype={"image_id": str})
        return [
            SubsetAssessment(
                name,
                subset_table(self.predictions, name, self.catalogue, self.boxes),
                strata[strata["subset"] == name].drop(columns="subset").reset_index(drop=True),
                self.metrics.get("shortcuts", {}).get(name, {}),
                rows[rows["split"] == name].drop(columns="split"),
                self.metrics.get("localisation", {}).get(name, {}),
            )
            for name in strata["subset"].unique()
        ]
