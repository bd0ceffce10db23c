"""A finished run, and commands without a command line."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.nn.functional import avg_pool2d

from fractatlas.config.overrides import prepare
from fractatlas.config.schema import EvaluateConfig, PredictConfig
from fractatlas.config.validation import validate
from fractatlas.inference import model
from fractatlas.inference.evaluate import evaluate
from fractatlas.inference.inputs import find_inputs
from fractatlas.inference.predict import predict
from fractatlas.models import heatmaps
from fractatlas.training.fit import train
from tests.conftest import REPOSITORY


@pytest.fixture(scope="session")
def finished_run(configuration, tmp_path_factory) -> Path:
    """The run folder of a small DenseNet."""
    run = tmp_path_factory.mktemp("run")
    train(configuration(run, "trainer.max_epochs=1", "optimizer.lr=0.01", "threshold=youden"))
    return run


@pytest.fixture(scope="session")
def checkpoint(finished_run) -> Path:
    return finished_run / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="session")
def readable(catalogue, phantoms) -> list[Path]:
    """The phantoms that are not truncated."""
    return [phantoms / path for path in catalogue.loc[catalogue["excluded"] == "", "path"]]


@pytest.fixture
def fracture_map(monkeypatch) -> None:
    """Give every network a fracture map with cells of 8 x 8 pixels, which is the brightness of the image."""
    gradcam_of = heatmaps.with_heatmaps

    def with_heatmaps(backbone, images: torch.Tensor, gradcam: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        if gradcam:
            return gradcam_of(backbone, images, gradcam=True)
        return backbone(images), avg_pool2d((images[:, 0] * 0.229 + 0.485).clamp(0, 1), 8)

    for module in (heatmaps, model):
        monkeypatch.setattr(module, "has_map", lambda backbone: True)
        monkeypatch.setattr(module, "with_heatmaps", with_heatmaps)


def predict_into(run: Path, *overrides: str) -> tuple[pd.DataFrame, int]:
    """Return the table of ``fractatlas predict`` and the number of unreadable inputs."""
    config = _compose("predict", PredictConfig, run, "batch_size=16", "threads=2", *overrides)
    unreadable = predict(config, find_inputs(config["input"]))
    return pd.read_csv(run / "predictions.csv"), unreadable


def evaluate_into(run: Path, *overrides: str) -> pd.DataFrame:
    """Return the predictions that ``fractatlas evaluate`` writes."""
    evaluate(_compose("evaluate", EvaluateConfig, run, "report=false", *overrides))
    return pd.read_csv(run / "predictions.csv")


def _compose(name: str, schema_class: type, run: Path, *overrides: str) -> dict:
    options = (f"paths.root={run}", f"paths.output_dir={run}", "trainer=cpu", *prepare(overrides, schema_class))
    with initialize_config_dir(str(REPOSITORY / "conf"), job_name="test"):
        return validate(compose(name, list(options)), schema_class)
