"""Trackers: what each records, read back by its own client, and what a resumed run continues."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hydra import compose, initialize_config_dir
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fractatlas.config.overrides import CONF
from fractatlas.config.schema import TrainConfig
from fractatlas.config.validation import validate
from fractatlas.errors import InputError
from fractatlas.training.fit import _build_loggers, train
from fractatlas.training.tensorboard import RunLogger
from fractatlas.training.trackers import CsvLogger, log_result


def composed(*overrides: str, trusted_targets: list[str] | None = None) -> dict:
    """Return the logger of a checked configuration."""
    with initialize_config_dir(str(CONF), job_name="test"):
        config = compose("train", ["paths.root=.", "paths.output_dir=run", "data=phantom", *overrides])
        return validate(config, TrainConfig, trusted_targets)["logger"]


@pytest.mark.parametrize(
    ("choice", "names"),
    [("tensorboard", ["tensorboard"]), ("csv", ["csv"]), ("[tensorboard,csv]", ["tensorboard", "csv"]),
     ("[csv,mlflow,wandb]", ["csv", "mlflow", "wandb"])],
)  # fmt: skip
def test_one_or_several_trackers_are_chosen(choice, names):
    assert list(composed(f"logger={choice}")) == names


def test_a_wrong_key_of_a_tracker_is_refused():
    with pytest.raises(InputError, match=r"^unknown key 'logger.csv.folder'"):
        composed("logger=csv", "+logger.csv.folder=x")
    with pytest.raises(InputError, match=r"^logger.wandb.offline=maybe: should be a valid boolean"):
        composed("logger=wandb", "logger.wandb.offline=maybe")


def test_the_configuration_of_an_older_run_is_accepted(tmp_path):
    old = {"_target_": "fractatlas.training.tensorboard.RunLogger", "save_dir": str(tmp_path), "name": "",
           "version": "tensorboard"}  # fmt: skip
    with initialize_config_dir(str(CONF), job_name="test"):
        config = compose("train", ["paths.root=.", "paths.output_dir=run", "data=phantom"])
    config.logger = old
    (logger,) = _build_loggers(validate(config, TrainConfig), None)
    assert isinstance(logger, RunLogger)
    assert logger.log_dir == str(tmp_path / "tensorboard")


def test_the_csv_logger_keeps_the_rows_before_the_step_from_which_a_run_is_resumed(tmp_path):
    first = CsvLogger(str(tmp_path), "csv")
    for step in (0, 5, 10, 15):
        first.log_metrics({"loss": 1.0 / (step + 1)}, step)
    first.close()
    resumed = CsvLogger(str(tmp_path), "csv", purge_step=10)
    resumed.log_metrics({"loss": 7.0, "auroc": 0.5}, 10)
    resumed.close()
    table = pd.read_csv(tmp_path / "csv" / "metrics.csv")
    assert table["step"].tolist() == [0, 5, 10]
    assert table["loss"].tolist() == pytest.approx([1, 1 / 6, 7])
    assert table["auroc"].isna().tolist() == [True, True, False]
    new = CsvLogger(str(tmp_path), "csv")
    new.log_metrics({"loss": 3.0}, 1)
    new.close()
    assert pd.read_csv(tmp_path / "csv" / "metrics.csv")["loss"].tolist() == [3]


def test_hyperparameters_and_scores_are_logged_with_names_that_every_tracker_accepts(tmp_path):
    logger = CsvLogger(str(tmp_path), "csv")
    log_result([logger], {"model.variant": "densenet121", "seed": 3}, {"val/auroc (best epoch)": 0.75}, 20)
    table = pd.read_csv(tmp_path / "csv" / "metrics.csv")
    assert (table["val/auroc best epoch"].item(), table["step"].item()) == (0.75, 20)
    stored = yaml.safe_load((tmp_path / "csv" / "hparams.yaml").read_text())
    assert stored == {"model.variant": "densenet121", "seed": 3}


@pytest.mark.integration
def test_a_run_logs_to_every_tracker_and_a_resumed_run_continues_them(configuration, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = tmp_path / "a run"
    options = ("logger=[csv,tensorboard,mlflow,wandb]", "trainer.log_every_n_steps=1", "report=false")
    train(configuration(run, *options, "trainer.max_epochs=1"))
    first = json.loads((run / "mlflow.json").read_text())
    (run / "metrics.json").rename(tmp_path / "first.json")
    (logged,) = (run / "wandb").glob("offline-run-*")
    config = configuration(run, *options, "trainer.max_epochs=2", f"resume='{run}'")
    train(config)
    metrics = json.loads((run / "metrics.json").read_text())
    auroc = metrics["test"]["auroc"]["value"]

    table = pd.read_csv(run / "csv" / "metrics.csv")
    steps = table.loc[table["train/loss_step"].notna() if "train/loss_step" in table else table["train/loss"].notna()]
    assert not steps["step"].duplicated().any()
    assert table["Final test/auroc"].dropna().tolist() == pytest.approx([auroc])
    assert yaml.safe_load((run / "csv" / "hparams.yaml").read_text())["trainer.max_epochs"] == 2

    board = EventAccumulator(str(run / "tensorboard")).Reload()
    assert "val/auroc" in board.Tags()["scalars"]
    assert board.Tags()["images"]

    assert json.loads((run / "mlflow.json").read_text()) == first
    stored = MlflowClient(first["tracking_uri"]).get_run(first["run_id"])
    assert (stored.info.status, stored.info.run_name) == ("FINISHED", "a run")
    assert stored.data.metrics["Final test/auroc"] == pytest.approx(auroc)
    assert stored.data.params["model.variant"] == "densenet_tiny"
    assert (stored.data.params["trainer.max_epochs"], stored.data.tags["resumed.trainer.max_epochs"]) == ("1", "2")

    logs = sorted((run / "wandb").glob("offline-run-*"))
    assert len(logs) == 2
    assert logged in logs
    assert len({folder.name.rpartition("-")[2] for folder in logs}) == 1
    history = wandb_history(logs[-1])
    deadline = time.monotonic() + 30
    while "Final test/auroc" not in history and time.monotonic() < deadline:
        time.sleep(0.2)  # another process of wandb writes the file
        history = wandb_history(logs[-1])
    assert history["Final test/auroc"] == pytest.approx(auroc)
    assert history["config"]["model.variant"] == "densenet_tiny"


def wandb_history(folder: Path) -> dict:
    """Return the last value of each metric, and the configuration, of an offline log."""
    from wandb.proto import wandb_internal_pb2

    values: dict = {"config": {}}
    for content in log_records(next(folder.glob("*.wandb")).read_bytes()):
        record = wandb_internal_pb2.Record.FromString(content)
        for item in record.history.item:
            values["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        for update in (record.config.update, record.run.config.update):
            for item in update:
                values["config"][item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    return values


def log_records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a file in LevelDB's log format, which wandb writes after a header of 7 bytes."""
    assert content[:4] == b":W&B"
    position, parts = 7, []
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:  # the rest of a block is padding
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        parts.append(content[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # complete, or the last part
            yield b"".join(parts)
            parts = []


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    import importlib.util

    from fractatlas.cli.train import _check

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlflow" else found(name))
    with initialize_config_dir(str(CONF), job_name="test"):
        config = compose("train", ["paths.root=.", "paths.output_dir=run", "data=phantom", "logger=mlflow",
                                   "trainer=cpu", "data.root=nowhere"])  # fmt: skip
        plain = validate(config, TrainConfig)
    with pytest.raises(InputError, match=r"^logger=mlflow needs mlflow-skinny: pip install mlflow-skinny$"):
        _check(plain)
