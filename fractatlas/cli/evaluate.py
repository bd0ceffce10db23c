"""``fractatlas evaluate``: score a checkpoint, or a table of predictions of any system."""

import logging
from pathlib import Path
from typing import Any

from fractatlas.cli import hydra_command
from fractatlas.cli.runs import write_page
from fractatlas.config.schema import EvaluateConfig
from fractatlas.errors import InputError
from fractatlas.progress_bar import waiting
from fractatlas.training.silence_warnings import quieten

log = logging.getLogger(__name__)
# Where and why a key has no effect.
WITH_CKPT = hydra_command.TRAINING_KEYS | {
    "threshold": "with ckpt=..., the checkpoint stores its threshold",
    "catalogue": "with ckpt=..., the catalogue is that of the data folder",
    "heatmaps": "with ckpt=..., the network computes the heatmaps",
    "paths.data_root": "with ckpt=..., data_root=DIR sets the data folder",
}
WITH_PREDICTIONS = {
    "subset": "with predictions=..., the column split selects the subsets",
    "split_file": "with predictions=..., the column split selects the subsets",
    "trainer": "with predictions=..., no network is used",
}


def evaluate() -> None:
    """Score a checkpoint or a table of predictions, and write a run folder."""
    hydra_command.run("evaluate", EvaluateConfig, _evaluate)


def _evaluate(config: dict[str, Any]) -> None:
    quieten()
    if bool(config["ckpt"]) == bool(config["predictions"]):
        raise InputError("give exactly one of ckpt=<run folder> and predictions=FILE")
    if config["predictions"]:
        from fractatlas.evaluation.external_predictions import evaluate_predictions, stored_operating_point

        reasons = WITH_PREDICTIONS
        if file := stored_operating_point(Path(config["predictions"])):
            reasons = reasons | {"threshold": f"with predictions=..., {file} stores their threshold"}
        hydra_command.refuse_overrides(reasons)
        evaluate_predictions(config)
    else:
        hydra_command.refuse_overrides(WITH_CKPT)
        log.info("run folder: %s", config["paths"]["output_dir"])
        with waiting("loading PyTorch"):
            from fractatlas.inference.evaluate import evaluate

        if not evaluate(config):
            return  # the first process writes the report
    if config["report"]:
        write_page(Path(config["paths"]["output_dir"]))
