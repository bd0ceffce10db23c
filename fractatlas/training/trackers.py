"""Loggers for trackers other than TensorBoard, which a resumed run continues."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import loggers
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from fractatlas.io import write_json

MLFLOW_RECORD = "mlflow.json"


class CsvLogger(loggers.CSVLogger):
    """Write ``metrics.csv`` and ``hparams.yaml`` to a folder.

    Lightning's class deletes the table of a run that is resumed.

    Args:
        save_dir: folder in which the folder is.
        version: name of the folder.
        purge_step: the step from which a run is resumed, whose earlier rows are kept; ``None`` for a new run.
    """

    def __init__(self, save_dir: str, version: str, purge_step: int | None = None):
        super().__init__(save_dir, name="", version=version)
        self._purge_step = purge_step

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of the table."""
        if self._experiment is None:
            kept = self._earlier_rows()  # the writer deletes the file when it is created
            super().experiment.metrics = kept
        return self._experiment

    def close(self) -> None:
        """Write the rows that are not written yet."""
        if self._experiment is not None:
            self.save()

    def _earlier_rows(self) -> list[dict[str, Any]]:
        table = Path(self.log_dir) / "metrics.csv"
        if self._purge_step is None or not table.is_file():
            return []
        with table.open(encoding="utf-8", newline="") as file:
            rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
        return [row for row in rows if int(row["step"]) < self._purge_step]


class MlflowLogger(loggers.MLFlowLogger):
    """Log to an MLflow database or server.

    ``mlflow.json`` in the run folder records the id of the run, so that a resumed run continues it.

    Args:
        experiment_name: of the experiment, which is created if it is absent.
        tracking_uri: of the database or server.
        run_folder: its name becomes the name of the run.
        purge_step: the step from which a run is resumed; ``None`` for a new run. MLflow keeps the values of later
            steps beside those that the resumed run logs.
    """

    def __init__(self, experiment_name: str, tracking_uri: str, run_folder: str, purge_step: int | None = None):
        self._record = Path(run_folder) / MLFLOW_RECORD
        known = {}
        if purge_step is not None and self._record.is_file():
            known = json.loads(self._record.read_text(encoding="utf-8"))
        name = Path(run_folder).name
        super().__init__(
            experiment_name, name, tracking_uri, tags={"run_folder": run_folder}, run_id=known.get("run_id")
        )

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The client; the first access creates the run."""
        if self._initialized:
            return self._mlflow_client
        client = super().experiment
        record = {"tracking_uri": self._tracking_uri, "experiment_id": self._experiment_id, "run_id": self._run_id}
        write_json(self._record, record)
        return client

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log parameters; one that a resumed run has changed becomes a tag, because MLflow refuses another value."""
        stored = self.experiment.get_run(self.run_id).data.params
        changed = {name: value for name, value in params.items() if stored.get(name, str(value)) != str(value)}
        super().log_hyperparams({name: value for name, value in params.items() if name not in stored})
        for name, value in changed.items():
            self.experiment.set_tag(self.run_id, f"resumed.{name}", str(value))


class WandbLogger(loggers.WandbLogger):
    """Log to Weights & Biases; by default, to files in the run folder, which ``wandb sync`` uploads.

    Args:
        project: name of the project.
        entity: user or team; ``None`` is the default of the account.
        offline: whether nothing is uploaded.
        run_folder: its name becomes the name of the run, and its subfolder ``wandb`` contains the log.
        purge_step: the step from which a run is resumed, which keeps the id; ``None`` for a new run.
    """

    def __init__(self, project: str, entity: str | None, offline: bool, run_folder: str, purge_step: int | None = None):
        from wandb import Settings

        folder = Path(run_folder)
        # The name of a log's folder ends with the id of the run: offline-run-20260131_120000-abcd1234.
        logs = sorted(folder.glob("wandb/*run-*-*")) if purge_step is not None else []
        super().__init__(
            name=folder.name, save_dir=run_folder, project=project, entity=entity, offline=offline,
            id=logs[-1].name.rpartition("-")[2] if logs else None, settings=Settings(console="off", silent=True),
        )  # fmt: skip

    def close(self) -> None:
        """End the run, so that the next run of this process gets one of its own."""
        if self._experiment is not None:
            self._experiment.finish()


def log_result(trackers: Iterable[Logger], values: Mapping[str, Any], scores: Mapping[str, float], step: int) -> None:
    """Log the hyperparameters and the final scores of a run.

    Args:
        trackers: all but TensorBoard.
        values: hyperparameters.
        scores: by name; parentheses in the names are removed, because MLflow does not accept them.
        step: the number of optimizer steps.
    """
    plain = {name.replace("(", "").replace(")", ""): value for name, value in scores.items()}
    for tracker in trackers:
        tracker.log_hyperparams(dict(values))
        tracker.log_metrics(plain, step)
        tracker.save()
