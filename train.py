"""Fine-tune a network on radiographs: ``python train.py model=densenet``, any key of ``conf/`` as ``key=value``."""

import hydra
from omegaconf import DictConfig

from fractatlas.cli import command_line, one_line_errors
from fractatlas.config import TrainConfig, check


@hydra.main(config_path="conf", config_name="train")
def main(config: DictConfig) -> float:
    """Train one network; the best checkpoint's value of ``monitor``, for a sweeper to optimise."""
    with one_line_errors(TrainConfig):
        plain = check(config, TrainConfig)
        from fractatlas.training.run import (
            train,  # only now, so that a mistake is answered before torch is loaded
        )

        return train(plain)


if __name__ == "__main__":
    with command_line(TrainConfig):
        main()
