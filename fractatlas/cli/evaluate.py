"""``fractatlas evaluate``: score a checkpoint, or a table of predictions of any system."""

import logging
from pathlib import Path
from typing import Any

from fractatlas.cli import hydra_command
from fractatlas.config.schema import EvaluateConfig
from fractatlas.errors import InputError

log = logging.getLogger(__name__)


def evaluate() -> None:
    """Score a checkpoint or a table of predictions, and write a run folder."""
    hydra_command.run("evaluate", EvaluateConfig, _evaluate)


def _evaluate(config: dict[str, Any]) -> None:
    if bool(config["ckpt"]) == bool(config["predictions"]):
        raise InputError("give exactly one of ckpt=<run folder>/checkpoints/best.ckpt and predictions=FILE")
    if config["predictions"]:
        from fractatlas.evaluation.external_predictions import evaluate_predictions

        evaluate_predictions(config)
    else:
        from fractatlas.inference.evaluate import evaluate

        if not evaluate(config):
            return  # the first process writes the report
    if config["report"]:
        from fractatlas.report.report_page import write_report

        log.info("report: %s", write_report(Path(config["paths"]["output_dir"])))
