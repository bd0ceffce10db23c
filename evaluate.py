"""Score a checkpoint, or a table of predictions: ``python evaluate.py ckpt=<run>/checkpoints/best.ckpt``."""

import hydra
from omegaconf import DictConfig

from fractatlas.cli import command_line, one_line_errors
from fractatlas.config import EvaluateConfig, check
from fractatlas.errors import InputError


@hydra.main(config_path="conf", config_name="evaluate")
def main(config: DictConfig) -> None:
    """Write ``predictions.csv``, ``metrics.json`` and ``report.html`` for a checkpoint or for predictions."""
    with one_line_errors(EvaluateConfig):
        plain = check(config, EvaluateConfig)
        if bool(plain["ckpt"]) == bool(plain["predictions"]):
            raise InputError("name what to score: ckpt=<run>/checkpoints/best.ckpt or predictions=FILE, one of them")
        if plain["predictions"]:
            from fractatlas.report.assess import evaluate_predictions as evaluate  # needs no torch
        else:
            from fractatlas.training.run import evaluate

        evaluate(plain)


if __name__ == "__main__":
    with command_line(EvaluateConfig):
        main()
