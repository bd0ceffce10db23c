"""Fine-tune a network on radiographs: ``python train.py model=densenet``, any key of ``conf/`` as ``key=value``."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from fractatlas.cli import command_line, one_line_errors
from fractatlas.config import TrainConfig, check
from fractatlas.signals import stoppable


@hydra.main(config_path="conf", config_name="train")
def main(config: DictConfig) -> float:
    """Train one network; the best checkpoint's value of ``monitor``, for a sweeper to optimise."""
    with one_line_errors(TrainConfig):
        plain = check(config, TrainConfig)
        # Only now, so that a mistake is answered before torch is loaded.
        from fractatlas.training.run import train

        with stoppable(Path(plain["paths"]["output_dir"])):
            return train(plain)


if __name__ == "__main__":
    with stoppable(), command_line(TrainConfig):
        main()
