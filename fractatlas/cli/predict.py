"""``fractatlas predict``: predict fractures in image files."""

import sys
from typing import Any

from fractatlas.cli import hydra_command
from fractatlas.config.schema import PredictConfig


def predict() -> None:
    """Write ``predictions.csv``; exit with status 2 if ``errors.csv`` lists images that could not be read."""
    hydra_command.run("predict", PredictConfig, _predict)


def _predict(config: dict[str, Any]) -> None:
    from fractatlas.inference.inputs import find_inputs

    inputs = find_inputs(config["input"])
    from fractatlas.inference import predict  # after the checks, because torch is slow to import

    if predict.predict(config, inputs):
        sys.exit(2)
