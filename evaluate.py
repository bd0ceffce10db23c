"""Score a checkpoint on one part of its split: ``python evaluate.py ckpt=<run>/checkpoints/best.ckpt``."""

import hydra
from omegaconf import DictConfig

from fractatlas.cli import command_line, one_line_errors
from fractatlas.config import EvaluateConfig, check


@hydra.main(config_path="conf", config_name="evaluate")
def main(config: DictConfig) -> None:
    """Write ``predictions.csv`` and ``metrics.json`` for one checkpoint."""
    with one_line_errors(EvaluateConfig):
        plain = check(config, EvaluateConfig)
        from fractatlas.training.run import evaluate

        evaluate(plain)


if __name__ == "__main__":
    with command_line(EvaluateConfig):
        main()
