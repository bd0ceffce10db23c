"""``fractatlas predict``: predict fractures in image files."""

import importlib.util
import sys
from typing import Any

from fractatlas.cli import hydra_command
from fractatlas.config.schema import PredictConfig
from fractatlas.errors import InputError

# Where and why a key has no effect.
NO_EFFECT = hydra_command.TRAINING_KEYS | hydra_command.LOOP_KEYS
NO_EFFECT |= dict.fromkeys(("paths.data_dir", "paths.data_root", "paths.cache_dir"), "here, input=... gives the images")
NO_EFFECT |= {"paths.weights": "here, the checkpoint contains the weights"}


def predict() -> None:
    """Write ``predictions.csv``; exit with status 2 if ``errors.csv`` was written."""
    hydra_command.run("predict", PredictConfig, _predict, _check, NO_EFFECT)


def _check(config: dict[str, Any]) -> None:
    """Check that every argument has an effect, and that the input and the checkpoint exist."""
    from fractatlas.inference.inputs import require_match

    without_boxes = {"box_threshold": "with gradcam=true, which gives no boxes"} if config["gradcam"] else {}
    hydra_command.refuse_overrides(NO_EFFECT | without_boxes)
    require_match(config["input"])
    hydra_command.require_checkpoint(config, several=True)
    hydra_command.require_accelerator(config["trainer"])
    if config["dicom_out"] and importlib.util.find_spec("highdicom") is None:
        raise InputError("dicom_out=true needs highdicom: pip install highdicom")


def _predict(config: dict[str, Any]) -> None:
    from fractatlas.inference.inputs import find_inputs

    inputs = find_inputs(config["input"])
    from fractatlas.inference import predict  # after the checks, because torch is slow to import

    if predict.predict(config, inputs):
        sys.exit(2)
