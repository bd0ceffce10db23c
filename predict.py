"""The probability of a fracture for images: ``python predict.py ckpt=<run>/checkpoints/best.ckpt input=FOLDER``."""

import sys

import hydra
from omegaconf import DictConfig

from fractatlas.cli import command_line, one_line_errors
from fractatlas.config import PredictConfig, check
from fractatlas.data.inputs import find_inputs


@hydra.main(config_path="conf", config_name="predict")
def main(config: DictConfig) -> None:
    """Write ``predictions.csv``; exit with status 2 where ``errors.csv`` lists images that could not be read."""
    with one_line_errors(PredictConfig):
        plain = check(config, PredictConfig)
        inputs = find_inputs(plain["input"])
        from fractatlas.prediction import predict

        if predict(plain, inputs):
            sys.exit(2)


if __name__ == "__main__":
    with command_line(PredictConfig):
        main()
